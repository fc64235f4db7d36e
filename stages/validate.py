"""validate: the data gate. Great Expectations over the signals; critical findings stop the pipeline or are quarantined.

The suite is data (`data/expectations.yaml`). Great Expectations silently drops a rule that it does not know, so
the suite itself is checked first, and a rule that raises counts as critical. All reports are written before the stage
fails: `reports/validation.json`, Great Expectations' own page in `reports/validation/`, and `data/quarantine.csv`.
"""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from stages import params
from stages.core import files
from stages.core.cli import UserError, notice, run
from stages.core.paths import QUARANTINE, RAW, SIGNALS, SUITE, VALIDATION, VALIDATION_PAGE
from stages.dataset import formats, near_duplicates, readers
from stages.dataset.signals import SCHEMA
from stages.gate.findings import describe, findings
from stages.gate.suite import CRITICAL, Finding, check, read_suite

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# In a table, signals that come from one role's column, and those that come from all columns.
_OF_ONE = {"n_near": "user", "n_response": "assistant", "n_responses": "assistant", "other_system": "system"}
_OF_ALL = ("n_tokens", "n_over", "conversation_hash")
_COMPARED = {"system": "system_hash", "language": "language"}


def main() -> None:
    knobs = params.load()
    signals = compared(*read_signals(SIGNALS))
    rules, faults = read_suite(SUITE, list(signals.columns))
    result = check(signals, rules)
    found = [*faults, *findings(result, rules)]
    critical = [finding for finding in found if finding["severity"] == CRITICAL]
    rows = sorted({row for finding in critical for row in finding["rows"]}) if knobs.gate.quarantines else []
    files.write_json(VALIDATION, report(found, len(signals), len(rules), len(rows)))
    _write_page(result)
    _write_quarantine(rows, critical, knobs.data)
    described = describe(found, signals, _columns(knobs.data))
    lines = {finding["rule"]: text for finding, text in zip(found, described, strict=True)}
    for finding in found:
        if finding["severity"] != CRITICAL:
            notice("\n  ".join(lines[finding["rule"]]))
    _stop_or_go_on(critical, lines, len(rows), len(signals), knobs.gate)
    notice(f"validated {len(signals)} rows against {len(rules)} rules: {len(found)} findings, {len(rows)} quarantined")


def _columns(data: params.Data) -> dict[str, str]:
    """The source's column of each role, and of signals that are of one or of all; "" is that of records in a CSV."""
    source = data.chosen
    label = {"label": source.label} if source.label else {}
    if not formats.in_records(source):
        named = formats.columns(source)
        whole = dict.fromkeys(_OF_ALL, " and ".join(named.values()))
        return {**named, **whole, **{signal: named[role] for signal, role in _OF_ONE.items() if role in named}, **label}
    if readers.container(RAW, source, data.max_bytes) != "csv":
        return {}
    if not label:
        return {"": "A"}
    header: Any = next(cells for _, cells in readers.rows(RAW, source, data.max_bytes))
    return {"": " and ".join(name for name in header if name != source.label), **label}


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
    same; `other_system`, `other_language`: 1 where the row differs from the most common one. Rows that are no
    conversation have no value.
    """
    valid = signals["error"].isna()
    responses = signals.groupby("prompt_hash")["response_hash"].transform("nunique")
    return signals.assign(
        n_responses=responses.where(valid),
        n_near=_near(signals["prompt_hash"][valid], sketches).reindex(signals.index),
        **{f"other_{name}": _differs(signals[column]) for name, column in _COMPARED.items()},
    )


def _near(prompts: pd.Series, sketches: np.ndarray) -> pd.Series:
    """How many other prompts are in the group of nearly equal prompts of each row."""
    return prompts.groupby(near_duplicates.groups(sketches)).transform("nunique") - 1


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


def _stop_or_go_on(
    critical: list[Finding], lines: dict[str, list[str]], quarantined: int, total: int, gate: params.Gate
) -> None:
    about_the_table = [finding for finding in critical if not finding["rows"]]
    stopping = about_the_table if gate.quarantines else critical
    if stopping:
        shown = [line for finding in stopping for line in lines[finding["rule"]]]
        raise UserError("\n".join([f"the data gate stopped {RAW}; {VALIDATION_PAGE} shows all findings", *shown]))
    for finding in critical:
        notice("\n  ".join(lines[finding["rule"]]))
    # A share of rows is rounded as the number in params.yaml is; 0.29 * 100, a product, would be less than 29.
    if quarantined and quarantined / total > gate.max_quarantined:
        raise UserError(
            f"{quarantined} of {total} rows would be quarantined, more than validate.max_quarantined"
            f" {gate.max_quarantined:g} allows; look at {QUARANTINE}, then fix the source or raise it"
        )


def _write_quarantine(rows: list[int], critical: list[Finding], data: params.Data) -> None:
    """Quarantined rows as they are in the source, with row number and reasons before them."""
    wanted = dict.fromkeys(rows, "")
    for finding in critical:
        for row in set(finding["rows"]) & wanted.keys():
            wanted[row] = "; ".join(filter(None, [wanted[row], f"{finding['rule']}: {finding['advice']}"]))
    written = []
    with files.replacing(QUARANTINE) as path, path.open("w", encoding="utf-8", newline="") as out:
        # All is quoted: a reader would take a carriage return outside quotes for the end of the record.
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["row", "why", "record"])
        for row, content in readers.rows(RAW, data.chosen, data.max_bytes) if wanted else ():
            if row in wanted:
                writer.writerow([row, wanted[row], *_as_cells(content)])
                written.append(row)
    if written != rows:
        raise UserError(f"{RAW} changed while it was read; run `dvc repro` again")


def _as_cells(content: readers.Content) -> list[str]:
    if isinstance(content, list):
        return content
    record = content if isinstance(content, bytes) else msgspec.json.encode(content, enc_hook=str)
    return [record.decode("utf-8", "replace")]


def _write_page(result: Any) -> None:
    """Great Expectations' page, equal bytes for equal results. Its styles come from the network."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    result.meta.pop("batch_markers", None)
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    page = re.sub(r"\?d=\d{8}T[\d.]+Z", "", page)
    for number, identifier in enumerate(dict.fromkeys(_UUID.findall(page))):
        page = page.replace(identifier, str(number))
    shutil.rmtree(VALIDATION_PAGE.parent, ignore_errors=True)
    files.write_text(VALIDATION_PAGE, page)


if __name__ == "__main__":
    run(main)
