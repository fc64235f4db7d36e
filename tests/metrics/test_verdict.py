"""The table of verdicts, each rule at its boundary."""

from dataclasses import replace

import pytest

from stages.metrics.verdict import RULES, Evidence, judge

BETTER, WORSE, NOISE = (
    {"value": 0.2, "low": 0.1, "high": 0.3},
    {"value": -0.2, "low": -0.3, "high": -0.1},
    {"value": 0.1, "low": -0.1, "high": 0.3},
)
# Less of a loss is better.
FORGOT = {"value": 1.5, "low": 1.2, "high": 1.8}
VALUES = {"facts_right": 20 / 26, "fact_recall": 0.8, "chrf": 66.6}
GOOD = Evidence(
    against="the base",
    conversations=31,
    with_facts=26,
    gain={"facts_right": BETTER, "fact_recall": BETTER, "chrf": BETTER, "loss": WORSE, "retention": NOISE},
    tuned=VALUES,
    allowed=1.0,
    over={"nearest": {"facts_right": BETTER, "fact_recall": NOISE, "chrf": BETTER}, "constant": {"chrf": BETTER}},
    baselines={"nearest": {"facts_right": 11 / 26, "chrf": 59.4}, "constant": {"facts_right": 0.0, "chrf": 31.4}},
)


def gains(**changed):
    return replace(GOOD, gain={**GOOD.gain, **changed})


@pytest.mark.parametrize(
    "evidence, word",
    [
        (GOOD, "better"),
        (replace(GOOD, conversations=9), "too few"),
        (replace(GOOD, conversations=10), "better"),
        # A better loss saves nothing: 58 rows, one epoch, chrF worse and no facts.
        (gains(facts_right=NOISE, fact_recall=NOISE, chrf=WORSE, loss=WORSE), "worse"),
        (gains(facts_right=NOISE, fact_recall=NOISE, chrf=NOISE, loss=WORSE), "no change"),
        (gains(fact_precision=WORSE), "mixed"),
        (gains(chrf=WORSE), "mixed"),
        # That facts are not learned, or a look-up does as well, is said before what was lost.
        (gains(retention=FORGOT, facts_right=NOISE), "style only"),
        (replace(gains(retention=FORGOT), over={"nearest": {"facts_right": NOISE, "chrf": NOISE}}), "look-up"),
        (gains(retention=FORGOT), "mixed"),
        (replace(gains(retention=FORGOT), allowed=1.5), "better"),
        (gains(retention={"value": 1.5, "low": -0.2, "high": 3.0}), "better"),
        (gains(facts_right=NOISE), "style only"),
        # With fewer than ten references that have facts there is nothing to judge them by.
        (replace(gains(facts_right=NOISE), with_facts=9), "better"),
        (replace(GOOD, over={**GOOD.over, "nearest": {"facts_right": NOISE, "chrf": NOISE}}), "look-up"),
        (replace(GOOD, over={**GOOD.over, "nearest": {"facts_right": WORSE, "chrf": BETTER}}), "look-up"),
        (replace(GOOD, over={**GOOD.over, "nearest": {"facts_right": BETTER, "chrf": WORSE}}), "look-up"),
        (replace(GOOD, with_facts=3, over={"nearest": {"facts_right": WORSE, "chrf": BETTER}}), "better"),
        (replace(GOOD, over={}, baselines={}), "unproven"),
        (replace(GOOD, over=None, baselines=None), "better"),
    ],
)
def test_the_first_rule_that_applies_decides(evidence, word):
    assert judge(evidence).word == word


def test_the_sentence_gives_the_figures():
    assert judge(GOOD).sentence == (
        "Better than the base and than every baseline: facts right in 20 of 26, chrF 66.6; the best baseline, nearest,"
        " has 11 of 26."
    )
    style = replace(gains(facts_right=NOISE), tuned={**VALUES, "facts_right": 1 / 26})
    assert judge(style).sentence.startswith("Style only: facts right in 1 of 26, no more than the base beyond noise;")
    unbeaten = replace(GOOD, over={**GOOD.over, "nearest": {"facts_right": NOISE, "chrf": NOISE}})
    assert judge(unbeaten).sentence == (
        "A look-up does as well: the baseline nearest (facts right in 11 of 26) is not beaten; fine-tuning has facts"
        " right in 20 of 26, chrF 66.6."
    )
    assert judge(gains(retention=FORGOT)).sentence.endswith("rose by 1.50, and verdict.retention allows 1.")


def test_a_verdict_without_retention_says_so():
    hosted = replace(GOOD, gain={name: gain for name, gain in GOOD.gain.items() if name != "retention"})
    assert judge(hosted).word == "better" and "What it lost was not measured" in judge(hosted).sentence


def test_of_baselines_that_are_not_beaten_the_best_is_named():
    worst = {"facts_right": WORSE, "chrf": WORSE}
    assert replace(GOOD, over={"constant": worst, "nearest": worst}).unbeaten == ["nearest", "constant"]


def test_an_interval_that_is_missing_makes_nothing_better():
    few = {"value": 0.2, "low": None, "high": None}
    assert judge(gains(facts_right=few, fact_recall=few, chrf=few)).word == "no change"


def test_the_last_rule_always_applies_and_each_is_described():
    assert RULES[-1].applies(replace(GOOD, conversations=0)) and all(rule.when.endswith(".") for rule in RULES)


@pytest.mark.parametrize(
    "baselines, best",
    [
        ({"nearest": {"facts_right": 0.3, "chrf": 70.0}, "few_shot": {"facts_right": 0.5, "chrf": 40.0}}, "few_shot"),
        ({"nearest": {"facts_right": 0.3, "chrf": 40.0}, "few_shot": {"facts_right": 0.3, "chrf": 70.0}}, "few_shot"),
        ({"nearest": {"facts_right": None, "chrf": 0.5}, "few_shot": {"chrf": 0.6}}, "few_shot"),
        ({"nearest": {"chrf": 0.1}, "few_shot": {"facts_right": 0.0, "chrf": None}}, "nearest"),
        ({}, None),
    ],
)
def test_the_best_baseline_has_most_facts_right_and_then_the_best_chrf(baselines, best):
    assert replace(GOOD, baselines=baselines).best_baseline == best


def test_a_look_up_that_does_as_well_is_the_best_of_them():
    equal = {"facts_right": NOISE, "chrf": NOISE}
    found = judge(replace(GOOD, over={"constant": equal, "nearest": equal})).sentence
    assert found.startswith("A look-up does as well: the baseline nearest (facts right in 11 of 26) is not beaten")


def test_no_right_answer_is_none():
    assert GOOD.facts({"facts_right": 0.0}) == GOOD.facts({}) == "0 of 26"


def test_without_a_measured_base_nothing_is_proven():
    nothing = {"value": None, "low": None, "high": None}
    alone = replace(GOOD, gain=dict.fromkeys(GOOD.gain, nothing))
    assert judge(alone).word == "unproven" and "the base was not measured" in judge(alone).sentence
    assert judge(replace(alone, conversations=9)).word == "too few"
    # Where no reference has facts, their measures have no value, and the others decide.
    assert judge(replace(GOOD, gain={**GOOD.gain, "facts_right": nothing})).word != "unproven"
