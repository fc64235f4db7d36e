"""How a finding is reported: how many rows, which of them, and what was seen in each."""

from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.paths import SIGNALS
from stages.dataset.signals import SCHEMA
from stages.gate import findings

COLUMNS = {"": "A"}


def finding(columns, rows, **changes):
    return {
        "rule": "rule",
        "severity": "warning",
        "columns": columns,
        "rows": rows,
        "regex": None,
        "reason": "why",
        "advice": "do this",
        **changes,
    }


@pytest.fixture
def described(project):
    """described(finding, signals, faults) gives the lines on it; `faults` are the snippets of rows."""

    def run(found, signals, faults=None, columns=COLUMNS):
        SIGNALS.parent.mkdir(exist_ok=True)
        rows = [{"row": row, "faults": (faults or {}).get(row)} for row in signals.index.tolist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), SIGNALS)
        (one,) = findings.describe([found], signals, columns)
        return one.lines

    return run


def signals(count, **columns):
    return pd.DataFrame(columns, index=pd.Index(range(11, 11 + count), name="row"))


def test_five_rows_are_shown_of_all_that_are_counted(described):
    lines = described(finding(["n_over"], list(range(11, 18))), signals(8, n_over=range(8)))
    assert lines[0] == "warning: rule, 7 of 8 rows; do this"
    assert lines[1:] == [f"  row {11 + over}, column A: n_over: ‹{over}›" for over in range(5)]


def test_a_finding_about_the_whole_table_says_what_was_asked(described):
    assert described(finding([], []), signals(3, n_over=[0] * 3)) == ["warning: rule; do this", "  why"]


def test_a_snippet_says_more_than_a_number(described):
    lines = described(
        finding(["n_over"], [12]), signals(3, n_over=[0, 7, 0]), {12: [("n_over", "message 2 (user): ‹x›")]}
    )
    assert lines[1] == "  row 12, column A: message 2 (user): ‹x›"


def test_equal_errors_are_told_once_with_the_number_of_the_others(described):
    errors = ["malformed", "short", "malformed", None, "malformed", "short", "a", "b", "c", "d", "short", "malformed"]
    faults = {row: [("error", f"‹{row}›")] for row in range(11, 23)}
    rows = [row for row, error in zip(range(11, 23), errors, strict=True) if error]
    lines = described(finding(["error"], rows), signals(12, error=errors), faults)
    assert lines == [
        "warning: rule, 11 of 12 rows; do this",
        "  row 11, column A: malformed; saw ‹11› (and 3 more rows with this fault)",
        "  row 12, column A: short; saw ‹12› (and 2 more rows with this fault)",
        "  row 17, column A: a; saw ‹17›",
        "  row 18, column A: b; saw ‹18›",
        "  row 19, column A: c; saw ‹19›",
    ]


def test_another_row_with_the_same_hash_is_named(described):
    frame = signals(4, conversation_hash=[1, 2, 1, 3], prompt_hash=[1, 2, 3, 2], n_responses=[1, 2, 1, 2])
    assert described(finding(["conversation_hash"], [11, 13]), frame)[1:] == [
        "  row 11, column A: the same as in row 13",
        "  row 13, column A: the same as in row 11",
    ]
    assert described(finding(["n_responses"], [14]), frame)[1] == (
        "  row 14, column A: another response to the same prompt as in row 12"
    )


def test_another_language_is_told_with_the_most_common_one(described):
    frame = signals(4, other_language=[0, 1, 0, 0], language=["en", "fr", "en", "de"])
    lines = described(finding(["other_language"], [12]), frame)
    assert lines[1] == "  row 12, column A: language fr, where most rows have en"


@pytest.mark.parametrize(
    "roles, regex, shown",
    [
        ("suua", "uu", "system ‹user user› assistant"),
        ("usat", ".s", "‹user system› assistant tool"),
        ("su", "a$", "system user ‹›"),
        ("su", None, "system user ‹›"),
    ],
)
def test_the_turns_that_a_rule_is_about_are_marked(described, roles, regex, shown):
    lines = described(finding(["roles"], [11], regex=regex), signals(1, roles=[roles]))
    assert lines[1] == f"  row 11, column A: roles: {shown}"


TABLE = {"user": "question", "assistant": "answer", "n_over": "question and answer", "n_near": "question"}


@pytest.mark.parametrize(
    "columns, fault, named",
    [
        (["n_empty"], "message 2 (assistant): ‹›", ", column answer"),
        (["n_empty"], "message 1 (user): ‹›", ", column question"),
        (["n_empty"], "message 1 (system): ‹›", ""),
        (["n_over"], "9 tokens", ", column question and answer"),
        (["n_near"], "near", ", column question"),
        (["roles"], "roles: ‹›", ""),
        (["n_over", "n_near"], None, ""),
    ],
)
def test_the_column_of_a_table_is_that_of_the_role_or_of_the_signal(described, columns, fault, named):
    frame = signals(1, **{name: [3] for name in columns})
    lines = described(finding(columns, [11]), frame, {11: [(columns[0], fault)]} if fault else None, TABLE)
    assert lines[1].startswith(f"  row 11{named}: ")


@pytest.mark.parametrize(
    "error, columns, named",
    [
        ("Expected text (a string) in field `q`, got int", TABLE, ", column q"),
        ("Expected text in field `q`, got int", {}, ""),
        ("2 columns where one column is expected", COLUMNS, ""),
        ("malformed", COLUMNS, ", column A"),
        ("malformed", {}, ""),
    ],
)
def test_an_error_is_in_the_column_that_it_names_or_in_that_of_the_records(described, error, columns, named):
    lines = described(finding(["error"], [11]), signals(1, error=[error]), {11: [("error", "‹x›")]}, columns)
    assert lines[1] == f"  row 11{named}: {error}; saw ‹x›"


def result(rule, success, rows=(), info=None):
    """What Great Expectations gives for a rule; each of `rows` is one index of unexpected rows."""
    return SimpleNamespace(
        success=success,
        expectation_config=SimpleNamespace(meta={"rule": rule}),
        exception_info=info or {"raised_exception": False},
        result={"unexpected_index_list": [{"row": list(each)} for each in rows]} if rows else {},
    )


def rule(severity="warning", **kwargs):
    return {"type": "t", "kwargs": kwargs, "severity": severity, "advice": "do this"}


def test_findings_are_in_the_suite_s_order_with_their_rows_sorted():
    rules = {"one": rule(column="a", regex="x"), "two": rule("info", column="b"), "three": rule(column="c")}
    results = [result("three", False), result("two", True), result("one", False, rows=[[9, 12], [3]])]
    one, three = findings.findings(SimpleNamespace(results=results), rules)
    assert one == {
        "rule": "one",
        "severity": "warning",
        "columns": ["a"],
        "rows": [3, 9, 12],
        "regex": "x",
        "reason": "t {'column': 'a', 'regex': 'x'}",
        "advice": "do this",
    }
    assert (three["rule"], three["rows"], three["regex"]) == ("three", [], None)


@pytest.mark.parametrize(
    "info",
    [
        {"raised_exception": True, "exception_message": "no such column"},
        {"metric": {"raised_exception": True, "exception_message": "no such column"}, "x": {"raised_exception": False}},
    ],
)
def test_a_rule_that_raised_is_critical_and_says_why(info):
    (found,) = findings.findings(SimpleNamespace(results=[result("one", False, info=info)]), {"one": rule()})
    assert (found["severity"], found["reason"]) == ("critical", "no such column")
