"""Chats of other interfaces come through as OpenAI's, and what changes a conversation is never lost."""

import json

import msgspec
import pytest

from stages.core.cli import UserError
from stages.dataset import conversations, formats
from tests.support.sources import CALL, TALK, as_csv, read, record, source, talk

pytestmark = pytest.mark.usefixtures("here")

ASK, SAY = {"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}
SAID = talk(("user", "Open?"), ("assistant", "Yes."))
KIND = talk(("system", "Be kind."), ("user", "Open?"), ("assistant", "Yes."))


def one(value, shape="messages", **given):
    """The only record's outcome."""
    # A second record, so that an odd one is an error of its row.
    good = {
        "messages": {"messages": [ASK, SAY]},
        "sharegpt": {"conversations": [{"from": "human", "value": "Open?"}, {"from": "gpt", "value": "Yes."}]},
        "alpaca": {"instruction": "Open?", "input": "", "output": "Yes."},
        "prompt_completion": {"prompt": "Open?", "completion": "Yes."},
    }[shape]
    found, _ = read(f"{json.dumps(value)}\n{json.dumps(good)}\n".encode(), source(shape, **given))
    return found


@pytest.mark.parametrize(
    "value, expected",
    [
        ([ASK, SAY], SAID),
        ({"conversations": [ASK, SAY]}, SAID),
        ({"conversation": [ASK, SAY], "id": "x"}, SAID),
        ({"messages": json.dumps([ASK, SAY])}, SAID),
        ({"messages": [{"from": "human", "value": "Open?"}, {"from": "gpt", "value": "Yes."}]}, SAID),
        ({"messages": [{**ASK, "role": "User"}, {**SAY, "role": "ASSISTANT"}]}, SAID),
        ({"system": "Be kind.", "messages": [ASK, SAY]}, KIND),
        (
            {"system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}], "messages": [ASK, SAY]},
            KIND,
        ),
        ({"system": "", "messages": [ASK, SAY]}, SAID),
        ({"system": "Be kind.", "messages": [{"role": "system", "content": "Be kind."}, ASK, SAY]}, KIND),
        ({"messages": [{"role": "developer", "content": "Be kind."}, ASK, SAY]}, KIND),
        ({"messages": [ASK, {**SAY, "refusal": None, "annotations": [], "audio": None, "weight": 1.0}]}, None),
    ],
)
def test_a_chat_in_another_form_is_the_same_conversation(value, expected):
    found = one(value)
    assert found.error is None
    if expected is None:
        assert found.conversation.messages[-1].weight == 1 and type(found.conversation.messages[-1].weight) is int
    else:
        assert found.conversation == expected


@pytest.mark.parametrize("name", ["user", "human", "prompter", "Customer"])
@pytest.mark.parametrize("other", ["assistant", "gpt", "bot", "ai", "model", "chatgpt", "agent"])
def test_roles_have_synonyms(name, other):
    assert one({"messages": [{**ASK, "role": name}, {**SAY, "role": other}]}).conversation == SAID


def test_other_names_of_speakers_are_declared():
    value = {"messages": [{**ASK, "role": "Kim"}, {**SAY, "role": "Desk"}]}
    assert "Invalid enum value 'Kim'" in one(value).error
    assert one(value, roles={"Kim": "user", "Desk": "assistant"}).conversation == SAID


@pytest.mark.parametrize(
    "value, reason",
    [
        (
            {"messages": [ASK, SAY], "images": ["a.png"]},
            "The key `images` changes the conversation and is never ignored",
        ),
        ({"messages": [ASK, SAY], "rejected": {"from": "gpt"}}, "The key `rejected` changes"),
        ({"messages": [ASK, SAY], "history": [["a", "b"]]}, "The key `history` changes"),
        ({"messages": [ASK, {**SAY, "refusal": "I cannot."}]}, "The key `refusal` changes"),
        ({"messages": [ASK, {**SAY, "audio": {"id": "1"}}]}, "The key `audio` changes"),
        ({"messages": [{**ASK, "content": [{"type": "image_url", "image_url": {}}]}, SAY]}, "is of type `image_url`"),
        ({"messages": [{**ASK, "content": [{"type": "input_audio"}]}, SAY]}, "is of type `input_audio`"),
        ({"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]}, "is of type `inlineData`"),
        (
            {"system": "Be kind.", "messages": [{"role": "system", "content": "Be rude."}, ASK, SAY]},
            "two different system",
        ),
        ({"messages": [ASK, {**SAY, "reasoning_content": "Hm."}]}, "reasoning: drop"),
        (5, "Expected `object`, got `int`"),
        ({"messages": {"role": "user"}}, "Expected `array`, got `object` - at `$.messages`"),
        ({"messages": [ASK, 5]}, "Expected `object`, got `int` - at `$.messages[1]`"),
        ({"messages": [ASK, {**SAY, "weight": 0.5}]}, "Expected `int"),
    ],
)
def test_what_changes_a_conversation_is_never_ignored(value, reason):
    found = one(value)
    assert found.conversation is None and reason in found.error


@pytest.mark.parametrize("shape, value", [
    ("alpaca", {"instruction": "Open?", "output": "Yes.", "images": ["a.png"]}),
    ("alpaca", {"instruction": "Open?", "output": "Yes.", "tools": [{"name": "f"}]}),
    ("prompt_completion", {"prompt": "Open?", "completion": "Yes.", "rejected": "No."}),
    ("prompt_completion", {"prompt": "Open?", "completion": "Yes.", "history": [["a", "b"]]}),
    ("prompt_completion", {"prompt": "Open?", "completion": "Never.", "label": False}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Open?"}], "images": ["a.png"]}),
])  # fmt: skip
def test_the_rule_holds_for_all_formats(shape, value):
    assert "changes the conversation and is never ignored" in one(value, shape).error


def test_the_rule_holds_for_tables():
    columns = {"user": "q", "assistant": "a"}
    raw = as_csv(["q", "a", "system"], ["Open?", "Yes.", ""], ["Open?", "Yes.", "Be kind."])
    first, second = read(raw, source("columns", columns=columns))
    assert first.conversation == SAID and "`system` changes the conversation" in second.error
    declared = source("columns", columns={**columns, "system": "system"})
    assert [found.conversation for found in read(raw, declared)] == [SAID, KIND]


def test_metadata_is_named_once_with_its_count_and_a_declaration_silences_it(capsys):
    lines = [{"messages": [ASK, SAY], "id": n, "source": "web" if n else None} for n in range(3)]
    raw = "\n".join(map(json.dumps, lines)).encode()
    assert [found.conversation for found in read(raw)] == [SAID] * 3
    (said,) = capsys.readouterr().out.splitlines()
    assert "id (3), source (2)" in said and 'data.sources.*.ignore: ["id", "source"]' in said
    read(raw, source(ignore=["id", "source"]))
    assert capsys.readouterr().out == ""


def test_metadata_of_a_table_and_of_messages_is_named(capsys):
    raw = as_csv(["n", "q", "a", ""], ["1", "Open?", "Yes.", ""], ["", "Shut?", "No.", ""])
    read(raw, source("columns", columns={"user": "q", "assistant": "a"}))
    assert "number of records: n (1);" in capsys.readouterr().out
    one({"messages": [{**ASK, "timestamp": 5}, SAY]})
    assert "messages.timestamp (1)" in capsys.readouterr().out


def test_the_names_of_metadata_are_masked_and_bounded(capsys):
    key = "sk-" + "a1B2" * 8
    one({"messages": [ASK, SAY], key: 1, "a\x1b[31m": 1, **{f"k{n}": 1 for n in range(5_000)}})
    (said,) = capsys.readouterr().out.splitlines()
    assert key not in said and said.isprintable() and len(said) < 2_000 and " more" in said


def test_legacy_calls_become_tool_calls_with_ids():
    value = {
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": '{"c": "Oslo"}'}},
            {"role": "function", "name": "w", "content": "4 C"},
            SAY,
        ],
        "functions": [{"name": "w", "parameters": {}}],
    }
    found = json.loads(conversations.encode(one(value).conversation))
    call = {"id": "call_1", "type": "function", "function": {"name": "w", "arguments": '{"c": "Oslo"}'}}
    assert found["messages"][1] == {"role": "assistant", "tool_calls": [call]}
    assert found["messages"][2] == {"role": "tool", "content": "4 C", "tool_call_id": "call_1"}
    assert found["tools"] == [{"type": "function", "function": {"name": "w", "parameters": {}}}]


def test_results_answer_open_calls_by_name_and_in_order():
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b", "a")]
    results = [{"role": "tool", "name": name, "content": str(n)} for n, name in enumerate(("b", "a", "a"))]
    found = one({"messages": [ASK, {"role": "assistant", "tool_calls": calls}, *results, SAY]}).conversation
    assert [message.tool_call_id for message in found.messages[2:5]] == ["call_2", "call_1", "call_3"]
    assert found.messages[1].tool_calls[0]["function"]["arguments"] == "{}"


def test_a_result_without_a_call_stays_for_the_gate_to_see():
    found = one({"messages": [ASK, {"role": "tool", "content": "4 C"}, SAY]}).conversation
    assert found.messages[1].tool_call_id is None


def test_calls_results_and_tools_of_other_interfaces():
    shared = {"type": "function", "function": {"name": "w", "arguments": '{"city":"Oslo"}'}}
    anthropic = {
        "system": "Be kind.",
        "tools": [{"name": "w", "description": "d", "input_schema": {"type": "object"}}],
        "messages": [
            ASK,
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "t1", "name": "w", "input": {"city": "Oslo"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4 C"}]},
                {"type": "text", "text": "And?"},
            ]},
            SAY,
        ],
    }  # fmt: skip
    found = one(anthropic).conversation
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "tool", "user", "assistant"]
    assert found.messages[2].text == "Let me look." and found.messages[2].tool_calls == [{"id": "t1", **shared}]
    assert (found.messages[3].text, found.messages[3].tool_call_id) == ("4 C", "t1")
    function = {"name": "w", "description": "d", "parameters": {"type": "object"}}
    assert found.tools == [{"type": "function", "function": function}]
    gemini = {
        "contents": [
            {"role": "user", "parts": [{"text": "Open?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "w", "args": {"city": "Oslo"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "w", "response": {"t": 4}}}]},
            {"role": "model", "parts": [{"text": "Yes"}, {"text": "."}]},
        ]
    }
    found = one(gemini).conversation
    assert found.messages[1].tool_calls == [{"id": "call_1", **shared}]
    assert (found.messages[2].role, found.messages[2].text, found.messages[2].tool_call_id) == (
        "tool",
        '{"t":4}',
        "call_1",
    )
    assert found.messages[3].text == "Yes."


def test_sharegpt_with_calls_observations_and_tools():
    value = {
        "conversations": [
            {"from": "human", "value": "Open?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": '{"y": 2}'},
            {"from": "gpt", "value": "Yes."},
        ],
        "system": "Be kind.",
        "tools": '[{"name": "f", "parameters": {}}]',
    }
    found = one(value, "sharegpt").conversation
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2].tool_calls[0]["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert found.messages[3].tool_call_id == "call_1" and found.tools[0]["function"]["name"] == "f"


def test_train_decides_what_is_learned_as_weight_does():
    turns = [{"from": "human", "value": "Open?"}, {"from": "gpt", "value": "Hm.", "train": False}] * 2
    found = one({"conversations": turns}, "sharegpt").conversation
    assert [message.weight for message in found.messages] == [None, 0, None, 0]


@pytest.mark.parametrize("part", [{"reasoning_content": "Hm."}, {"thinking": "Hm."}, {"content": [
    {"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]}])  # fmt: skip
def test_reasoning_is_dropped_or_learned_as_declared(part):
    value = {"messages": [ASK, {**SAY, **part}]}
    assert one(value, reasoning="drop").conversation == SAID
    assert one(value, reasoning="learn").conversation.messages[-1].text == "<think>\nHm.\n</think>\n\nYes."


def test_a_record_in_openais_form_is_kept_as_it_is_written():
    turns = [
        ASK,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        SAY,
    ]
    line = json.dumps({"messages": turns}, separators=(",", ":")).encode()
    assert conversations.encode(read(line + b"\n" + line)[0].conversation) == line


def test_records_beside_metadata_a_system_prompt_and_tools_in_a_table(capsys):
    tools = json.dumps([{"name": "f"}])
    rows = [[7, json.dumps([ASK, SAY]), "Be kind.", tools], [8, record(*TALK), "", ""]]
    first, second = read(as_csv(["id", "messages", "system", "tools"], *rows))
    assert first.conversation.messages == KIND.messages and first.conversation.tools[0]["function"] == {"name": "f"}
    assert (second.row, second.conversation) == (3, talk(*TALK)) and "id (2)" in capsys.readouterr().out


def test_a_column_of_records_may_have_any_name():
    raw = as_csv(["id", "Chat (JSON)"], ["1", record(*TALK)], ["2", record(*TALK)])
    assert [(found.row, found.error) for found in read(raw)] == [(2, None), (3, None)]
    raw = as_csv(["Chat / verlauf (JSON), 2026:"], [record(*TALK)])
    assert [(found.row, found.error) for found in read(raw)] == [(2, None)]


def test_history_and_system_of_alpaca_are_earlier_turns():
    value = {"instruction": "And on Sunday?", "input": "", "output": "Shut.", "system": "Be kind.",
             "history": [["Open?", "Yes."]]}  # fmt: skip
    found = one(value, "alpaca").conversation
    assert found == talk(("system", "Be kind."), ("user", "Open?"), ("assistant", "Yes."),
                         ("user", "And on Sunday?"), ("assistant", "Shut."))  # fmt: skip
    raw = as_csv(["instruction", "output", "history"], ["Why?", "So.", '[["Open?", "Yes."]]'], ["Who?", "I.", ""])
    assert [len(found.conversation.messages) for found in read(raw, source("alpaca"))] == [4, 2]
    assert "list of pairs" in one({**value, "history": [["Open?"]]}, "alpaca").error


@pytest.mark.parametrize("prompt, completion", [([ASK], [SAY]), ([ASK], "Yes."), ("Open?", [SAY])])
def test_prompt_and_completion_may_be_lists_of_messages(prompt, completion):
    value = {"prompt": prompt, "completion": completion}
    assert one(value, "prompt_completion").conversation == SAID
    assert one({**value, "system": "Be kind."}, "prompt_completion").conversation == KIND


def test_a_key_that_changes_the_conversation_cannot_be_declared_as_metadata():
    for name in ("history", "system", "tools", "rejected", "images"):
        with pytest.raises(ValueError, match=f"ignore: '{name}' changes the conversation and is never ignored"):
            source(ignore=["id", name])


def test_an_error_of_all_records_ends_in_the_declaration_that_reads_them():
    raw = as_csv(["Question", "Answer"], ["Open?", "Yes."])
    with pytest.raises(UserError) as error:
        read(raw)
    assert str(error.value).splitlines()[1:] == [
        "this reads it; in params.yaml, put under data.sources.*:",
        "format: columns",
        "columns: {user: Question, assistant: Answer}",
    ]
    with pytest.raises(UserError, match=r"docs/own-csv.md lists the shapes"):
        read(as_csv(["x", "y", "z"], ["1", "2", "3"]), source("alpaca"))


def test_no_odd_value_crashes_the_reader():
    for odd in (None, 5, "x", [], {}, [5], {"a": 1}, [[]], True, "[", "{}"):
        for key in ("role", "content", "tool_calls", "function_call", "tool_call_id", "name", "weight", "train"):
            for base in (ASK, SAY, {"role": "tool", "content": "x"}):
                found = one({"messages": [ASK, {**base, key: odd}]})
                assert (found.conversation is None) == bool(found.error)
        for key in ("messages", "system", "tools", "functions", "contents", "parallel_tool_calls"):
            found = one({"conversation": [ASK, SAY], key: odd})
            assert (found.conversation is None) == bool(found.error)
            assert found.conversation is None or msgspec.json.encode(found.conversation)
    assert isinstance(found, formats.Record)
