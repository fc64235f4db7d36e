"""Every metric in one entry: its name for people, which way is better, its decimals, its weights, how it is scored.

metrics.json, the report, the review, sweeps and the documentation follow from `REGISTRY`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stages.metrics import scoring
from stages.metrics.intervals import Mean

# One number for each answer, of shape (answers,), from the answers and the references.
Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]


class Likelihoods(Protocol):
    """What a model gives the references, each of shape (conversations,): see `backends.protocol.Likelihoods`."""

    @property
    def nll(self) -> np.ndarray: ...
    @property
    def correct(self) -> np.ndarray: ...
    @property
    def tokens(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Metric:
    """One metric. It has one of three sources: `score` of answers, or `total` of (`perturbed`) likelihoods.

    A metric of answers is their mean; one of likelihoods is the sum of `total` over that of the tokens. `finish` is
    applied to the mean; as a mean of finished numbers is another number, `mean_of` names the metric that is averaged.
    Values are rounded to `digits`, as more would show the rounding of bf16 and not the model; a conversation's own
    score is shown with `places`. `chip` shows it beside each answer of the report, `sliced` in its table of labels.
    """

    name: str
    label: str
    meaning: str
    lower_is_better: bool = False
    digits: int = 4
    places: int = 2
    score: Score | None = None
    total: Callable[[Likelihoods], np.ndarray] | None = None
    perturbed: bool = False
    finish: Callable[[Any], Any] = lambda mean: mean
    mean_of: str = ""
    chip: bool = True
    sliced: bool = False

    @property
    def per_token(self) -> bool:
        """Whether each conversation counts as much as its response has tokens; else all count the same."""
        return self.total is not None

    @property
    def sign(self) -> int:
        """1 where more of it is better, -1 where less is."""
        return -1 if self.lower_is_better else 1

    @property
    def arrow(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.lower_is_better else "higher is better"

    def word(self, low: float | None, high: float | None) -> str:
        """The word for a change whose interval is from `low` to `high`; it counts when the interval clears zero."""
        if low is None or high is None:
            return "no interval"
        if low <= 0 <= high:
            return "within noise"
        return "better" if low * self.sign > 0 else "worse"


# In the order in which people read them.
_ALL = (
    Metric(
        "loss",
        "loss",
        "Negative log-likelihood of the reference response, in nats per token, end token included.",
        lower_is_better=True,
        total=lambda found: found.nll,
        sliced=True,
    ),
    Metric(
        "perturbed_loss",
        "perturbed loss",
        "The loss on embeddings moved by `evaluate.epsilon` in the worst direction: how robust the model is.",
        lower_is_better=True,
        total=lambda found: found.nll,
        perturbed=True,
        chip=False,
    ),
    Metric(
        "perplexity",
        "perplexity",
        "The exponential of the loss.",
        lower_is_better=True,
        total=lambda found: found.nll,
        finish=np.exp,
        mean_of="loss",
        chip=False,
    ),
    Metric(
        "token_accuracy",
        "token accuracy",
        "Share of the reference's tokens that the model ranks first.",
        total=lambda found: found.correct,
        chip=False,
    ),
    Metric(
        "chrf",
        "chrF",
        "Character n-gram F-score of the answer against the reference, 0 to 100 (Popović 2015).",
        digits=2,
        places=1,
        score=scoring.chrf,
        sliced=True,
    ),
    Metric(
        "rouge_l",
        "ROUGE-L",
        "F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004).",
        score=scoring.rouge_l,
    ),
    Metric(
        "similarity",
        "similarity",
        "Cosine of sentence embeddings, -1 to 1 (all-MiniLM-L6-v2).",
        score=scoring.similarity,
        sliced=True,
    ),
    Metric(
        "exact_match",
        "exact match",
        "1 if answer and reference are equal except for white space at their ends, else 0.",
        score=scoring.exact_match,
        chip=False,
    ),
)
REGISTRY = {metric.name: metric for metric in _ALL}


def of_answers(answers: Sequence[str], references: Sequence[str]) -> dict[str, Mean]:
    """The metrics of answers, by name."""
    ones = np.ones(len(answers))
    return {one.name: Mean(one.score(answers, references), ones) for one in _ALL if one.score}


def of_likelihoods(found: Likelihoods, perturbed: bool = False) -> dict[str, Mean]:
    """The metrics of likelihoods, by name; `perturbed` says that these are under perturbed embeddings."""
    return {
        one.name: Mean(one.total(found), found.tokens, one.finish)
        for one in _ALL
        if one.total and one.perturbed == perturbed
    }


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
