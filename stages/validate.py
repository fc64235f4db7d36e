"""validate: the data gate. Great Expectations over the signals; critical findings stop the pipeline or are quarantined.

The suite is data (`data/expectations.yaml`). Great Expectations silently drops a rule that it does not know, so
the suite itself is checked first, and a rule that raises counts as critical. All reports are written before the stage
fails: `reports/validation.json`, the page `reports/validation/index.html` with Great Expectations' own beside it, and
`data/quarantine.csv`.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from stages import params
from stages.core import files
from stages.core.cli import UserError, notice, run
from stages.core.paths import DATA_DOCS, QUARANTINE, RAW, SIGNALS, SUITE, VALIDATION, VALIDATION_PAGE
from stages.dataset import formats, near_duplicates, readers
from stages.dataset.signals import SCHEMA
from stages.gate import data_docs, page, quarantine
from stages.gate.findings import Description, describe, findings
from stages.gate.suite import CRITICAL, Finding, check, read_suite

# In a table, signals that come from one role's column, and those that come from all columns.
_OF_ONE = {
    "n_near": "user",
    "group_share": "user",
    "n_response": "assistant",
    "n_responses": "assistant",
    "other_system": "system",
}
_OF_ALL = ("n_tokens", "n_over", "n_too_long", "conversation_hash")
_COMPARED = {"system": "system_hash", "language": "language"}


def main() -> None:
    knobs = params.load()
    signals = compared(*read_signals(SIGNALS))
    signals["n_too_long"] = _beyond(signals["n_tokens"], knobs.longest)
    rules, faults = read_suite(SUITE, list(signals.columns))
    result = check(signals, rules)
    found = [*faults, *findings(result, rules)]
    critical = [finding for finding in found if finding["severity"] == CRITICAL]
    rows = sorted({row for finding in critical for row in finding["rows"]}) if knobs.gate.quarantines else []
    files.write_json(VALIDATION, report(found, len(signals), len(rules), len(rows)))
    described = describe(found, signals, _columns(knobs.data))
    stopping, too_many = _stopping(critical, knobs.gate), _too_many(len(rows), len(signals), knobs.gate)
    stopped = f"{len(stopping)} critical finding{'' if len(stopping) == 1 else 's'}" if stopping else too_many
    outcome = page.Outcome(rules, found, described, len(signals), len(rows), stopped)
    _write_pages(result, outcome, knobs.data.source, knobs.data.chosen.format)
    quarantine.write(_reasons(rows, critical, signals), knobs.data.chosen, knobs.data.max_bytes)
    _tell(found, described, stopping, too_many)
    if found:
        notice(f"{VALIDATION_PAGE} shows all findings")
    notice(f"validated {len(signals)} rows against {len(rules)} rules: {len(found)} findings, {len(rows)} quarantined")


def _tell(found: list[Finding], described: list[Description], stopping: list[Finding], too_many: str | None) -> None:
    """Print every finding, those that stop the run as its error."""
    lines = {finding["rule"]: one.lines for finding, one in zip(found, described, strict=True)}
    for finding in found:
        if finding["severity"] != CRITICAL:
            notice("\n  ".join(lines[finding["rule"]]))
    if stopping:
        shown = [line for finding in stopping for line in lines[finding["rule"]]]
        raise UserError("\n".join([f"the data gate stopped {RAW}; {VALIDATION_PAGE} shows all findings", *shown]))
    for finding in found:
        if finding["severity"] == CRITICAL:
            notice("\n  ".join(lines[finding["rule"]]))
    if too_many:
        raise UserError(f"{too_many}; look at {QUARANTINE}, then fix the source or raise it")


def _write_pages(result: Any, outcome: page.Outcome, source: str, form: str) -> None:
    """The gate's own page, and Great Expectations' beside it."""
    shutil.rmtree(VALIDATION_PAGE.parent, ignore_errors=True)
    files.write_text(DATA_DOCS, data_docs.render(result, VALIDATION_PAGE.name))
    about = {"Source": source, "Format": form, f"SHA-256 of {RAW}": files.sha256(RAW)}
    files.write_text(VALIDATION_PAGE, page.render(outcome, about))


def _columns(data: params.Data) -> dict[str, str]:
    """The source's column of each role, and of signals that are of one or of all; "" is that of records in a CSV."""
    source = data.chosen
    label = {"label": source.label} if source.label else {}
    if not formats.in_records(source):
        named = formats.columns(source)
        whole = dict.fromkeys(_OF_ALL, " and ".join(dict.fromkeys(named.values())))
        return {**named, **whole, **{signal: named[role] for signal, role in _OF_ONE.items() if role in named}, **label}
    if readers.container(RAW, source, data.max_bytes) not in ("csv", "xlsx"):
        return {}
    first: Any = next(cells for _, cells in readers.rows(RAW, source, data.max_bytes))
    header = formats.header_of(first, source)
    if not header or len(header) == 1:
        return {"": "A"}
    return {"": formats.record_column(header, source) or "", **label}


def read_signals(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The signals by row, without text, and the sketches of the rows that are conversations.

    A hash is given as a number that equal hashes share, which takes a tenth of its memory.
    """
    sketches = near_duplicates.matrix(pq.read_table(path, columns=["sketch"])["sketch"].drop_null())
    names = [name for name in SCHEMA.names if name not in ("faults", "sketch")]
    frame = pq.read_table(path, columns=names).to_pandas(split_blocks=True, self_destruct=True).set_index("row")
    return frame.assign(**{name: _numbered(frame[name]) for name in frame if name.endswith("_hash")}), sketches


def _numbered(hashes: pd.Series) -> pd.Series:
    numbers = pd.Series(hashes.factorize()[0], hashes.index, "Int32")
    return numbers.where(numbers >= 0)


def compared(signals: pd.DataFrame, sketches: np.ndarray) -> pd.DataFrame:
    """The signals with what can only be seen by comparing rows.

    `n_responses`: how many different responses the row's prompt has; `n_near`: how many other prompts are nearly the
    same; `group_share`: the share of the rows that are in its group of nearly equal prompts; `other_system`,
    `other_language`: 1 where the row differs from the most common one. Rows that are no conversation have no value.
    """
    valid = signals["error"].isna()
    groups = near_duplicates.groups(sketches)
    near = signals["prompt_hash"][valid].groupby(groups)
    responses = signals.groupby("prompt_hash")["response_hash"].transform("nunique")
    return signals.assign(
        n_responses=responses.where(valid),
        n_near=(near.transform("nunique") - 1).reindex(signals.index),
        group_share=(near.transform("size") / max(1, len(groups))).reindex(signals.index),
        **{f"other_{name}": _differs(signals[column]) for name, column in _COMPARED.items()},
    )


def _beyond(tokens: pd.Series, longest: int | None) -> pd.Series:
    """How many tokens each conversation is longer than training accepts."""
    return (tokens - (tokens if longest is None else longest)).clip(lower=0)


def _differs(column: pd.Series) -> pd.Series:
    common = column.mode()
    return (column != common.iloc[0]).astype("Int64").where(column.notna()) if len(common) else column


def report(found: list[Finding], rows: int, rules: int, quarantined: int) -> dict[str, Any]:
    """The metrics: counts of rows for each severity and rule that failed."""
    return {
        "rows": rows,
        "rules": rules,
        "quarantined": quarantined,
        "findings": [
            {key: finding[key] for key in ("rule", "severity", "advice")} | {"rows": len(finding["rows"])}
            for finding in found
        ],
    }


def _stopping(critical: list[Finding], gate: params.Gate) -> list[Finding]:
    """Findings that stop the run: with quarantine those that name no row, and so cannot be set aside."""
    return [finding for finding in critical if not (gate.quarantines and finding["rows"])]


def _too_many(quarantined: int, total: int, gate: params.Gate) -> str | None:
    """Why so many rows may not be set aside, if they may not."""
    # A share of rows is rounded as the number in params.yaml is; 0.29 * 100, a product, would be less than 29.
    if not quarantined or quarantined / total <= gate.max_quarantined:
        return None
    return (
        f"{quarantined} of {total} rows would be quarantined, more than validate.max_quarantined"
        f" {gate.max_quarantined:g} allows"
    )


def _reasons(rows: list[int], critical: list[Finding], signals: pd.DataFrame) -> dict[int, str]:
    """Why each row is set aside: the rules, what is wrong with a record that is no conversation, and what to do."""
    why: dict[int, list[str]] = {row: [] for row in rows}
    for finding in critical:
        for row in set(finding["rows"]) & why.keys():
            seen = f"{signals['error'][row]}; " if finding["columns"] == ["error"] else ""
            why[row].append(f"{finding['rule']}: {seen}{finding['advice']}")
    return {row: "; ".join(reasons) for row, reasons in why.items()}


if __name__ == "__main__":
    run(main)
