"""Means over conversations, with bootstrap confidence intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Fewer conversations get a value and no interval: resampling a handful says little about others.
FEWEST = 10
# Resamples that are held in memory at once.
_AT_ONCE = 100

Interval = dict[str, float | None]


@dataclass(frozen=True)
class Mean:
    """A weighted mean over conversations, transformed: `finish(sum(totals) / sum(weights))`.

    `totals` and `weights` have the shape (conversations,); the weights are numbers of tokens or of facts, or ones. A
    conversation of weight 0 does not count, and where all have it there is no mean.
    """

    totals: np.ndarray
    weights: np.ndarray
    finish: Callable[[Any], Any] = lambda mean: mean

    @property
    def count(self) -> int:
        """How many conversations count."""
        return int(np.count_nonzero(self.weights))

    def of(self, totals: Any, weights: Any, axis: int = -1) -> Any:
        """The same mean of other conversations; NaN where none of them counts."""
        with np.errstate(invalid="ignore"):
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

    def interval(self, mean: Mean, digits: int, spread: float = 0.0) -> Interval:
        """The mean and its confidence interval, wider on both sides by what a repetition may change."""
        return self._interval(mean.of, (mean.totals, mean.weights), mean.count, digits, spread)

    def gain(self, old: Mean, new: Mean, digits: int, spread: float = 0.0) -> Interval:
        """New minus old over the same conversations: each resample takes both scores of a conversation."""

        def difference(before: Any, of_before: Any, after: Any, of_after: Any, axis: int = -1) -> Any:
            return new.of(after, of_after, axis) - old.of(before, of_before, axis)

        data = (old.totals, old.weights, new.totals, new.weights)
        return self._interval(difference, data, min(old.count, new.count), digits, spread)

    def _interval(
        self, statistic: Callable[..., Any], data: tuple[np.ndarray, ...], count: int, digits: int, spread: float
    ) -> Interval:
        """Value, low and high, rounded; `count` is how many conversations count, and too few get no interval."""
        from scipy.stats import bootstrap

        value = _rounded(float(statistic(*data)), digits) if count else None
        if count < FEWEST:
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
        # A resample in which no conversation counts has no mean; then there is no interval either.
        if not np.isfinite([ends.low, ends.high]).all():
            return {"value": value, "low": None, "high": None}
        low, high = float(ends.low) - spread, float(ends.high) + spread
        return {"value": value, "low": _rounded(low, digits), "high": _rounded(high, digits)}


def _rounded(number: float, digits: int) -> float:
    # Adding zero turns -0.0 into 0.0.
    return round(number, digits) + 0.0
