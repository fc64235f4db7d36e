"""The gate on tables of records beside metadata, and of a row for each message."""

import json

import pandas as pd
import pytest

from stages.core.cli import UserError
from stages.core.paths import CONVERSATIONS, QUARANTINE
from tests.conftest import good_records
from tests.support.sources import as_csv

TURNS = "turns\n      turns: {conversation: id, role: role, content: text}"


def test_a_finding_names_the_column_of_the_records(gate):
    rows = [["id", "messages"], *([n, record] for n, record in enumerate(good_records(20))), [20, '{"messages": 5}']]
    with pytest.raises(UserError) as error:
        gate(as_csv(*rows))
    assert "row 22, column messages: Expected `array`, got `int` - at `$.messages`" in str(error.value)


def talks(count):
    for n in range(count):
        yield [f"c{n}", "user", f"Is room {n} with a view of the sea still free in the week of the fair?"]
        yield [f"c{n}", "assistant", f"Yes, room {n} is free, and breakfast is included."]


def test_a_broken_conversation_is_quarantined_with_all_its_rows(gate):
    rows = [["id", "role", "text"], *talks(20), ["x", "user", "Open?"], ["x", "robot", "Yes."]]
    report = gate(as_csv(*rows), form=TURNS, on_error="quarantine", max_quarantined=0.5)
    assert (report["rows"], report["quarantined"]) == (21, 1)
    assert len(CONVERSATIONS.read_text(encoding="utf-8").splitlines()) == 20
    (kept,) = pd.read_csv(QUARANTINE, dtype=str).to_dict("records")
    assert (kept["row"], kept["text"], json.loads(kept["more"])) == ("42", "Open?", ['["x","robot","Yes."]'])
    assert "Invalid enum value 'robot'" in kept["why"]


def test_an_empty_system_message_and_an_empty_result_are_no_findings(gate):
    call = {"id": "1", "type": "function", "function": {"name": "free", "arguments": "{}"}}
    system = {"role": "system", "content": ""}
    odd = [
        {"messages": [system, *json.loads(good_records(20)[0])["messages"]]},
        {"messages": [{"role": "user", "content": "Is room 5 free this week?"},
                      {"role": "assistant", "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": "1", "content": ""},
                      {"role": "assistant", "content": "Yes, room 5 is free this week."}]},
    ]  # fmt: skip
    try:
        report = gate([*good_records(20)[1:], *map(json.dumps, odd)])
        said = str(report)
    except UserError as error:
        # The small model's template may not show calls, which is another finding.
        said = str(error)
    assert "no_empty_message" not in said
