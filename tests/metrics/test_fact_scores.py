import numpy as np

from stages.metrics import fact_scores, registry
from stages.metrics.scoring import Expected

# References with two facts, none, one, and one that the prompt gives.
EXPECTED = [
    Expected("From 7 am, for €12.", ()),
    Expected("Gladly!", ()),
    Expected("It is room 7.", ()),
    Expected("Room 212 it is.", ("I am in room 212.",)),
]
ANSWERS = ["From 7 am, for €13.", "Gladly, at 9 pm!", "It is room 7.", "Room 212 it is."]


def test_recall_counts_facts_of_references_and_precision_those_of_answers():
    assert [part.tolist() for part in fact_scores.recall(ANSWERS, EXPECTED)] == [[1, 0, 1, 0], [2, 0, 1, 0]]
    assert [part.tolist() for part in fact_scores.precision(ANSWERS, EXPECTED)] == [[1, 0, 1, 0], [2, 1, 1, 0]]


def test_an_answer_is_right_with_all_facts_and_none_invented():
    answers = ["From 7 am, for €12.", "Gladly!", "It is room 7 or 8.", "Room 212 it is."]
    assert [part.tolist() for part in fact_scores.right(answers, EXPECTED)] == [[1, 0, 0, 0], [1, 0, 1, 0]]


def test_the_metrics_are_the_sums_of_parts_over_the_sums_of_wholes():
    found = registry.of_answers(ANSWERS, EXPECTED)
    shares = {name: mean.of(mean.totals, mean.weights) for name, mean in found.items() if name.startswith("fact")}
    assert shares == {"facts_right": 1 / 2, "fact_recall": 2 / 3, "fact_precision": 2 / 4}


def test_no_answers_give_empty_shares():
    parts, wholes = fact_scores.recall([], [])
    assert parts.shape == wholes.shape == (0,) and parts.dtype == np.float64
