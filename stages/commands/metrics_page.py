"""docs/metrics.md, from the registry of metrics."""

from stages.metrics.registry import REGISTRY, Metric

PAGE = "docs/metrics.md"
_TOP = """<!-- Written by `make docs` from stages/metrics/registry.py; edit there. -->
# Metrics

What the stage `evaluate` measures of the base and the tuned model on the test split, and writes to
`reports/metrics.json`, each with a bootstrap confidence interval (`evaluate.resamples`, `evaluate.confidence`). A gain
is tuned minus base over the same conversations. `review.regressions` takes any of these names. A hosted model gives no
likelihoods, so its metrics are those of answers.

| name | shown as | better | from | a mean over | meaning |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The page of all metrics in Markdown."""
    return _TOP + "".join(map(_row, REGISTRY.values()))


def _row(metric: Metric) -> str:
    better = metric.arrow.partition(" ")[0]
    origin = "perturbed likelihoods" if metric.perturbed else "likelihoods" if metric.total else "answers"
    over = "tokens of the responses" if metric.per_token else "conversations"
    return f"| `{metric.name}` | {metric.label} | {better} | {origin} | {over} | {metric.meaning} |\n"
