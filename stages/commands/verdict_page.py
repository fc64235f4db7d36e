"""docs/verdict.md, from the table of verdicts."""

from stages.metrics.verdict import RULES

PAGE = "docs/verdict.md"
_TOP = """<!-- Written by `make docs` from stages/metrics/verdict.py; edit there. -->
# The verdict

`evaluate` gives every run one word, in `reports/metrics.json`, and one sentence, at the top of the report. Answers
weigh more than loss, and facts more than style: a loss says how likely the references are, not what the model says. The
first line that applies decides. Better and worse mean: the difference's interval clears zero; the measures of answers
and of facts are in [metrics.md](metrics.md).

| verdict | when |
| --- | --- |
"""
_END = """
`make review` judges a change by the same table, with the old run in place of the base and without the baselines, which
are no runs to go back to. `verdict.retention` says how much the loss on general prompts may rise, and
`review.regressions` how much worse each metric may get.
"""


def page() -> str:
    """The page of all verdicts in Markdown."""
    return _TOP + "".join(f"| {rule.word} | {rule.when} |\n" for rule in RULES) + _END
