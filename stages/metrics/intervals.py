"""Means over conversations, with bootstrap confidence intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Resamples that are held in memory at once.
_AT_ONCE = 100

Interval = dict[str, float | None]


@dataclass(frozen=True)
class Mean:
    """A weighted mean over conversations, transformed: `finish(sum(totals) / sum(weights))`.

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
