import json
from pathlib import Path

import pandas as pd
import pytest

from stages import validate
from stages.command import UserError
from stages.paths import SIGNALS, SUITE, VALIDATION

from .conftest import ROOT

RULES = validate.read_suite(ROOT / SUITE)


def signals(**changes):
    """Signals of four good rows, with columns of the second row (CSV row 12) changed."""
    count = 4
    frame = pd.DataFrame(
        {
            "row": range(11, 11 + count),
            "error": [None] * count,
            "snippet": [None] * count,
            "roles": ["sua", "ua", "suaua", "ua"],
            "n_empty": [0.0] * count,
            "n_tokens": [20.0] * count,
            "prompt_hash": list("abcd"),
            "conversation_hash": list("abcd"),
        }
    ).set_index("row")
    for column, value in changes.items():
        frame.loc[12, column] = value
    return frame


def test_good_rows_pass():
    assert validate.check(signals(), RULES) == []


@pytest.mark.parametrize(
    "rule, severity, changes",
    [
        ("parses", "critical", {"error": "JSON is malformed", "snippet": '{"mess'}),
        ("roles", "critical", {"roles": "su"}),
        ("roles", "critical", {"roles": "uas"}),
        ("roles", "critical", {"roles": "uuaa"}),
        ("roles", "critical", {"roles": ""}),
        ("no empty message", "critical", {"n_empty": 1}),
    ],
)
def test_each_rule_finds_its_row(rule, severity, changes):
    (finding,) = validate.check(signals(**changes), RULES)
    assert (finding["rule"], finding["severity"], finding["rows"]) == (rule, severity, 1)
    assert finding["first"][0]["row"] == 12


def test_duplicates_are_a_warning_that_names_both_rows():
    (finding,) = validate.check(signals(conversation_hash="a"), RULES)
    assert finding["severity"] == "warning" and [one["row"] for one in finding["first"]] == [11, 12]


def test_too_few_rows():
    (finding,) = validate.check(signals()[:2], RULES)
    assert finding["rule"] == "enough conversations" and finding["severity"] == "critical"


def test_a_rule_that_raises_is_critical():
    rule = {**RULES[-1], "kwargs": {"column": "no_such_column"}}
    (finding,) = validate.check(signals(), [rule])
    assert finding["severity"] == "critical" and "no_such_column" in finding["reason"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("values_to_be_null", "values_to_be_nul", "knows no 'expect_column_values_to_be_nul'"),
        ("severity: warning", "severity: fatal", "severity 'fatal'; expected critical, warning, info"),
        ("severity: warning", "severty: warning", "expected the keys advice, kwargs, rule, severity, type"),
        ("- rule: parses", "- rule: [parses", str(SUITE)),
    ],
)
def test_a_suite_with_a_slip_is_refused(project, old, new, message):
    text = (ROOT / SUITE).read_text()
    assert old in text
    SUITE.parent.mkdir()
    SUITE.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        validate.read_suite(SUITE)


def test_an_empty_suite_is_refused(project):
    Path("empty.yaml").write_text("")
    with pytest.raises(UserError, match="an empty suite would let everything pass"):
        validate.read_suite(Path("empty.yaml"))


def test_the_gate_stops_with_rows_and_writes_the_report_first(project):
    SUITE.parent.mkdir()
    SUITE.write_text((ROOT / SUITE).read_text())
    signals(error="JSON is malformed", snippet='{"mess', roles=None).reset_index().to_parquet(SIGNALS)
    with pytest.raises(UserError) as error:
        validate.main()
    assert 'row 12: JSON is malformed; {"mess' in str(error.value) and "mend the record" in str(error.value)
    assert json.loads(VALIDATION.read_text())["findings"][0]["rows"] == 1
