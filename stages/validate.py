"""validate: the data gate. Great Expectations over the signals; a critical finding stops the pipeline.

The suite is data (`data/expectations.yaml`). Great Expectations drops a rule that it does not know without a word, so
the suite itself is checked first, and a rule that raises counts as critical.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stages import files
from stages.command import UserError, notice, run
from stages.paths import RAW, SIGNALS, SUITE, VALIDATION

_ROWS_NAMED = 10
_KEYS = {"rule", "type", "kwargs", "severity", "advice"}


def main() -> None:
    signals = pd.read_parquet(SIGNALS).set_index("row")
    rules = read_suite(SUITE)
    findings = check(signals, rules)
    files.write_json(VALIDATION, {"rows": len(signals), "rules": len(rules), "findings": findings})
    for finding in findings:
        if finding["severity"] != "critical":
            notice("\n  ".join(_describe(finding)))
    critical = [line for finding in findings if finding["severity"] == "critical" for line in _describe(finding)]
    if critical:
        raise UserError("\n".join([f"the data gate stopped {RAW} ({VALIDATION} has it all)", *critical]))
    notice(f"validated {len(signals)} rows against {len(rules)} rules: {len(findings)} findings, none critical")


def read_suite(path: Path) -> list[dict[str, Any]]:
    """The suite's rules, each checked against what Great Expectations knows.

    Raises:
        UserError: the file is no list of rules, or a rule's keys, type or severity are wrong.
    """
    from great_expectations.core.metric_domain_types import MetricDomainTypes  # noqa: F401  (loads the registry)
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import get_expectation_impl

    try:
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(rules, list) or not rules:
        raise UserError(f"{path} must be a list of rules; an empty suite would let everything pass")
    severities = [severity.value for severity in FailureSeverity]
    for number, rule in enumerate(rules, 1):
        if not isinstance(rule, dict) or set(rule) != _KEYS:
            raise UserError(f"{path}, rule {number}: expected the keys {', '.join(sorted(_KEYS))}")
        if rule["severity"] not in severities:
            raise UserError(
                f"{path}, '{rule['rule']}': severity '{rule['severity']}'; expected {', '.join(severities)}"
            )
        try:
            get_expectation_impl(rule["type"])
        except Exception:
            raise UserError(f"{path}, '{rule['rule']}': Great Expectations knows no '{rule['type']}'") from None
    return rules


def check(signals: pd.DataFrame, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the rules over the signals (indexed by row) and list what failed, in the suite's order."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = context.data_sources.add_pandas("signals").add_dataframe_asset("signals")
    suite = gx.ExpectationSuite(name="gate")
    for rule in rules:
        suite.add_expectation_configuration(
            ExpectationConfiguration(
                type=rule["type"], kwargs=rule["kwargs"], severity=rule["severity"], meta={"rule": rule["rule"]}
            )
        )
    if len(suite.expectations) != len(rules):
        raise UserError(f"Great Expectations took {len(suite.expectations)} of {len(rules)} rules of {SUITE}")
    definition = batch.add_batch_definition_whole_dataframe("all")
    # Row numbers alone: the failing text may hold secrets.
    form = {
        "result_format": "COMPLETE",
        "exclude_unexpected_values": True,
        "return_unexpected_index_query": False,
    }
    result: Any = definition.get_batch({"dataframe": signals}).validate(suite, result_format=form)
    failed = {one.expectation_config.meta["rule"]: one for one in result.results if not one.success}
    return [_finding(rule, failed[rule["rule"]], signals) for rule in rules if rule["rule"] in failed]


def _finding(rule: dict[str, Any], result: Any, signals: pd.DataFrame) -> dict[str, Any]:
    raised = str(result.exception_info) if _raised(result.exception_info) else None
    rows = sorted(row for entry in result.result.get("unexpected_index_list") or [] for row in entry["row"])
    examples = signals.loc[rows[:_ROWS_NAMED]]
    return {
        "rule": rule["rule"],
        "severity": "critical" if raised else rule["severity"],
        "rows": len(rows),
        "first": [_example(row, signal) for row, signal in examples.iterrows()],
        "reason": raised or f"{rule['type']} {rule['kwargs']}",
        "advice": rule["advice"],
    }


def _raised(info: dict[str, Any]) -> bool:
    """One flag, or one per metric: Great Expectations reports both forms."""
    return bool(info.get("raised_exception")) or any(
        isinstance(part, dict) and part.get("raised_exception") for part in info.values()
    )


def _example(row: Any, signal: pd.Series) -> dict[str, Any]:
    words = {name: signal[name] for name in ("error", "snippet", "roles") if isinstance(signal[name], str)}
    return {"row": int(row), **words}


def _describe(finding: dict[str, Any]) -> list[str]:
    head = f"{finding['severity']}: {finding['rule']}, {finding['rows']} rows; {finding['advice']}"
    rows = [
        f"  row {one['row']}: " + "; ".join(str(v) for k, v in one.items() if k != "row") for one in finding["first"]
    ]
    return [head, *(rows or [f"  {finding['reason']}"])]


if __name__ == "__main__":
    run(main)
