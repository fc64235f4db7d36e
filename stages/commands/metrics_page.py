"""docs/metrics.md, from the registry of metrics."""

from stages.metrics.intervals import FEWEST
from stages.metrics.registry import REGISTRY, Metric

PAGE = "docs/metrics.md"
_ORIGINS = {
    "answers": "answers",
    "references": "likelihoods",
    "perturbed": "perturbed likelihoods",
    "general": "likelihoods of general answers",
    "choices": "likelihoods of altered references",
}
_TOP = """<!-- Written by `make docs` from stages/metrics/registry.py; edit there. -->
# Metrics

What the stage `evaluate` measures of the base, the tuned model and the baselines on the test split, and writes to
`reports/eval/measures.json`, each with a bootstrap confidence interval (`evaluate.resamples`, `evaluate.confidence`); a
few of the tuned model's are in `reports/metrics.json`, for `dvc exp show`. A gain is tuned minus base over the same
conversations. Fewer than {fewest} conversations get a value and no interval. `review.regressions` takes any of these
names. A hosted model gives no likelihoods, so its metrics are those of answers. What a fact is: [facts.md](facts.md);
how the metrics become a verdict: [verdict.md](verdict.md).

| name | shown as | better | from | a mean over | meaning |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The page of all metrics in Markdown."""
    return _TOP.format(fewest=FEWEST) + "".join(map(_row, REGISTRY.values()))


def _row(metric: Metric) -> str:
    better = metric.arrow.partition(" ")[0]
    cells = (f"`{metric.name}`", metric.label, better, _ORIGINS[metric.of], _over(metric), metric.meaning)
    return f"| {' | '.join(cells)} |\n"


def _over(metric: Metric) -> str:
    if metric.per_token:
        return "tokens of the responses"
    if metric.name in ("fact_recall", "fact_precision"):
        return "facts"
    return "conversations" if metric.score else "conversations with facts"
