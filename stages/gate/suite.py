"""The suite of the data gate as data (`data/expectations.yaml`): read, checked, and run by Great Expectations.

Great Expectations silently drops a rule that it does not know, so the suite itself is checked first.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stages import params
from stages.core.cli import UserError
from stages.core.paths import SUITE

CRITICAL = "critical"
# The rule that no suite may lack: the others skip rows that are no conversations.
_GUARD = {"type": "expect_column_values_to_be_null", "kwargs": {"column": "error"}, "severity": CRITICAL}
_KEYS = {"type", "kwargs", "severity", "advice"}

Rule = dict[str, Any]
Finding = dict[str, Any]


def read_suite(path: Path, columns: Sequence[str]) -> tuple[dict[str, Rule], list[Finding]]:
    """The suite's rules by name, and a critical finding for each that Great Expectations would not accept.

    `columns` are those of the signals that a rule may ask about.

    Raises:
        UserError: the file holds no rules.
    """
    try:
        rules = params.read_yaml(path)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(rules, dict) or not rules:
        raise UserError(f"{path} must hold rules by name; an empty suite would let everything pass")
    faults = {name: fault for name, rule in rules.items() if (fault := _fault(rule, columns))}
    whole = [rule for name, rule in rules.items() if name not in faults]
    if not any({key: rule[key] for key in _GUARD} == _GUARD for rule in whole):
        missing = "a critical rule that column error is null is missing; the other rules skip such rows"
        faults.setdefault("parses", missing)
    right = {name: rule for name, rule in rules.items() if name not in faults}
    return right, [_broken(name, fault) for name, fault in faults.items()]


def _broken(name: str, fault: str) -> Finding:
    advice = f"fix this rule in {SUITE}; nothing passes while it is invalid"
    return {"rule": name, "severity": CRITICAL, "columns": [], "rows": [], "reason": fault, "advice": advice}


def _fault(rule: Any, columns: Sequence[str]) -> str | None:
    """Why the rule is invalid, with the nearest known name."""
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
    for column in asked(rule):
        if column not in columns:
            return f"the signals have no column '{column}'{_nearest(column, columns)}"
    try:
        _expectation("", rule)
    except Exception as error:
        return f"Great Expectations refuses its arguments: {' '.join(str(error).split())}"
    return None


def asked(rule: Rule) -> list[Any]:
    """The columns that a rule is about: one, a pair, or a list."""
    kwargs = rule["kwargs"] if isinstance(rule["kwargs"], dict) else {}
    several = kwargs.get("column_list")
    named = [kwargs.get(key) for key in ("column", "column_A", "column_B")]
    return [*(name for name in named if name is not None), *(several if isinstance(several, list) else [])]


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
