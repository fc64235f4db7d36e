import math

import pytest

from stages.metrics import registry
from stages.metrics.registry import REGISTRY, Measure

LOWER = ("loss", "perturbed_loss", "perplexity", "retention")
HIGHER = (
    *("facts_right", "fact_recall", "fact_precision", "fact_choice"),
    *("token_accuracy", "chrf", "rouge_l", "similarity", "exact_match"),
)


@pytest.mark.parametrize("name", LOWER)
def test_less_of_a_loss_is_better(name):
    assert (REGISTRY[name].sign, REGISTRY[name].arrow) == (-1, "lower is better")
    assert REGISTRY[name].word(-0.2, -0.1) == "better" and REGISTRY[name].word(0.1, 0.2) == "worse"


@pytest.mark.parametrize("name", HIGHER)
def test_more_of_a_score_is_better(name):
    assert (REGISTRY[name].sign, REGISTRY[name].arrow) == (1, "higher is better")
    assert REGISTRY[name].word(-0.2, -0.1) == "worse" and REGISTRY[name].word(0.1, 0.2) == "better"


def test_every_measure_has_a_direction():
    assert set(REGISTRY) == {*LOWER, *HIGHER}


@pytest.mark.parametrize("low, high", [(-0.1, 0.1), (0.0, 0.1), (-0.1, 0.0), (0.0, 0.0)])
def test_an_interval_that_reaches_zero_is_within_noise(low, high):
    assert REGISTRY["loss"].word(low, high) == "within noise" == REGISTRY["chrf"].word(low, high)


@pytest.mark.parametrize("low, high", [(None, 1.0), (1.0, None), (None, None)])
def test_without_an_interval_there_are_too_few(low, high):
    assert REGISTRY["chrf"].word(low, high) == "too few"
    assert registry.measure({"value": 2.0, "low": low, "high": high}, 1) == Measure("2.0", "")


def test_a_measure_is_shown_with_its_interval():
    assert registry.measure({"value": 2.0, "low": 0.125, "high": 3.0}, 2) == Measure("2.00", "0.12 to 3.00")
    assert registry.measure({"value": None}, 2) == Measure("none", "")


@pytest.mark.parametrize(
    "number, decimals, text",
    [(1234.5, 1, "1,234.5"), (-0.04, 1, "0.0"), (-0.06, 1, "-0.1"), (0.0, 0, "0"), (None, 3, "none")],
)
def test_numbers_are_shown_with_so_many_decimals(number, decimals, text):
    assert registry.fixed(number, decimals) == text


def gain(value=None, low=None, high=None):
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    "base, found, decimals",
    [
        # Three digits of the base value: 2.72, 0.272, 27.2, 272.
        (2.72, gain(), 2),
        (0.272, gain(), 3),
        (27.2, gain(), 1),
        (272.0, gain(), 0),
        (-2.72, gain(), 2),
        # No number has fewer than none, or more than four.
        (27_200.0, gain(), 0),
        (0.00272, gain(), 4),
        # Two digits of the gain: 0.031, -3.1.
        (272.0, gain(0.031), 3),
        (272.0, gain(-3.1), 1),
        # One digit of either end: 0.004, 0.02.
        (272.0, gain(31.0, low=0.004), 3),
        (272.0, gain(31.0, high=-0.02), 2),
        # The one that needs most decides.
        (2.72, gain(0.031, 0.4, 0.02), 3),
        # A zero, and what is not a number, have no first digit.
        (0.0, gain(0.0, 0.0, 0.0), 2),
        (None, gain(), 2),
        (None, gain(0.31), 2),
        (math.inf, gain(31.0), 0),
        (math.inf, gain(), 2),
    ],
)
def test_as_many_decimals_are_shown_as_have_a_meaning(base, found, decimals):
    assert registry.places(base, found) == decimals
