import numpy as np
import pytest

from stages.commands import comparison
from stages.commands.comparison import Change, Shared
from stages.metrics import intervals
from stages.metrics.intervals import Bootstrap
from tests.support.history import prediction, predictions

BOOTSTRAP = Bootstrap(seed=1, resamples=2000, confidence=0.95)


@pytest.fixture(autouse=True)
def three_are_enough(monkeypatch):
    """Intervals of so few conversations that their numbers can be worked out."""
    monkeypatch.setattr(intervals, "FEWEST", 2)


def compared(old, new, **obstacles):
    """Changes by name."""
    own = [dict.fromkeys(lines[0]["scores"]["tuned"], 9.5) for lines in (old, new)]
    found = comparison.changes(Shared(comparison.pairs(old, new), []), *own, BOOTSTRAP, obstacles)
    return {change.name: change for change in found}


def test_the_loss_is_weighted_by_tokens():
    loss = compared(predictions([1.0, 2.0, 4.0]), predictions([1.0, 1.0, 4.0]))["loss"]
    # With 10, 30 and 60 tokens: (10 + 60 + 240) / 100 and (10 + 30 + 240) / 100.
    assert (loss.old, loss.new, loss.difference["value"], loss.word) == (3.1, 2.8, -0.3, "within noise")


def test_the_perplexity_is_that_of_the_mean_loss():
    perplexity = compared(predictions([1.0, 2.0, 4.0]), predictions([1.0, 1.0, 4.0]))["perplexity"]
    assert (perplexity.old, perplexity.new) == (round(np.exp(3.1), 4), round(np.exp(2.8), 4))
    assert perplexity.difference["value"] == round(np.exp(2.8) - np.exp(3.1), 4)


def test_scores_of_answers_count_each_conversation_once():
    chrf = compared(predictions(chrf=[10.0, 20.0, 60.0]), predictions(chrf=[13.0, 23.0, 63.0]))["chrf"]
    # 90 / 3 and 99 / 3; each conversation gains exactly 3, so every resample does.
    assert (chrf.old, chrf.new) == (30.0, 33.0)
    assert chrf.difference == {"value": 3.0, "low": 3.0, "high": 3.0} and chrf.word == "better"


def test_the_interval_is_that_of_a_paired_bootstrap_over_conversations():
    rng = np.random.default_rng(7)
    tokens = rng.integers(5, 80, 40)
    old = rng.normal(2, 0.8, 40)
    new = old + rng.normal(0.1, 0.2, 40)
    loss = compared(*(predictions(list(losses), tokens.tolist()) for losses in (old, new)))["loss"]
    chosen = rng.integers(0, 40, (20_000, 40))
    weights = tokens[chosen]
    differences = ((new - old)[chosen] * weights).sum(axis=1) / weights.sum(axis=1)
    assert loss.difference["value"] == round(float(((new - old) * tokens).sum() / tokens.sum()), 4)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert loss.difference["low"] == pytest.approx(low, abs=0.006)
    assert loss.difference["high"] == pytest.approx(high, abs=0.006)


def test_conversations_are_paired_whatever_their_order():
    old, new = predictions(chrf=[10.0, 20.0, 60.0]), predictions(chrf=[11.0, 21.0, 61.0])
    assert compared(old, new[::-1])["chrf"].difference == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_conversation_that_is_repeated_is_paired_twice():
    twice = [prediction(0, chrf=10.0), prediction(0, chrf=20.0)]
    again = [prediction(0, chrf=11.0), prediction(0, chrf=21.0)]
    assert len(comparison.pairs(twice, again)) == 2 and len(comparison.pairs(twice, again[:1])) == 1
    assert compared(twice, again)["chrf"].difference == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_only_shared_conversations_are_compared():
    old, new = predictions(chrf=[10.0, 20.0, 60.0])[:2], predictions(chrf=[90.0, 21.0, 62.0])[1:]
    chrf = compared(old, new)["chrf"]
    assert (chrf.old, chrf.new, chrf.difference) == (20.0, 21.0, {"value": 1.0, "low": None, "high": None})


@pytest.mark.parametrize(
    "old, new, obstacle",
    [
        ({"tokens": [None] * 3}, {}, "the old run kept no weights of it"),
        ({}, {"tokens": [10, 30, None]}, "the new run kept no weights of it"),
        ({"tokens": [0] * 3}, {}, "the old run has nothing to measure it on"),
        ({}, {"tokens": [10, 31, 60]}, "the two models count tokens differently"),
        ({}, {"losses": [None] * 3}, "the new run did not measure it"),
    ],
)
def test_a_loss_that_cannot_be_compared_says_why(old, new, obstacle):
    found = compared(predictions(**old), predictions(**new))
    loss = found["loss"]
    assert (loss.difference, loss.word, loss.obstacle) == (None, "not comparable", obstacle)
    # The runs' own values are shown all the same, and what does not need tokens is compared.
    assert loss.old == 9.5 and found["chrf"].word == "within noise"


def test_tests_without_a_common_conversation_compare_nothing():
    found = compared(predictions(), [prediction(7)])
    assert {change.obstacle for change in found.values()} == {"the tests have no conversation in common"}


def test_a_measure_that_was_taken_in_another_way_is_not_compared():
    found = compared(predictions(), predictions([9.0, 9.0, 9.0]), loss="measured with another ruler")
    assert found["loss"].obstacle == "measured with another ruler" and not found["loss"].exceeds(0.1)
    assert (found["loss"].old, found["loss"].new, found["chrf"].word) == (9.5, 9.5, "within noise")


def test_a_perplexity_that_no_number_holds_is_not_compared():
    huge = [{**line, "scores": {"tuned": {**line["scores"]["tuned"], "loss": 800.0}}} for line in predictions()]
    found = compared(predictions(), huge)
    assert found["perplexity"].obstacle == "it is larger than a number can be" and found["loss"].word == "worse"


def change(name, value, low=None, high=None):
    return Change(name, 1.0, 1.0 + value, {"value": value, "low": low, "high": high})


@pytest.mark.parametrize(
    "found, exceeds",
    [
        (change("loss", 0.2, 0.1, 0.3), True),
        (change("loss", -0.2, -0.3, -0.1), False),
        (change("loss", 0.05, 0.01, 0.09), False),  # as much as is allowed, and not more
        (change("loss", 0.2, -0.01, 0.4), False),  # within noise
        (change("loss", 0.2), True),  # one conversation: nothing speaks for noise
        (change("chrf", -0.2, -0.3, -0.1), True),
        (change("chrf", 0.2, 0.1, 0.3), False),
        (Change("loss", 1.0, 9.0, obstacle="the two models count tokens differently"), False),
    ],
)
def test_worse_by_more_than_allowed_and_more_than_noise_is_too_much(found, exceeds):
    assert found.exceeds(0.05) is exceeds


def test_those_answers_come_first_whose_chrf_moved_most():
    old = predictions([1.0] * 5, [10] * 5, chrf=[50.0, 50.0, 50.0, 50.0, 50.0])
    new = predictions(
        [1.0] * 5, [10] * 5, chrf=[51.0, 20.0, 50.0, 90.0, 60.0], answer=["No.", "No.", "No.", "No.", "Yes."]
    )
    shared = comparison.pairs(old, new)
    # The last one scores otherwise with the same answer, so there is nothing to see side by side.
    assert [line["reference"] for _, line in comparison.most_changed(shared, 10)] == [
        "It is 3.", "It is 1.", "It is 0.", "It is 2."
    ]  # fmt: skip
    assert len(comparison.most_changed(shared, 2)) == 2


def test_one_more_run_of_the_same_conversation_is_paired_in_order():
    old = [prediction(0, chrf=score) for score in (10.0, 20.0, 30.0)]
    new = [prediction(0, chrf=score) for score in (11.0, 22.0, 33.0, 99.0)]
    scores = [tuple(line["scores"]["tuned"]["chrf"] for line in pair) for pair in comparison.pairs(old, new)]
    assert scores == [(10.0, 11.0), (20.0, 22.0), (30.0, 33.0)]


def test_the_same_prompt_with_another_reference_is_another_conversation():
    line = prediction(0)
    assert comparison.pairs([line], [{**line, "reference": "Another."}]) == []
    # The order of a message's keys is not what it says.
    turned = [{**line, "prompt": [dict(reversed(message.items())) for message in line["prompt"]]}]
    assert comparison.pairs([line], turned) == [(line, turned[0])]


def test_pairs_are_in_the_new_run_s_order():
    old, new = predictions(), predictions()[::-1]
    assert [line["reference"] for _, line in comparison.pairs(old, new)] == ["It is 2.", "It is 1.", "It is 0."]


def test_what_one_run_alone_measured_is_shown_with_its_value():
    own = {"loss": 2.5}, {"loss": 3.5, "similarity": 0.5}
    shared = comparison.pairs(predictions(losses=[None] * 3), predictions())
    similarity, loss = comparison.changes(Shared(shared, []), *own, BOOTSTRAP)
    assert (loss.name, loss.old, loss.new) == ("loss", 2.5, 3.5)
    assert loss.obstacle == "the old run did not measure it" == similarity.obstacle
    assert (similarity.name, similarity.old, similarity.new, similarity.word) == (
        "similarity",
        None,
        0.5,
        "not comparable",
    )


@pytest.mark.parametrize("name", ["loss", "perturbed_loss", "token_accuracy"])
def test_measures_of_tokens_are_weighted_by_them(name):
    old = predictions(**{name: [1.0, 2.0, 4.0]}) if name != "loss" else predictions([1.0, 2.0, 4.0])
    # With 10, 30 and 60 tokens (10 + 60 + 240) / 100.
    assert compared(old, old)[name].old == 3.1


@pytest.mark.parametrize("name", ["rouge_l", "similarity", "exact_match"])
def test_measures_of_answers_are_not_weighted(name):
    old = predictions(**{name: [1.0, 2.0, 6.0]})
    assert compared(old, old)[name].old == 3.0


def test_measures_of_answers_are_compared_where_tokens_are_counted_differently():
    found = compared(predictions(), predictions(tokens=[11, 31, 61]))
    obstacle = "the two models count tokens differently"
    assert {name for name, change in found.items() if change.obstacle == obstacle} == {"loss", "perplexity"}


def test_a_change_is_reported_with_the_word_of_its_interval():
    assert change("loss", 0.2, 0.1, 0.3).word == "worse" and change("chrf", 0.2, 0.1, 0.3).word == "better"
    assert change("loss", 0.2).word == "too few"
    assert (change("loss", 0.2).worsening, change("chrf", 0.2).worsening) == (0.2, -0.2)
    assert Change("loss", 1.0, 2.0).worsening is None


def test_a_perplexity_before_that_no_number_holds_is_not_compared_either():
    huge = [{**line, "scores": {"tuned": {**line["scores"]["tuned"], "loss": 800.0}}} for line in predictions()]
    found = compared(huge, predictions())["perplexity"]
    assert found.obstacle == "it is larger than a number can be" and found.old == np.inf and found.difference is None


def test_values_have_the_decimals_of_their_measure():
    found = compared(predictions([1 / 3] * 3, chrf=[100 / 3] * 3), predictions([2 / 3] * 3, chrf=[200 / 3] * 3))
    assert (found["loss"].old, found["loss"].new, found["loss"].difference["value"]) == (0.3333, 0.6667, 0.3333)
    assert (found["chrf"].old, found["chrf"].new, found["chrf"].difference["value"]) == (33.33, 66.67, 33.33)


def test_the_move_of_an_answer_counts_in_either_direction():
    old = predictions([1.0] * 3, [10] * 3, chrf=[90.0, 10.0, 50.0])
    new = predictions([1.0] * 3, [10] * 3, chrf=[80.0, 25.0, 70.0], answer=["No."] * 3)
    # By 10, 15 and 20.
    moved = [line["reference"] for _, line in comparison.most_changed(comparison.pairs(old, new), 3)]
    assert moved == ["It is 2.", "It is 1.", "It is 0."]


def test_shares_of_facts_are_weighted_by_the_facts():
    def run(*scores):
        lines = predictions(fact_recall=list(scores))
        for line, facts in zip(lines, (1, 0, 3), strict=True):
            line["weights"]["tuned"] = {**line["weights"]["tuned"], "fact_recall": facts}
        return lines

    # (1 * 0 + 3 * 1) / 4 and (1 * 1 + 3 * 1) / 4; the second reference has no facts, and so no share.
    found = compared(run(0.0, None, 1.0), run(1.0, None, 1.0))["fact_recall"]
    assert (found.old, found.new, found.difference["value"]) == (0.75, 1.0, 0.25)


def test_the_loss_on_general_prompts_is_compared_on_those():
    def run(*losses):
        lines = [prediction(number, prompt=f"General {number}") for number in range(len(losses))]
        for line, loss in zip(lines, losses, strict=True):
            line["scores"] = {part: {"retention": loss} for part in ("base", "tuned")}
            line["weights"] = {part: {"retention": 4} for part in ("base", "tuned")}
        return lines

    general = comparison.pairs(run(1.0, 2.0, 3.0), run(2.0, 3.0, 4.0))
    shared = Shared(comparison.pairs(predictions(), predictions()), general)
    own = {"retention": 9.5}
    (found,) = comparison.changes(shared, own, own, BOOTSTRAP)
    assert (found.old, found.new, found.word) == (2.0, 3.0, "worse")
    (found,) = comparison.changes(Shared(shared.test, []), own, own, BOOTSTRAP)
    assert found.obstacle == "the tests have no conversation in common"
