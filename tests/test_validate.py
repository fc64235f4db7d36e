import csv
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from stages import parse, split, validate
from stages.command import UserError
from stages.content import NAMES
from stages.neighbours import SKETCH_BYTES, matrix, sketch
from stages.paths import QUARANTINE, RAW, SPLITS, SUITE, VALIDATION, VALIDATION_PAGE

from .conftest import ROOT

RULES, FAULTS = validate.read_suite(ROOT / SUITE)
GOOD = {
    "error": None,
    "label": None,
    "roles": "sua",
    "n_empty": 0,
    "n_tokens": 20,
    "n_over": 0,
    "n_response": 30,
    "system_hash": "s",
    "language": "en",
    **dict.fromkeys(NAMES, 0),
}


def signals(**changes):
    """Signals of four good rows; `changes` is what is different in the second, which is row 12 of the source."""
    hashes = [{name: f"{name}{n}" for name in ("prompt_hash", "response_hash", "conversation_hash")} for n in range(4)]
    rows = [{"row": 11 + n, **GOOD, **hashes[n]} for n in range(4)]
    rows[1] |= changes
    return pd.DataFrame(rows).set_index("row")


def found(frame, rules=RULES, prompts="abcd"):
    """Findings; `prompts` are the prompts of the rows, of which some can be equal."""
    sketches = [sketch(prompt * 9) for prompt, valid in zip(prompts, frame["error"].isna(), strict=False) if valid]
    frame = validate.compared(frame, matrix(pa.chunked_array([sketches], pa.binary(SKETCH_BYTES))))
    return validate.findings(validate.check(frame, rules), rules, frame)


def test_good_rows_pass():
    assert found(signals()) == [] and FAULTS == []
    assert found(signals(roles="suaua", language=None)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"roles": "ua"},  # no system message at all
        {"roles": "suatataua"},  # tools answer between the assistant's turns
        {"roles": "suata"},
        {"n_tokens": 10_000_000, "n_over": 0},  # long, and within what the model reads
        {"n_response": 2},  # "Yes."
        {"language": None},  # too short to tell
    ],
)
def test_rows_that_only_look_odd_pass(changes):
    assert found(signals(**changes)) == []


BROKEN = {name: None for name in GOOD} | {"prompt_hash": None, "response_hash": None, "conversation_hash": None}


@pytest.mark.parametrize(
    "rule, severity, changes",
    [
        ("parses", "critical", {**BROKEN, "error": "JSON is malformed"}),
        ("labelled", "warning", {"label": ""}),
        ("alternating_roles", "critical", {"roles": "suuaa"}),
        ("system_first", "critical", {"roles": "usa"}),
        ("system_first", "critical", {"roles": "ssua"}),
        ("user_before_assistant", "critical", {"roles": "saua"}),
        ("ends_with_response", "critical", {"roles": "su"}),
        ("ends_with_response", "critical", {"roles": ""}),
        ("no_empty_message", "critical", {"n_empty": 1}),
        ("within_context", "critical", {"n_over": 1}),
        ("short_response", "warning", {"n_response": 1}),
        ("unfinished_response", "warning", {"unfinished": 1}),
        ("mojibake", "warning", {"mojibake": 1}),
        ("control_characters", "warning", {"control": 1}),
        ("replacement_characters", "warning", {"replacement": 1}),
        ("template_markers", "warning", {"template": 1}),
        ("special_tokens", "critical", {"special_token": 1}),
        ("email_addresses", "warning", {"email": 1}),
        ("phone_numbers", "warning", {"phone": 1}),
        ("card_numbers", "critical", {"card": 1}),
        ("api_keys", "critical", {"api_key": 1}),
        ("one_system_prompt", "info", {"system_hash": "t"}),
        ("one_language", "info", {"language": "fr"}),
    ],
)
def test_each_rule_finds_its_row(rule, severity, changes):
    (finding,) = found(signals(**changes))
    assert (finding["rule"], finding["severity"], finding["rows"]) == (rule, severity, [12])


def test_rules_about_several_rows_name_all_of_them():
    (finding,) = found(signals(prompt_hash="prompt_hash0"))
    assert (finding["rule"], finding["rows"]) == ("conflicting_responses", [11, 12])
    (finding,) = found(signals(), prompts="aacd")
    assert (finding["rule"], finding["rows"]) == ("near_duplicate_prompts", [11, 12])
    (finding,) = found(signals(conversation_hash="conversation_hash0"))
    assert (finding["rule"], finding["rows"]) == ("duplicates", [11, 12])
    assert found(signals(prompt_hash="prompt_hash0", response_hash="response_hash0")) == []


def test_too_few_rows():
    (finding,) = found(signals()[:2])
    assert (finding["rule"], finding["severity"], finding["rows"]) == ("enough_conversations", "critical", [])


def test_every_rule_of_the_suite_is_tested():
    marks = test_each_rule_finds_its_row.pytestmark[0].args[1]
    tested = {rule for rule, *_ in marks} | {"duplicates", "conflicting_responses", "near_duplicate_prompts"}
    assert tested | {"enough_conversations", "few_labels"} == set(RULES)


def test_a_label_for_each_row_is_too_many():
    labels = [f"label {number}" for number in range(51)]
    prompts = [chr(97 + number) for number in range(51)]
    many = pd.concat([signals()[:1]] * 51, ignore_index=True).assign(
        label=labels, prompt_hash=prompts, conversation_hash=prompts
    )
    (finding,) = found(many.rename_axis("row"), prompts=prompts)
    assert (finding["rule"], finding["severity"]) == ("few_labels", "critical")
    assert found(many[:50].rename_axis("row"), prompts=prompts) == []


def test_a_rule_that_raises_is_critical():
    rule = {**RULES["duplicates"], "kwargs": {"column": "no_such_column"}}
    (finding,) = found(signals(), {"typo": rule})
    assert finding["severity"] == "critical" and "no_such_column" in finding["reason"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "values_to_be_null",
            "values_to_be_nul",
            "knows no 'expect_column_values_to_be_nul'; did you mean 'expect_column_values_to_be_null'?",
        ),
        ("severity: warning", "severity: warnin", "severity 'warnin'; did you mean 'warning'?"),
        ("severity: warning", "severty: warning", "expected the keys advice, kwargs, severity, type"),
        ("column: n_empty", "column: n_emty", "the signals have no column 'n_emty'; did you mean 'n_empty'?"),
        ("    max_value: 0", "    max_valu: 0", "refuses its arguments"),
        ("column: error\n  severity: critical", "column: error\n  severity: info", "critical rule"),
    ],
)
def test_a_rule_with_a_slip_is_a_critical_finding(project, old, new, message):
    text = (ROOT / SUITE).read_text()
    assert old in text
    SUITE.parent.mkdir()
    SUITE.write_text(text.replace(old, new))
    rules, faults = validate.read_suite(SUITE)
    assert message in faults[0]["reason"] and {fault["severity"] for fault in faults} == {"critical"}
    assert not {fault["rule"] for fault in faults if fault["rule"] != "parses"} & set(rules)


@pytest.mark.parametrize(
    "old, new, message",
    [("parses:", "parses: [", str(SUITE)), ("mojibake:\n", "api_keys:\n", "'api_keys' stands twice")],
)
def test_a_suite_that_cannot_be_read_is_refused(project, old, new, message):
    SUITE.parent.mkdir()
    SUITE.write_text((ROOT / SUITE).read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        validate.read_suite(SUITE)


def test_an_empty_suite_is_refused(project):
    Path("empty.yaml").write_text("")
    with pytest.raises(UserError, match="an empty suite would let everything pass"):
        validate.read_suite(Path("empty.yaml"))


TALK = '{"messages": [{"role": "user", "content": "Pool %d?"}, {"role": "assistant", "content": "At 7."}]}'
KEY = "sk-" + "a1B2" * 8


@pytest.fixture
def gate(base):
    """gate(records, **params) runs parse and validate over these records of a CSV, with `edit` made to the suite."""

    def run(records, edit=("", ""), form="messages", **knobs):
        text = Path("params.yaml").read_text().replace("format: messages", f"format: {form}", 1)
        for key, value in knobs.items():
            text = re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text)
        Path("params.yaml").write_text(text)
        SUITE.parent.mkdir(exist_ok=True)
        SUITE.write_text((ROOT / SUITE).read_text().replace(*edit))
        with RAW.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([record] if isinstance(record, str) else record for record in records)
        parse.main()
        validate.main()
        return json.loads(VALIDATION.read_text())

    return run


def good(count):
    return [TALK % n for n in range(count)]


def test_the_gate_stops_with_all_findings_and_writes_its_reports_first(gate):
    with pytest.raises(UserError) as error:
        gate([*good(5), '{"messages": 5}', (TALK % 9).replace("At 7", f"Use {KEY}")])
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
    for path in (VALIDATION, VALIDATION_PAGE, QUARANTINE):
        assert KEY not in path.read_text(encoding="utf-8")


def test_a_broken_suite_stops_the_run_with_all_its_slips_and_the_other_findings(gate):
    with pytest.raises(UserError) as error:
        gate([*good(5), '{"messages": 5}'], edit=("column: n_", "colum: n_"), on_error="quarantine", max_quarantined=1)
    report = {finding["rule"]: finding for finding in json.loads(VALIDATION.read_text())["findings"]}
    slips = {"no_empty_message", "within_context", "short_response", "conflicting_responses", "near_duplicate_prompts"}
    assert slips | {"parses"} == set(report)
    assert all(name in str(error.value) for name in slips) and "mend this rule in data/expectations.yaml" in str(
        error.value
    )
    assert "<html" in VALIDATION_PAGE.read_text(encoding="utf-8").lower() and QUARANTINE.exists()


def test_each_finding_names_column_and_place(gate):
    def talk(*turns):
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})

    ask, answer = ("user", "Is the pool open at night?"), ("assistant", "It closes at ten.")
    records = [
        talk(ask, ("assistant", "  "), ask, answer),
        talk(("user", "Where is the garage?"), answer, answer),
        talk(("user", "Where is the garden?"), ("assistant", "I")),
        talk(("user", "May I bring a dog?"), ("assistant", "Dogs are welcome.")),
        talk(("user", "May I bring a dog?"), ("assistant", "Dogs are not welcome.")),
        talk(("user", "When is breakfast served?"), ("assistant", "From seven.")),
        talk(("user", "When is breakfast served?"), ("assistant", "From seven.")),
        *good(5),
    ]
    described = []
    with pytest.raises(UserError) as error, pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "notice", described.append)
        gate(records)
    text = "\n".join([str(error.value), *described])
    assert "row 1, column A: message 2 (assistant): ‹  ›" in text
    assert "row 2, column A: roles: user ‹assistant assistant›" in text
    assert "row 3, column A: message 2 (assistant): ‹I›" in text
    assert "row 4, column A: another response to the same prompt as in row 5" in text
    assert "row 6, column A: the same as in row 7" in text


def test_a_finding_in_a_table_names_its_column(gate):
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "notice", told.append)
        table = [["question", "answer"], *([f"Is room {n} free?", f"Room {n} is free."] for n in range(5))]
        table.append(["Who may I write to?", "Write to desk@example.org."])
        form = "columns\n      columns: {user: question, assistant: answer}"
        gate(table, form=form)
    assert "row 7, column answer: message 2 (assistant): Write to ‹de•••›." in "\n".join(told)


def test_quarantined_rows_go_back_unchanged(gate):
    """Also those that a spreadsheet would take for formulas: they are text in a CSV, as they were in the source."""
    bad = ['=cmd("calc")', "+1", "-1", "@SUM(A1)", '{"messages": 5}']
    gate([*good(20), *bad], on_error="quarantine", max_quarantined=0.5)
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        assert [row["record"] for row in csv.DictReader(file)] == bad


def test_one_fault_in_every_row_is_told_once(gate):
    with pytest.raises(UserError) as error:
        gate(["(" + record[1:] for record in good(20)])
    lines = [line for line in str(error.value).splitlines() if "row" in line and "malformed" in line]
    assert len(lines) == 1 and "saw ‹(›" in lines[0] and "and 19 more rows with this fault" in lines[0]


def test_quarantine_sets_rows_aside_and_loses_none(gate):
    bad = ['{"messages": 5}', (TALK % 99).replace("At 7", f"Use {KEY}")]
    report = gate([*good(5), *bad, *good(40)[5:]], on_error="quarantine", max_quarantined=0.1)
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert report["quarantined"] == 2 == len(rows)
    assert [(row["row"], row["record"]) for row in rows] == [("6", bad[0]), ("7", bad[1])]
    assert rows[0]["why"].startswith("parses: ") and rows[1]["why"].startswith("api_keys: ")
    split.main()
    kept = [line for name in SPLITS for line in (SPLITS[name]).read_text().splitlines()]
    assert len(kept) == 40 and sorted(map(json.loads, kept), key=str) == sorted(map(json.loads, good(40)), key=str)


def test_too_many_quarantined_rows_stop_the_run(gate):
    with pytest.raises(UserError, match="2 of 12 rows would be quarantined, more than validate.max_quarantined 0.1"):
        gate([*good(10), "{}", "[]"], on_error="quarantine", max_quarantined=0.1)


def test_two_runs_write_the_same_bytes(gate):
    def outcome():
        gate([*good(5), (TALK % 9).replace("At 7.", "until")])
        return [path.read_bytes() for path in (VALIDATION, VALIDATION_PAGE, QUARANTINE)]

    assert outcome() == outcome()
