import numpy as np
import pytest

from stages.metrics import choices, facts
from stages.metrics.scoring import Expected

HOTEL = [
    Expected("Breakfast is until 10:30 am.", ()),
    Expected("The code is 7315.", ()),
    Expected("Gladly!", ()),
    Expected("Wake-up at 6 am.", ("Wake me at 6 am.",)),
]


def test_the_first_fact_gets_three_other_values_of_its_form():
    copies = choices.altered(HOTEL, seed=7)
    assert [len(texts) for texts in copies] == [3, 3, 0, 0]
    for reference, texts in zip(HOTEL[:2], copies[:2], strict=True):
        assert len({reference.reference, *texts}) == 4
        for text in texts:
            (before,), (after,) = facts.facts(reference.reference), facts.facts(text)
            assert before.kind == after.kind and before.value != after.value
    assert all(len(text) == len("The code is 7315.") for text in copies[1])


def test_the_choice_is_that_of_the_seed():
    assert choices.altered(HOTEL, seed=7) == choices.altered(HOTEL, seed=7) != choices.altered(HOTEL, seed=8)


def test_a_name_becomes_another_name_of_the_test():
    hotels = [Expected(f"It is in the {name} Room.", ()) for name in ("Gull", "Seal", "Cod", "Whale")]
    rooms = {f"It is in the {name} Room." for name in ("Gull", "Seal", "Cod", "Whale")}
    for one, texts in zip(hotels, choices.altered(hotels, seed=1), strict=True):
        assert set(texts) == rooms - {one.reference}
    # Three names leave two others: too few.
    assert choices.altered(hotels[:3], seed=1) == [[], [], []]


@pytest.mark.parametrize(
    "nll, share", [([1.0, 2.0, 3.0, 4.0], 1.0), ([2.0, 1.0, 3.0, 4.0], 0.0), ([1.0, 1.0, 2.0, 2.0], 0.0)]
)
def test_the_reference_is_chosen_if_it_is_likelier_than_every_copy(nll, share):
    mean = choices.chosen(np.array([nll, [1.0, np.nan, np.nan, np.nan]]))
    assert mean.totals.tolist() == [share, 0.0] and mean.weights.tolist() == [1.0, 0.0]
