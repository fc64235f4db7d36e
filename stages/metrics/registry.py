"""Every metric in one entry: its name for people, which way is better, its decimals, its weights, how it is scored.

The measures, the verdict, the report, the review and the documentation follow from `REGISTRY`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from stages.metrics import fact_scores, scoring
from stages.metrics.intervals import Mean
from stages.metrics.scoring import Expected

# What people read together: facts, answers as a whole, the loss of references, and what the model lost.
Group = Literal["facts", "answers", "loss", "kept"]
# One number for each answer, of shape (answers,), from the answers and the references.
Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]
# Parts and wholes, each of shape (answers,), from the answers and what is expected of them.
Share = Callable[[Sequence[str], Sequence[Expected]], tuple[np.ndarray, np.ndarray]]

TOO_FEW = "too few"


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
    """One metric, with what it is computed from.

    Of answers: the mean of `score`, or the sum of a `share`'s parts over that of its wholes. Of likelihoods (`of`): the
    sum of `total` over that of the tokens; those of the references, of the references under perturbed embeddings, or of
    what the base answers to general prompts. Of choices: how often the right one is the likeliest.

    `finish` is applied to the mean; as a mean of finished numbers is another number, `mean_of` names the metric that is
    averaged. Values are rounded to `digits`, as more would show the rounding of bf16 and not the model; a
    conversation's own score is shown with `places`. `chip` shows it beside each answer of the report, `sliced` in its
    table of labels.
    """

    name: str
    label: str
    meaning: str
    group: Group = "answers"
    lower_is_better: bool = False
    digits: int = 4
    places: int = 2
    score: Score | None = None
    share: Share | None = None
    total: Callable[[Likelihoods], np.ndarray] | None = None
    of: Literal["answers", "references", "perturbed", "general", "choices"] = "answers"
    finish: Callable[[Any], Any] = lambda mean: mean
    mean_of: str = ""
    chip: bool = False
    sliced: bool = False

    @property
    def per_token(self) -> bool:
        """Whether each conversation counts as much as its response has tokens."""
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
            return TOO_FEW
        if low <= 0 <= high:
            return "within noise"
        return "better" if low * self.sign > 0 else "worse"


# In the order in which people read them.
_ALL = (
    Metric(
        "facts_right",
        "facts right",
        "Share of the answers that have all facts of their reference and no invented one, among the references that"
        " have facts. Facts of the prompt do not count.",
        group="facts",
        share=fact_scores.right,
        chip=True,
        sliced=True,
    ),
    Metric(
        "fact_recall",
        "fact recall",
        "Share of the references' facts that the answers have.",
        group="facts",
        share=fact_scores.recall,
        sliced=True,
    ),
    Metric(
        "fact_precision",
        "fact precision",
        "Share of the answers' facts that are in the reference; the rest is invented.",
        group="facts",
        share=fact_scores.precision,
    ),
    Metric(
        "fact_choice",
        "fact choice",
        "How often the reference is likelier than three copies with another value of one of its facts: what the model"
        " knows, even where it does not say it. Chance is 0.25.",
        group="facts",
        of="choices",
    ),
    Metric(
        "chrf",
        "chrF",
        "Character n-gram F-score of the answer against the reference, 0 to 100 (Popović 2015).",
        digits=2,
        places=1,
        score=scoring.chrf,
        chip=True,
        sliced=True,
    ),
    Metric(
        "rouge_l",
        "ROUGE-L",
        "F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004).",
        score=scoring.rouge_l,
        chip=True,
    ),
    Metric(
        "similarity",
        "similarity",
        "Cosine of sentence embeddings, -1 to 1 (all-MiniLM-L6-v2).",
        score=scoring.similarity,
        chip=True,
        sliced=True,
    ),
    Metric(
        "exact_match",
        "exact match",
        "1 if answer and reference are equal except for white space at their ends, else 0.",
        score=scoring.exact_match,
    ),
    Metric(
        "retention",
        "loss on general prompts",
        "Loss of the base model's own answers to general prompts, in nats per token: how much of the base is lost.",
        group="kept",
        lower_is_better=True,
        total=lambda found: found.nll,
        of="general",
    ),
    Metric(
        "loss",
        "loss",
        "Negative log-likelihood of the reference response, in nats per token, end token included.",
        group="loss",
        lower_is_better=True,
        total=lambda found: found.nll,
        of="references",
        sliced=True,
    ),
    Metric(
        "perturbed_loss",
        "perturbed loss",
        "The loss on embeddings moved by `evaluate.epsilon` in the worst direction: how robust the model is.",
        group="loss",
        lower_is_better=True,
        total=lambda found: found.nll,
        of="perturbed",
    ),
    Metric(
        "perplexity",
        "perplexity",
        "The exponential of the loss.",
        group="loss",
        lower_is_better=True,
        total=lambda found: found.nll,
        of="references",
        finish=np.exp,
        mean_of="loss",
    ),
    Metric(
        "token_accuracy",
        "token accuracy",
        "Share of the reference's tokens that the model ranks first.",
        group="loss",
        total=lambda found: found.correct,
        of="references",
    ),
)
REGISTRY = {metric.name: metric for metric in _ALL}


def of_answers(answers: Sequence[str], expected: Sequence[Expected]) -> dict[str, Mean]:
    """The metrics of answers, by name."""
    references = [one.reference for one in expected]
    ones = np.ones(len(answers))
    found = {}
    for metric in _ALL:
        if metric.score:
            found[metric.name] = Mean(metric.score(answers, references), ones)
        elif metric.share:
            found[metric.name] = Mean(*metric.share(answers, expected))
    return found


def of_likelihoods(found: Likelihoods, of: Literal["references", "perturbed", "general"]) -> dict[str, Mean]:
    """The metrics of these likelihoods, by name."""
    return {one.name: Mean(one.total(found), found.tokens, one.finish) for one in _ALL if one.total and one.of == of}


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
