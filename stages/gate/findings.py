"""What the data gate found, in words: the rule, the rows, the place in each, and what to do."""

import collections
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.core.paths import SIGNALS
from stages.dataset.inspector import PLACEHOLDERS
from stages.dataset.masking import one_line
from stages.gate.suite import CRITICAL, Finding, Rule, asked

_ROWS_NAMED = 5
_PLACEHOLDERS_NAMED = 20
# Rows read at once, and different placeholders that are counted: a hostile source has as many as it likes.
_AT_ONCE, _DIFFERENT = 10_000, 10_000
_WORDS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
_ROLE = re.compile(r"message \d+ \((\w+)\)")
# Errors that name the column, and those that are about the whole row.
_FIELD = re.compile(r"Expected text .*?in field `([^`]+)`")
_WHOLE_ROW = re.compile(r"\d+ columns where")


class Seen(NamedTuple):
    """What was seen in a row; a finding about the whole table has no row, and says what was asked."""

    row: int | None
    column: str | None
    what: str

    @property
    def line(self) -> str:
        """As the terminal shows it."""
        if self.row is None:
            return f"  {self.what}"
        return f"  row {self.row}{f', column {self.column}' if self.column else ''}: {self.what}"


class Description(NamedTuple):
    """A finding for a person: what was seen in its first rows, and in how many more rows something else was."""

    headline: str
    seen: list[Seen]
    left: int

    @property
    def lines(self) -> list[str]:
        """As the terminal shows it."""
        return [self.headline, *(one.line for one in self.seen)]


def findings(result: Any, rules: dict[str, Rule]) -> list[Finding]:
    """What failed, in the suite's order: rule, severity, `rows` (numbers, empty for rules about the whole table)."""
    failed = {one.expectation_config.meta["rule"]: one for one in result.results if not one.success}
    return [_finding(name, rule, failed[name]) for name, rule in rules.items() if name in failed]


def _finding(name: str, rule: Rule, result: Any) -> Finding:
    raised = _raised(result.exception_info)
    return {
        "rule": name,
        "severity": CRITICAL if raised else rule["severity"],
        "columns": asked(rule),
        "rows": sorted(row for entry in result.result.get("unexpected_index_list") or [] for row in entry["row"]),
        "regex": rule["kwargs"].get("regex"),
        "reason": raised or f"{rule['type']} {rule['kwargs']}",
        "advice": rule["advice"],
    }


def _raised(info: dict[str, Any]) -> str | None:
    """The first exception's message: Great Expectations reports one for the rule, or one for each metric."""
    parts = [info, *(part for part in info.values() if isinstance(part, dict))]
    return next((str(part.get("exception_message")) for part in parts if part.get("raised_exception")), None)


def describe(found: list[Finding], signals: pd.DataFrame, columns: dict[str, str]) -> list[Description]:
    """Each finding for a person: what, how many rows, what to do, and what was seen in the first rows.

    `columns` names the source's column of each role and of some signals, or that of all else under "".
    """
    examples = [_examples(finding, signals) for finding in found]
    snippets = _read_snippets({row for rows in examples for row in rows})
    return [
        Description(
            _headline(finding, len(signals)),
            [*_listed(finding), *_seen(finding, rows, signals, snippets, columns)],
            len(finding["rows"]) - sum(1 + others for others in rows.values()),
        )
        for finding, rows in zip(found, examples, strict=True)
    ]


def _headline(finding: Finding, total: int) -> str:
    if not finding["rows"]:
        return f"{finding['severity']}: {finding['rule']}; {finding['advice']}"
    return f"{finding['severity']}: {finding['rule']}, {len(finding['rows'])} of {total} rows; {finding['advice']}"


def _examples(finding: Finding, signals: pd.DataFrame) -> dict[int, int]:
    """The rows that are shown, each with the number of others that have the very same error."""
    if finding["columns"] != ["error"]:
        return dict.fromkeys(finding["rows"][:_ROWS_NAMED], 0)
    # Equal errors are shown once: a broken export breaks every row in the same way.
    groups = signals.loc[finding["rows"]].groupby("error", sort=False).groups
    return {int(rows[0]): len(rows) - 1 for rows in list(groups.values())[:_ROWS_NAMED]}


def _read_snippets(rows: set[int]) -> dict[int, dict[str, str]]:
    """The masked snippets of a few rows, by the signal that they explain."""
    table = pq.read_table(SIGNALS, columns=["row", "faults"], filters=[("row", "in", rows)]) if rows else None
    return {one["row"]: dict(one["faults"] or ()) for one in table.to_pylist()} if table else {}


def _listed(finding: Finding) -> Iterator[Seen]:
    """Which placeholders are in how many rows, the most frequent first."""
    if finding["columns"] != ["placeholder"] or not finding["rows"]:
        return
    counts: collections.Counter[str] = collections.Counter()
    for batch in pq.ParquetFile(SIGNALS).iter_batches(_AT_ONCE, columns=["placeholder", "faults"]):
        for faults in batch.filter(pc.equal(batch["placeholder"], 1))["faults"].to_pylist():
            found = set(dict(faults or ()).get(PLACEHOLDERS, "").split("\n"))
            counts.update(one for one in found if one in counts or len(counts) < _DIFFERENT)
    # The most frequent first, and equally frequent ones by name, whatever the order of the rows.
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [
        f"{one_line(name)} in {count} row{'' if count == 1 else 's'}" for name, count in most[:_PLACEHOLDERS_NAMED]
    ]
    more = [f"{len(most) - len(shown)} more"] if len(most) > len(shown) else []
    yield Seen(None, None, ", ".join([*shown, *more]))


def _seen(
    finding: Finding,
    rows: dict[int, int],
    signals: pd.DataFrame,
    snippets: dict[int, dict[str, str]],
    columns: dict[str, str],
) -> Iterator[Seen]:
    if not rows:
        yield Seen(None, None, finding["reason"])
    for row, others in rows.items():
        what = _what(finding, row, others, signals, snippets[row])
        yield Seen(row, _cell(finding, what, columns), what)


def _what(finding: Finding, row: int, others: int, signals: pd.DataFrame, faults: dict[str, str]) -> str:
    """What was seen in a row; `others` is the number of rows with the very same error."""
    asked_about = finding["columns"]
    if asked_about == ["error"]:
        more = f" (and {others} more rows with this fault)" if others else ""
        return f"{signals['error'][row]}; saw {faults.get('error')}{more}"
    if len(asked_about) == 1:
        column = asked_about[0]
        return faults.get(column) or _compared_with(column, row, signals) or _marked(finding, signals[column][row])
    return ", ".join(f"{name}: ‹{_value(signals[name][row])}›" for name in asked_about) or finding["reason"]


def _value(value: Any) -> str:
    """A signal's value; a label is text from the source, which a terminal would obey, and can be a secret."""
    return one_line(str(value))


def _cell(finding: Finding, what: str, columns: dict[str, str]) -> str | None:
    """The source's column where the finding is, as far as it is one."""
    if finding["columns"] == ["error"] and (found := _FIELD.match(what)):
        name = found[1] if columns else None
    elif len(finding["columns"]) != 1 or _WHOLE_ROW.match(what):
        name = None
    else:
        role = _ROLE.match(what)
        name = columns.get(role[1] if role else finding["columns"][0], columns.get(""))
    return one_line(name) if name else None


def _compared_with(column: str, row: int, signals: pd.DataFrame) -> str | None:
    """The other row, or the limit, because of which this one is a finding."""
    same = {"conversation_hash": "conversation_hash", "n_responses": "prompt_hash"}.get(column)
    others = (
        signals.index[(signals[same] == signals[same][row]) & (signals.index != row)] if same else signals.index[:0]
    )
    if len(others):
        return f"{'the same' if same == column else 'another response to the same prompt'} as in row {others[0]}"
    if column == "n_too_long":
        return f"{signals['n_tokens'][row]:,.0f} tokens, ‹{signals[column][row]:,.0f}› too many"
    if column == "other_language":
        return f"language {signals['language'][row]}, where most rows have {signals['language'].mode().iloc[0]}"
    return None


def _marked(finding: Finding, value: Any) -> str:
    """The signal's value; of roles the turns in words, with ‹ › around those that the rule is about."""
    if finding["columns"] != ["roles"]:
        return f"{finding['columns'][0]}: ‹{_value(value)}›"
    match = re.search(finding["regex"], value) if finding["regex"] else None
    start, end = match.span() if match else (len(value), len(value))
    parts = value[:start], value[start:end], value[end:]
    before, middle, after = (" ".join(_WORDS[letter] for letter in part) for part in parts)
    return f"roles: {' '.join(filter(None, [before, f'‹{middle}›', after]))}"
