"""The gate's page, `reports/validation/index.html`: the verdict, the findings as the terminal shows them, every rule.

It needs no network and runs no script. Nothing on it changes between equal runs.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.core import templates
from stages.core.paths import DATA_DOCS, QUARANTINE, VALIDATION_PAGE
from stages.core.text import printable
from stages.gate.findings import Description
from stages.gate.suite import Finding, Rule

# Longest text that is shown: a snippet is shorter, an exception's message or a rule's arguments need not be.
_LONGEST = 600
# What is shown of a suite that someone generated.
_RULES = 500


class Outcome(NamedTuple):
    """What the gate found and decided.

    `described` holds a description for each of the findings, `quarantined` counts the rows in data/quarantine.csv, and
    `stopped` is why the run stops, None where it does not.
    """

    rules: Mapping[str, Rule]
    found: Sequence[Finding]
    described: Sequence[Description]
    rows: int
    quarantined: int
    stopped: str | None


def render(outcome: Outcome, source: Mapping[str, str]) -> str:
    """The page as HTML; `source` says by name what was checked."""
    pairs = list(zip(outcome.found, outcome.described, strict=True))
    rules = _listed(outcome.rules, outcome.found)
    facts = {
        "verdict": verdict(outcome),
        "source": {**{name: _shown(value) for name, value in source.items()}, "Rows": templates.number(outcome.rows)},
        "findings": [_finding(*pair) for pair in pairs[:_RULES]],
        "findings_left": len(pairs[_RULES:]),
        "rules": rules[:_RULES],
        "rules_left": len(rules[_RULES:]),
        "quarantined": outcome.quarantined,
        "links": {path.name: (path.as_posix(), _link(path)) for path in (QUARANTINE, DATA_DOCS)},
    }
    return templates.environment(Path(__file__).parent).get_template("page.html.jinja").render(facts)


def verdict(outcome: Outcome) -> str:
    """One sentence on what the gate decided."""
    if outcome.stopped:
        return f"Stopped: {outcome.stopped}."
    count = len(outcome.found)
    findings = f"{count or 'no'} finding{'' if count == 1 else 's'}"
    aside = f", {outcome.quarantined:,} of them quarantined" if outcome.quarantined else ""
    return f"Passed: {outcome.rows:,} rows{aside}, {findings}."


def _finding(finding: Finding, described: Description) -> dict[str, Any]:
    return {
        "rule": _shown(finding["rule"]),
        "severity": finding["severity"],
        "rows": len(finding["rows"]),
        "advice": _shown(finding["advice"]),
        "seen": [
            {"row": one.row, "column": _shown(one.column or ""), "what": _shown(one.what)} for one in described.seen
        ],
        "left": described.left,
    }


def _listed(rules: Mapping[str, Rule], found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Every rule of the suite with what came of it; those that are invalid come last."""
    failed = {finding["rule"]: finding for finding in found}
    valid = [
        {
            "rule": _shown(name),
            "severity": rule["severity"],
            "asks": _shown(f"{rule['type']}: {_arguments(rule['kwargs'])}"),
            "advice": _shown(rule["advice"]),
            "failed": name in failed,
            "rows": len(failed[name]["rows"]) if name in failed else 0,
        }
        for name, rule in rules.items()
    ]
    invalid = [
        {**_finding(finding, Description("", [], 0)), "asks": _shown(finding["reason"]), "failed": True}
        for finding in found
        if finding["rule"] not in rules
    ]
    return [*valid, *invalid]


def _arguments(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kwargs.items())


def _shown(text: Any) -> str:
    """Any text in one line, without control and direction characters, and of limited length."""
    return templates.clip(printable(str(text)[: 2 * _LONGEST]), _LONGEST)


def _link(path: Path) -> str:
    return Path(os.path.relpath(path, VALIDATION_PAGE.parent)).as_posix()
