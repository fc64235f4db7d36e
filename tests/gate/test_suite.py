from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest

from stages import validate
from stages.core.cli import UserError
from stages.core.paths import SUITE
from stages.dataset.conversations import Conversation, Message
from stages.dataset.formats import Record
from stages.dataset.inspector import NAMES
from stages.dataset.near_duplicates import SKETCH_BYTES, matrix, sketch
from stages.dataset.signals import Signaller
from stages.gate import findings, suite
from tests.conftest import ROOT

GOOD = {
    "error": None,
    "label": None,
    "roles": "sua",
    "n_empty": 0,
    "n_tokens": 20,
    "n_over": 0,
    "n_too_long": 0,
    "n_response": 30,
    "system_hash": "s",
    "language": "en",
    **dict.fromkeys(NAMES, 0),
}
COLUMNS = [*GOOD, "prompt_hash", "response_hash", "conversation_hash"]
COLUMNS += ["n_responses", "n_near", "group_share", "other_system", "other_language"]
RULES, FAULTS = suite.read_suite(ROOT / SUITE, COLUMNS)


def signals(**changes):
    """Signals of four good rows; `changes` is what is different in the second, which is row 12 of the source."""
    hashes = [{name: f"{name}{n}" for name in ("prompt_hash", "response_hash", "conversation_hash")} for n in range(4)]
    rows = [{"row": 11 + n, **GOOD, **hashes[n]} for n in range(4)]
    rows[1] |= changes
    return pd.DataFrame(rows).set_index("row")


def found(frame, rules=None, prompts="abcd"):
    """Findings; `prompts` are the prompts of the rows, of which some can be equal."""
    sketches = [sketch(prompt * 9) for prompt, valid in zip(prompts, frame["error"].isna(), strict=False) if valid]
    frame = validate.compared(frame, matrix(pa.chunked_array([sketches], pa.binary(SKETCH_BYTES))))
    return findings.findings(suite.check(frame, rules or RULES), rules or RULES)


def test_good_rows_pass():
    assert found(signals()) == [] and FAULTS == []
    assert found(signals(roles="suaua", language=None)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"roles": "ua"},  # no system message at all
        {"roles": "suatataua"},  # tools answer between the assistant's turns
        {"roles": "suata"},
        {"roles": "uatta"},  # two calls at once, and an answer to each
        {"roles": "suauaua"},  # one system message, and many after it
        {"label": "(no label)"},
        {"label": "0"},
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
        ("user_before_assistant", "critical", {"roles": "ta"}),
        ("user_before_assistant", "critical", {"roles": "sta"}),
        ("user_before_assistant", "critical", {"roles": "sa"}),
        ("alternating_roles", "critical", {"roles": "uta"}),
        ("alternating_roles", "critical", {"roles": "suauta"}),
        ("ends_with_response", "critical", {"roles": "su"}),
        ("ends_with_response", "critical", {"roles": ""}),
        ("no_empty_message", "critical", {"n_empty": 1}),
        ("within_context", "critical", {"n_over": 1}),
        ("within_max_length", "critical", {"n_too_long": 1}),
        ("short_response", "warning", {"n_response": 1}),
        ("something_to_learn", "warning", {"unlearned": 1}),
        ("known_tools", "critical", {"unknown_tool": 1}),
        ("valid_arguments", "critical", {"invalid_arguments": 1}),
        ("results_of_calls", "critical", {"unmatched_result": 1}),
        ("answered_calls", "critical", {"unanswered_call": 1}),
        ("no_value", "critical", {"no_value": 1}),
        ("repeated_question", "warning", {"echo": 1}),
        ("placeholders", "warning", {"placeholder": 1}),
        ("token_names", "info", {"token_name": 1}),
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


def signalled(*messages):
    """The signals of one conversation, for a model that reads all as nine tokens."""
    reader = SimpleNamespace(
        context=100,
        special_tokens=[],
        control_tokens=[],
        counts=lambda talks: [9] * len(talks),
        lengths=lambda texts: [9] * len(texts),
    )
    (row,) = Signaller(reader).rows([Record(12, Conversation(messages))])
    return row


@pytest.mark.parametrize("said", [{"content": "."}, {"content": "\u200b🙂"}, {"tool_calls": [{"function": {}}]}])
def test_a_message_that_says_little_is_not_empty(said):
    row = signalled(Message("user", "Is there a pool?"), Message("assistant", **said))
    assert found(signals(n_empty=row["n_empty"])) == []


def test_other_turns_under_one_system_prompt_are_no_other_prompt():
    system, rest = Message("system", "Be kind."), (Message("user", "Be brief."), Message("assistant", "Yes."))
    hashes = [signalled(system, *turns)["system_hash"] for turns in (rest, rest * 2)]
    assert found(signals().assign(system_hash=[hashes[0]] * 3 + [hashes[1]])) == []
    assert signalled(*rest)["system_hash"] != hashes[0]


def test_prompts_that_begin_alike_are_not_near():
    one, two = "When is breakfast served in the garden?", "When is the last train to the airport on a Sunday?"
    assert found(signals(), prompts=[one, two, "c" * 9, "d" * 9]) == []


def test_three_rows_are_enough():
    assert found(signals()[:3]) == []


def test_too_few_rows():
    (finding,) = found(signals()[:2])
    assert (finding["rule"], finding["severity"], finding["rows"]) == ("enough_conversations", "critical", [])


def test_every_rule_of_the_suite_is_tested():
    marks = test_each_rule_finds_its_row.pytestmark[0].args[1]
    tested = {rule for rule, *_ in marks} | {"duplicates", "conflicting_responses", "near_duplicate_prompts"}
    tested |= {"no_large_group", "mostly_answers", "mostly_something_to_learn"}
    assert tested | {"enough_conversations", "few_labels"} == set(RULES)


@pytest.mark.parametrize(
    "signal, rules",
    [
        ("echo", ["repeated_question", "mostly_answers"]),
        ("unlearned", ["something_to_learn", "mostly_something_to_learn"]),
    ],
)
def test_what_is_odd_in_a_row_is_a_fault_in_most_of_them(signal, rules):
    half = [one["rule"] for one in found(signals().assign(**{signal: [0, 1, 1, 0]}))]
    most = [one["rule"] for one in found(signals().assign(**{signal: [1, 1, 1, 0]}))]
    assert half == rules[:1] and most == rules


def test_a_group_of_more_than_half_of_the_rows_is_a_finding():
    assert [one["rule"] for one in found(signals(), prompts="aabc")] == ["near_duplicate_prompts"]
    (_, finding) = found(signals(), prompts="aaab")
    assert (finding["rule"], finding["severity"], finding["rows"]) == ("no_large_group", "warning", [11, 12, 13])
    assert "move what they share into the system message" in finding["advice"]


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
    rules, faults = suite.read_suite(SUITE, COLUMNS)
    assert message in faults[0]["reason"] and {fault["severity"] for fault in faults} == {"critical"}
    assert not {fault["rule"] for fault in faults if fault["rule"] != "parses"} & set(rules)


@pytest.mark.parametrize(
    "old, new, message",
    [("parses:", "parses: [", str(SUITE)), ("mojibake:\n", "api_keys:\n", "'api_keys' is repeated")],
)
def test_a_suite_that_cannot_be_read_is_refused(project, old, new, message):
    SUITE.parent.mkdir()
    SUITE.write_text((ROOT / SUITE).read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        suite.read_suite(SUITE, COLUMNS)


def test_an_empty_suite_is_refused(project):
    Path("empty.yaml").write_text("")
    with pytest.raises(UserError, match="an empty suite would let everything pass"):
        suite.read_suite(Path("empty.yaml"), COLUMNS)
