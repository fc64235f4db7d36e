"""What is measured of answers, for people: names, which way is better, numbers as text, and the word for a change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LABELS = {
    "loss": "loss",
    "perturbed_loss": "perturbed loss",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "similarity": "similarity",
    "exact_match": "exact match",
}
_LOWER_IS_BETTER = {"loss", "perturbed_loss", "perplexity"}


def sign(name: str) -> int:
    """1 where more of the measure is better, -1 where less is."""
    return -1 if name in _LOWER_IS_BETTER else 1


def arrow(name: str) -> str:
    """Which way is better, in words."""
    return "lower is better" if sign(name) < 0 else "higher is better"


def word(name: str, low: float | None, high: float | None) -> str:
    """The word for a change whose interval goes from `low` to `high`; it counts when the interval clears zero."""
    if low is None or high is None:
        return "no interval"
    if low <= 0 <= high:
        return "within noise"
    return "better" if low * sign(name) > 0 else "worse"


@dataclass(frozen=True)
class Measure:
    """A number and its interval, as text; the interval is empty where there is none."""

    value: str
    interval: str


def measure(found: Mapping[str, float | None], places: int) -> Measure:
    """A measure's `value`, `low` and `high` as text with so many decimals."""
    low, high = found.get("low"), found.get("high")
    interval = "" if low is None or high is None else f"{fixed(low, places)} to {fixed(high, places)}"
    return Measure(fixed(found["value"], places), interval)


def fixed(number: float | None, places: int) -> str:
    """A number with so many decimals, and none as a word."""
    return "none" if number is None else f"{number:z,.{places}f}"


def places(base: float | None, gain: Mapping[str, float | None]) -> int:
    """Decimals for a metric's row: three digits of the base value, two of the gain, one of the interval's ends."""
    wanted = [(base, 2), (gain["value"], 1), (gain["low"], 0), (gain["high"], 0)]
    needed = [
        digits - math.floor(math.log10(abs(number))) for number, digits in wanted if number and math.isfinite(number)
    ]
    return min(4, max([0, *needed])) if needed else 2
