import csv
import io
import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stages import split, validate
from stages.core.cli import UserError
from stages.core.paths import DATA_DOCS, QUARANTINE, SPLITS, SUITE, VALIDATION, VALIDATION_PAGE
from stages.dataset import conversations
from tests.conftest import ROOT, TALK, good_records

KEY = "sk-" + "a1B2" * 8


def test_the_gate_stops_with_all_findings_and_writes_its_reports_first(gate):
    with pytest.raises(UserError) as error:
        gate([*good_records(5), '{"messages": 5}', (TALK % 9).replace("At 7", f"Use {KEY}")])
    text = str(error.value)
    assert "parses, 1 of 7 rows" in text and "row 6, column A: Expected `array`, got `int` - at `$.messages`" in text
    assert (
        "api_keys, 1 of 7 rows" in text
        and "row 7, column A: message 2 (assistant): Use ‹sk•••›" in text
        and "revoke it" in text
    )
    report = json.loads(VALIDATION.read_text())
    assert {finding["rule"]: finding["rows"] for finding in report["findings"]} == {"parses": 1, "api_keys": 1}
    assert "<html" in VALIDATION_PAGE.read_text(encoding="utf-8").lower()
    for path in (VALIDATION, VALIDATION_PAGE, DATA_DOCS, QUARANTINE):
        assert KEY not in path.read_text(encoding="utf-8")


def test_a_broken_suite_stops_the_run_with_all_its_slips_and_the_other_findings(gate):
    with pytest.raises(UserError) as error:
        gate(
            [*good_records(5), '{"messages": 5}'],
            edit=("column: n_", "colum: n_"),
            on_error="quarantine",
            max_quarantined=1,
        )
    report = {finding["rule"]: finding for finding in json.loads(VALIDATION.read_text())["findings"]}
    slips = {
        "no_empty_message",
        "within_context",
        "within_max_length",
        "short_response",
        "conflicting_responses",
        "near_duplicate_prompts",
    }
    assert slips | {"parses"} == set(report)
    assert all(name in str(error.value) for name in slips) and "fix this rule in data/expectations.yaml" in str(
        error.value
    )
    assert "<html" in VALIDATION_PAGE.read_text(encoding="utf-8").lower() and QUARANTINE.exists()


@pytest.mark.parametrize(
    "edit, fault",
    [
        (("be_null", "not_be_null"), "a critical rule that column error is null is missing"),
        (("severity: critical", "severity: warning"), "a critical rule that column error is null is missing"),
    ],
)
def test_a_suite_must_ask_whether_records_are_conversations(gate, edit, fault):
    text = (ROOT / SUITE).read_text().replace(*edit, 1)
    with pytest.raises(UserError, match=fault):
        gate(good_records(5), edit=((ROOT / SUITE).read_text(), text))


@pytest.mark.parametrize(
    "kind, asked, wrong",
    [
        ("expect_column_pair_values_to_be_equal", "{column_A: n_tokens, column_B: n_ovr}", "n_ovr"),
        ("expect_column_pair_values_to_be_equal", "{column_A: n_ovr, column_B: n_over}", "n_ovr"),
        ("expect_compound_columns_to_be_unique", "{column_list: [n_empty, n_ovr]}", "n_ovr"),
    ],
)
def test_a_slip_in_one_of_several_columns_is_reported(gate, kind, asked, wrong):
    rule = f"pair:\n  type: {kind}\n  kwargs: {asked}\n  severity: warning\n  advice: x\n"
    with pytest.raises(UserError, match=f"the signals have no column '{wrong}'; did you mean 'n_over'?"):
        gate(good_records(5), edit=("parses:", rule + "parses:"))


def test_a_suite_that_is_not_utf_8_is_reported_in_a_line(gate):
    gate(good_records(5))
    SUITE.write_bytes(b"\xff\xfe" + SUITE.read_bytes())
    with pytest.raises(UserError, match="^data/expectations.yaml: .*codec can't decode[^\n]*$"):
        validate.main()


def test_quarantined_rows_go_back_unchanged(gate):
    """Also those that a spreadsheet would take for formulas: they are text in a CSV, as they were in the source."""
    bad = ['=cmd("calc")', "+1", "-1", "@SUM(A1)", '{"messages": 5}']
    gate([*good_records(20), *bad], on_error="quarantine", max_quarantined=0.5)
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        assert [row["record"] for row in csv.DictReader(file)] == bad


def test_quarantine_sets_rows_aside_and_loses_none(gate):
    bad = ['{"messages": 5}', (TALK % 99).replace("At 7", f"Use {KEY}")]
    report = gate([*good_records(5), *bad, *good_records(40)[5:]], on_error="quarantine", max_quarantined=0.1)
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert report["quarantined"] == 2 == len(rows)
    assert [(row["row"], row["record"]) for row in rows] == [("6", bad[0]), ("7", bad[1])]
    assert rows[0]["why"].startswith("parses: ") and rows[1]["why"].startswith("api_keys: ")
    split.main()
    kept = [line for name in SPLITS for line in (SPLITS[name]).read_text().splitlines()]
    assert len(kept) == 40 and sorted(map(json.loads, kept), key=str) == sorted(
        map(json.loads, good_records(40)), key=str
    )


@pytest.mark.parametrize("bad", ["hello\r3", "\r", "a\r\n3,x", "\x00", '"', "3\n", "\u2028", ""])
def test_no_cell_hides_a_good_row_from_the_splits(gate, bad):
    """A carriage return without quotes once ended the quarantined record, and what followed it named another row."""
    gate([good_records(1)[0], bad, *good_records(9)[1:]], on_error="quarantine", max_quarantined=0.5)
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        assert [row["record"] for row in csv.DictReader(file)] == [bad]
    split.main()
    assert sum(len(path.read_text().splitlines()) for path in SPLITS.values()) == 9


def test_a_record_that_is_longer_as_json_is_quarantined(gate):
    table = pd.DataFrame({"prompt": [f"Is room {n} free?" for n in range(9)], "completion": ["Yes, it is."] * 9})
    # Each control character takes one byte in Parquet, and six in JSON.
    table["prompt"] = [*table["prompt"][:8], "\x01" * 700_000]
    table["completion"] = [*table["completion"][:8], " "]
    table["at"] = pd.Timestamp("2026-01-01")
    report = gate(table.to_parquet(), form="prompt_completion", on_error="quarantine", max_quarantined=0.5)
    split.main()
    assert report["quarantined"] == 1
    assert sum(len(path.read_text().splitlines()) for path in SPLITS.values()) == 8


# Cells that a reader, a writer or a shell may stumble over, and records that are nearly conversations.
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.sampled_from('\r\n\0"\\,;\t 3=\u2028\x85\ufeff{}[]'), max_size=12),
    st.builds(
        lambda text, end: TALK.replace("Pool %d?", json.dumps(text)[1:-1]) + end, st.text(), st.sampled_from("\r ")
    ),
)


@settings(
    suppress_health_check=list(HealthCheck), deadline=None, max_examples=4, derandomize=True, phases=[Phase.generate]
)
@given(st.lists(HOSTILE, min_size=20, max_size=60), st.randoms(use_true_random=False))
def test_rows_in_are_conversations_out_and_quarantined(gate, hostile, rng):
    cells = [*good_records(9), *hostile]
    rng.shuffle(cells)
    cells = [good_records(10)[9], *cells]
    raw = io.StringIO()
    csv.writer(raw, quoting=csv.QUOTE_ALL).writerows([cell] for cell in cells)
    report = gate(raw.getvalue().encode(), on_error="quarantine", max_quarantined=1)
    split.main()
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        aside = {int(row["row"]): row["record"] for row in csv.DictReader(file)}
    lines = [line for path in SPLITS.values() for line in path.read_bytes().splitlines()]
    assert report["rows"] == len(cells) == len(lines) + len(aside) and report["quarantined"] == len(aside)
    assert aside == {row: cells[row - 1] for row in aside}
    kept = [conversations.encode(conversations.decode(cell)) for n, cell in enumerate(cells, 1) if n not in aside]
    assert sorted(lines) == sorted(kept)


def test_too_many_quarantined_rows_stop_the_run(gate):
    with pytest.raises(UserError, match="2 of 12 rows would be quarantined, more than validate.max_quarantined 0.1"):
        gate([*good_records(10), "{}", "[]"], on_error="quarantine", max_quarantined=0.1)


def test_two_runs_write_the_same_bytes(gate):
    def outcome():
        gate([*good_records(5), (TALK % 9).replace("At 7.", "open until")])
        return [path.read_bytes() for path in (VALIDATION, VALIDATION_PAGE, DATA_DOCS, QUARANTINE)]

    assert outcome() == outcome()
