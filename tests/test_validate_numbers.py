"""What the gate counts over all rows, and how many it may set aside."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import validate
from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import VALIDATION
from stages.dataset.signals import SCHEMA
from tests.conftest import TALK, good_records, set_params


def set_aside(gate, bad, total, allowed):
    """The gate over so many records of which some are bad; how many were set aside."""
    records = [*good_records(total - bad), *[json.dumps({"messages": number}) for number in range(bad)]]
    return gate(records, on_error="quarantine", max_quarantined=allowed)["quarantined"]


@pytest.mark.parametrize("bad, total, allowed", [(1, 20, 0.05), (2, 20, 0.1), (29, 100, 0.29), (7, 100, 0.07)])
def test_as_many_rows_as_max_quarantined_allows_may_be_set_aside(gate, bad, total, allowed):
    # As floating-point numbers 0.29 x 100 is a little less than 29.
    assert set_aside(gate, bad, total, allowed) == bad


@pytest.mark.parametrize("bad, total, allowed", [(1, 20, 0.049), (3, 20, 0.1), (30, 100, 0.29), (1, 20, 0)])
def test_one_row_more_than_max_quarantined_allows_stops_the_run(gate, bad, total, allowed):
    message = f"^{bad} of {total} rows would be quarantined, more than validate.max_quarantined {allowed:g} allows"
    with pytest.raises(UserError, match=message):
        set_aside(gate, bad, total, allowed)
    assert json.loads(VALIDATION.read_text())["quarantined"] == bad


def test_nothing_is_set_aside_where_critical_findings_stop_the_run(gate):
    with pytest.raises(UserError, match="the data gate stopped"):
        gate([*good_records(5), "{}"], on_error="stop", max_quarantined=1)
    assert json.loads(VALIDATION.read_text())["quarantined"] == 0


def test_a_finding_about_the_whole_table_stops_a_quarantine_too(gate):
    with pytest.raises(UserError, match="the data gate stopped") as error:
        gate(good_records(2), on_error="quarantine", max_quarantined=1)
    assert "enough_conversations" in str(error.value)


def test_what_is_quarantined_is_reported_with_its_reason_and_counted(gate, capsys):
    assert set_aside(gate, 1, 20, 0.05) == 1
    shown = capsys.readouterr().out
    assert "critical: parses, 1 of 20 rows" in shown
    # Besides, their prompts are nearly the same, and most of them form one group.
    assert re.search(r"validated 20 rows against \d+ rules: 3 findings, 1 quarantined$", shown.strip())


def test_a_row_with_several_critical_findings_is_set_aside_once(gate):
    key = "sk-" + "a1B2" * 8
    bad = (TALK % 99).replace("At 7", f"{key} <|im_end|>")
    report = gate([*good_records(19), bad], on_error="quarantine", max_quarantined=0.05)
    assert report["quarantined"] == 1
    assert {one["rule"] for one in report["findings"] if one["severity"] == "critical"} == {
        "api_keys",
        "special_tokens",
    }


def test_the_report_counts_rows_rules_and_findings():
    finding = {"rule": "a", "severity": "info", "advice": "b", "rows": [4, 7], "columns": ["c"], "reason": "d"}
    found = validate.report([finding, {**finding, "rule": "e", "rows": []}], 9, 30, 2)
    assert (found["rows"], found["rules"], found["quarantined"]) == (9, 30, 2)
    assert found["findings"] == [
        {"rule": "a", "severity": "info", "advice": "b", "rows": 2},
        {"rule": "e", "severity": "info", "advice": "b", "rows": 0},
    ]


def signals(**columns):
    count = len(next(iter(columns.values())))
    table = {
        "error": [None] * count,
        "prompt_hash": range(count),
        "response_hash": range(count),
        "system_hash": [0] * count,
        "language": ["en"] * count,
        **columns,
    }
    return pd.DataFrame(table, index=pd.Index(range(11, 11 + count), name="row"))


def apart(count):
    """Sketches without anything in common."""
    return np.repeat(np.arange(count, dtype=np.uint32)[:, None], 64, axis=1)


def test_different_responses_of_a_prompt_are_counted():
    frame = signals(prompt_hash=[1, 1, 1, 2, 2, 3], response_hash=[1, 2, 1, 5, 5, 5])
    assert validate.compared(frame, apart(6))["n_responses"].tolist() == [2, 2, 2, 1, 1, 1]


def test_other_prompts_that_are_nearly_the_same_are_counted():
    # The first two are equal, the third is nearly the same; the fourth is no conversation and has no sketch.
    near = apart(4)
    near[1:3] = near[0]
    frame = signals(error=[None, None, None, "malformed", None], prompt_hash=[1, 1, 2, None, 3])
    found = validate.compared(frame, near)["n_near"]
    assert found.isna().tolist() == [False, False, False, True, False]
    assert found.dropna().tolist() == [1, 1, 1, 0]


def test_rows_that_differ_from_the_most_common_are_marked_and_those_without_a_value_are_not():
    frame = signals(language=["en", "fr", None, "en"], system_hash=[7, 8, 8, 8])
    found = validate.compared(frame, apart(4))
    assert found["other_language"].tolist() == [0, 1, pd.NA, 0] and found["other_system"].tolist() == [1, 0, 0, 0]


def test_without_any_language_none_differs():
    found = validate.compared(signals(language=[None, None]), apart(2))
    assert found["other_language"].isna().all()


def test_a_row_that_is_no_conversation_has_no_number_of_responses():
    frame = signals(error=[None, "malformed"], prompt_hash=[1, 1])
    assert validate.compared(frame, apart(1))["n_responses"].isna().tolist() == [False, True]


def test_hashes_are_read_as_numbers_that_equal_hashes_share(tmp_path):
    rows = [
        {"row": 3, "prompt_hash": "b", "system_hash": "x", "sketch": bytes(256), "faults": {"a": "secret"}},
        {"row": 4, "error": "malformed"},
        {"row": 6, "prompt_hash": "a", "system_hash": "x", "sketch": b"\x01" * 256},
        {"row": 7, "prompt_hash": "b", "system_hash": "y", "sketch": bytes(256)},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "signals.parquet")
    frame, sketches = validate.read_signals(tmp_path / "signals.parquet")
    assert frame.index.tolist() == [3, 4, 6, 7] and not {"faults", "sketch"} & set(frame)
    prompts, systems = frame["prompt_hash"], frame["system_hash"]
    assert prompts.isna().tolist() == [False, True, False, False]
    assert prompts[3] == prompts[7] != prompts[6] and systems[3] == systems[6] != systems[7]
    assert sketches.shape == (3, 64) and sketches[:, 0].tolist() == [0, 0x01010101, 0]


def test_the_reports_of_one_run_do_not_stay_for_the_next(gate):
    gate(good_records(5))
    stale = validate.VALIDATION_PAGE.parent / "old.html"
    files.write_text(stale, "x")
    set_params(seed=3)
    validate.main()
    assert not stale.exists() and validate.VALIDATION_PAGE.exists()
