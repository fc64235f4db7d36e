"""What the data gate found, in words: the rule, the rows, the place in each, and what to do."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from stages.paths import SIGNALS
from stages.suite import CRITICAL, Finding, Rule

_ROWS_NAMED = 5
_WORDS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
_ROLE = re.compile(r"message \d+ \((\w+)\)")


def findings(result: Any, rules: dict[str, Rule]) -> list[Finding]:
    """What failed, in the suite's order: rule, severity, `rows` (numbers, empty for rules about the whole table)."""
    failed = {one.expectation_config.meta["rule"]: one for one in result.results if not one.success}
    return [_finding(name, rule, failed[name]) for name, rule in rules.items() if name in failed]


def _finding(name: str, rule: Rule, result: Any) -> Finding:
    raised = _raised(result.exception_info)
    return {
        "rule": name,
        "severity": CRITICAL if raised else rule["severity"],
        "column": rule["kwargs"].get("column"),
        "rows": sorted(row for entry in result.result.get("unexpected_index_list") or [] for row in entry["row"]),
        "regex": rule["kwargs"].get("regex"),
        "reason": raised or f"{rule['type']} {rule['kwargs']}",
        "advice": rule["advice"],
    }


def _raised(info: dict[str, Any]) -> str | None:
    """The first exception's message: Great Expectations reports one for the rule, or one for each metric."""
    parts = [info, *(part for part in info.values() if isinstance(part, dict))]
    return next((str(part.get("exception_message")) for part in parts if part.get("raised_exception")), None)


def describe(found: list[Finding], signals: pd.DataFrame, columns: dict[str, str]) -> list[list[str]]:
    """Lines for a person on each finding: what, how many rows, what to do, and what was seen in the first rows.

    `columns` names the source's column of each role, or that of all roles under "".
    """
    examples = [_examples(finding, signals) for finding in found]
    snippets = _read_snippets({row for rows in examples for row in rows})
    return [
        [_headline(finding, len(signals)), *_seen(finding, rows, signals, snippets, columns)]
        for finding, rows in zip(found, examples, strict=True)
    ]


def _headline(finding: Finding, total: int) -> str:
    if not finding["rows"]:
        return f"{finding['severity']}: {finding['rule']}; {finding['advice']}"
    return f"{finding['severity']}: {finding['rule']}, {len(finding['rows'])} of {total} rows; {finding['advice']}"


def _examples(finding: Finding, signals: pd.DataFrame) -> dict[int, int]:
    """The rows that are shown, each with the number of others that have the very same error."""
    if finding["column"] != "error":
        return dict.fromkeys(finding["rows"][:_ROWS_NAMED], 0)
    # Equal faults are told once, as a pattern: a broken export breaks every row in the same way.
    groups = signals.loc[finding["rows"]].groupby("error", sort=False).groups
    return {int(rows[0]): len(rows) - 1 for rows in list(groups.values())[:_ROWS_NAMED]}


def _read_snippets(rows: set[int]) -> dict[int, dict[str, str]]:
    """The masked snippets of a few rows, by the signal that they explain."""
    table = pq.read_table(SIGNALS, columns=["row", "faults"], filters=[("row", "in", rows)]) if rows else None
    return {one["row"]: dict(one["faults"] or ()) for one in table.to_pylist()} if table else {}


def _seen(
    finding: Finding,
    rows: dict[int, int],
    signals: pd.DataFrame,
    snippets: dict[int, dict[str, str]],
    columns: dict[str, str],
) -> Iterator[str]:
    if not rows:
        yield f"  {finding['reason']}"
    column = finding["column"]
    for row, others in rows.items():
        snippet = snippets[row].get(column)
        if column == "error":
            more = f" (and {others} more rows with this fault)" if others else ""
            what = f"{signals[column][row]}; saw {snippet}{more}"
        else:
            what = snippet or _compared_with(column, row, signals) or _marked(finding, signals[column][row])
        yield f"  row {row}{_cell(what, columns)}: {what}"


def _cell(what: str, columns: dict[str, str]) -> str:
    """The source's column where the finding is, as far as it is one."""
    role = _ROLE.match(what)
    name = columns.get(role[1] if role else "", columns.get(""))
    return f", column {name}" if name else ""


def _compared_with(column: str, row: int, signals: pd.DataFrame) -> str | None:
    """The other row that makes this one a finding."""
    same = {"conversation_hash": "conversation_hash", "n_responses": "prompt_hash"}.get(column)
    others = (
        signals.index[(signals[same] == signals[same][row]) & (signals.index != row)] if same else signals.index[:0]
    )
    if len(others):
        return f"{'the same' if same == column else 'another response to the same prompt'} as in row {others[0]}"
    if column == "other_language":
        return f"language {signals['language'][row]}, where most rows have {signals['language'].mode().iloc[0]}"
    return None


def _marked(finding: Finding, value: Any) -> str:
    """The signal's value; of roles the turns in words, with ‹ › around those that the rule is about."""
    column = finding["column"]
    if column != "roles":
        return f"{column}: ‹{value}›"
    match = re.search(finding["regex"], value) if finding["regex"] else None
    start, end = match.span() if match else (len(value), len(value))
    parts = value[:start], value[start:end], value[end:]
    before, middle, after = (" ".join(_WORDS[letter] for letter in part) for part in parts)
    return f"roles: {' '.join(filter(None, [before, f'‹{middle}›', after]))}"
