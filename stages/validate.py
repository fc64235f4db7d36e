"""validate: the data gate. Great Expectations over the signals; critical findings stop the pipeline or are quarantined.

The suite is data (`data/expectations.yaml`). Great Expectations drops a rule that it does not know without a word, so
the suite itself is checked first, and a rule that raises counts as critical. All reports are written before the stage
fails: `reports/validation.json`, Great Expectations' own page in `reports/validation/`, and `data/quarantine.csv`.
"""

import csv
import difflib
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml

from stages import files, neighbours, params, reading, shapes
from stages.command import UserError, notice, run
from stages.paths import QUARANTINE, RAW, SIGNALS, SUITE, VALIDATION, VALIDATION_PAGE
from stages.signals import SCHEMA

_ROWS_NAMED = 5
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEYS = {"type", "kwargs", "severity", "advice"}
_CRITICAL = "critical"
_WORDS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
_ROLE = re.compile(r"message \d+ \((\w+)\)")
_COMPARED = {"system": "system_hash", "language": "language"}

Rule = dict[str, Any]
Finding = dict[str, Any]


def main() -> None:
    knobs = params.load()
    signals = compared(*read_signals(SIGNALS))
    rules, faults = read_suite(SUITE)
    result = check(signals, rules)
    found = [*faults, *findings(result, rules, signals)]
    critical = [finding for finding in found if finding["severity"] == _CRITICAL]
    rows = sorted({row for finding in critical for row in finding["rows"]}) if knobs.gate.quarantines else []
    files.write_json(VALIDATION, report(found, len(signals), len(rules), len(rows)))
    _write_page(result)
    _write_quarantine(rows, critical, knobs.data)
    described = describe(found, signals, _columns(knobs.data))
    told = {finding["rule"]: lines for finding, lines in zip(found, described, strict=True)}
    for finding in found:
        if finding["severity"] != _CRITICAL:
            notice("\n  ".join(told[finding["rule"]]))
    _stop_or_go_on(critical, told, len(rows), len(signals), knobs.gate)
    notice(f"validated {len(signals)} rows against {len(rules)} rules: {len(found)} findings, {len(rows)} quarantined")


def _columns(data: params.Data) -> dict[str, str]:
    """The source's column of each role; for records in cells of a CSV, that of all roles, as a spreadsheet names it."""
    source = data.chosen
    if source.format not in ("messages", "sharegpt"):
        return shapes.columns(source)
    alone = source.label is None and reading.container(RAW, source, data.max_bytes) == "csv"
    return {"": "A"} if alone else {}


def read_signals(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The signals by row, without text, and the sketches of the rows that are conversations.

    A hash is given as a number that equal hashes share, which takes a tenth of its memory.
    """
    sketches = neighbours.matrix(pq.read_table(path, columns=["sketch"])["sketch"].drop_null())
    names = [name for name in SCHEMA.names if name not in ("faults", "sketch")]
    frame = pq.read_table(path, columns=names).to_pandas(split_blocks=True, self_destruct=True).set_index("row")
    return frame.assign(**{name: _numbered(frame[name]) for name in frame if name.endswith("_hash")}), sketches


def _numbered(hashes: pd.Series) -> pd.Series:
    numbers = pd.Series(hashes.factorize()[0], hashes.index, "Int32")
    return numbers.where(numbers >= 0)


def compared(signals: pd.DataFrame, sketches: np.ndarray) -> pd.DataFrame:
    """The signals with what only a look at all rows tells.

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
    return prompts.groupby(neighbours.groups(sketches)).transform("nunique") - 1


def _differs(column: pd.Series) -> pd.Series:
    common = column.mode()
    return (column != common.iloc[0]).astype("Int64").where(column.notna()) if len(common) else column


def read_suite(path: Path) -> tuple[dict[str, Rule], list[Finding]]:
    """The suite's rules by name, and a critical finding for each that Great Expectations would not take.

    Raises:
        UserError: the file holds no rules.
    """
    try:
        rules = params.read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(rules, dict) or not rules:
        raise UserError(f"{path} must hold rules by name; an empty suite would let everything pass")
    faults = {name: fault for name, rule in rules.items() if (fault := _fault(rule))}
    right = {name: rule for name, rule in rules.items() if name not in faults}
    if not any(rule["severity"] == _CRITICAL and rule["kwargs"] == {"column": "error"} for rule in right.values()):
        missing = "a critical rule that column error is null is missing; the other rules skip such rows"
        faults.setdefault("parses", missing)
    return right, [_broken(name, fault) for name, fault in faults.items()]


def _broken(name: str, fault: str) -> Finding:
    advice = f"mend this rule in {SUITE}; nothing passes while it cannot be asked"
    return {"rule": name, "severity": _CRITICAL, "column": None, "rows": [], "reason": fault, "advice": advice}


def _fault(rule: Any) -> str | None:
    """Why the rule cannot be asked, with the nearest known name."""
    from great_expectations.core.metric_domain_types import MetricDomainTypes  # noqa: F401  (loads the registry)
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    if not isinstance(rule, dict) or set(rule) != _KEYS:
        return f"expected the keys {', '.join(sorted(_KEYS))}"
    severities = [severity.value for severity in FailureSeverity]
    if rule["severity"] not in severities:
        return f"severity '{rule['severity']}'{_nearest(rule['severity'], severities)}"
    known = list_registered_expectation_implementations()
    if rule["type"] not in known:
        return f"Great Expectations knows no '{rule['type']}'{_nearest(rule['type'], known)}"
    columns = [*SCHEMA.names, "n_responses", "n_near", *(f"other_{name}" for name in _COMPARED)]
    column = rule["kwargs"].get("column") if isinstance(rule["kwargs"], dict) else None
    if column is not None and column not in columns:
        return f"the signals have no column '{column}'{_nearest(column, columns)}"
    try:
        _expectation("", rule)
    except Exception as error:
        return f"Great Expectations refuses its arguments: {' '.join(str(error).split())}"
    return None


def _nearest(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; expected one of {', '.join(sorted(known))}"


def check(signals: pd.DataFrame, rules: dict[str, Rule]) -> Any:
    """Great Expectations' result of the rules over the signals (indexed by row); it holds row numbers, never text."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    # Given one by one, a rule would replace an earlier one of the same type and column.
    suite = gx.ExpectationSuite(name="gate", expectations=[_expectation(name, rule) for name, rule in rules.items()])
    if len(suite.expectations) != len(rules):
        raise UserError(f"Great Expectations took {len(suite.expectations)} of {len(rules)} rules of {SUITE}")
    asset = context.data_sources.add_pandas("signals").add_dataframe_asset("signals")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": signals})
    form = {"result_format": "COMPLETE", "exclude_unexpected_values": True, "return_unexpected_index_query": False}
    return batch.validate(suite, result_format=form)


def _expectation(name: str, rule: Rule) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    asked = {key: rule[key] for key in ("type", "kwargs", "severity")}
    return ExpectationConfiguration(**asked, meta={"rule": name}).to_domain_obj()


def findings(result: Any, rules: dict[str, Rule], signals: pd.DataFrame) -> list[Finding]:
    """What failed, in the suite's order: rule, severity, `rows` (numbers, empty for rules about the whole table)."""
    failed = {one.expectation_config.meta["rule"]: one for one in result.results if not one.success}
    return [_finding(name, rule, failed[name]) for name, rule in rules.items() if name in failed]


def _finding(name: str, rule: Rule, result: Any) -> Finding:
    raised = _raised(result.exception_info)
    return {
        "rule": name,
        "severity": _CRITICAL if raised else rule["severity"],
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


def _stop_or_go_on(
    critical: list[Finding], told: dict[str, list[str]], quarantined: int, total: int, gate: params.Gate
) -> None:
    about_the_table = [finding for finding in critical if not finding["rows"]]
    stopping = about_the_table if gate.quarantines else critical
    if stopping:
        lines = [line for finding in stopping for line in told[finding["rule"]]]
        raise UserError("\n".join([f"the data gate stopped {RAW}; {VALIDATION_PAGE} shows it all", *lines]))
    for finding in critical:
        notice("\n  ".join(told[finding["rule"]]))
    if quarantined > gate.max_quarantined * total:
        raise UserError(
            f"{quarantined} of {total} rows would be quarantined, more than validate.max_quarantined"
            f" {gate.max_quarantined:g} allows; look at {QUARANTINE}, and mend the source or raise it"
        )


def _write_quarantine(rows: list[int], critical: list[Finding], data: params.Data) -> None:
    """Quarantined rows as they stand in the source, with row number and reasons before them."""
    wanted = dict.fromkeys(rows, "")
    for finding in critical:
        for row in set(finding["rows"]) & wanted.keys():
            wanted[row] = "; ".join(filter(None, [wanted[row], f"{finding['rule']}: {finding['advice']}"]))
    with files.replacing(QUARANTINE) as path, path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "why", "record"])
        if wanted:
            for row, content in reading.rows(RAW, data.chosen, data.max_bytes):
                if row in wanted:
                    writer.writerow([row, wanted[row], *_as_cells(content)])


def _as_cells(content: reading.Content) -> list[str]:
    if isinstance(content, list):
        return content
    record = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return [record.decode("utf-8", "replace")]


def _write_page(result: Any) -> None:
    """Great Expectations' page, equal bytes for equal results. A browser asks the network for its styles."""
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
