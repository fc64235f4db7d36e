"""From records of each format to conversations, with labels and tools."""

import gzip
import io
import json

import pandas as pd
import pytest

from stages.core.cli import UserError
from stages.dataset import conversations, formats
from stages.dataset.signals import Signaller
from stages.params import Columns
from tests.support.sources import CALL, FREE, KEY, TALK, Failing, as_csv, read, record, source, talk

pytestmark = pytest.mark.usefixtures("here")

HELLO = talk(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"))


SHAREGPT = {
    "system": "Be kind.",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
}


ALPACA = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}


GOOD_DAY = ("assistant", "Good day")


@pytest.mark.parametrize(
    "shape, one, expected",
    [
        ("sharegpt", SHAREGPT, HELLO),
        ("alpaca", ALPACA, talk(("user", "Translate.\n\nGuten Tag"), GOOD_DAY)),
        ("alpaca", {**ALPACA, "input": ""}, talk(("user", "Translate."), GOOD_DAY)),
        ("prompt_completion", {"prompt": "Hi", "completion": "Good day"}, talk(("user", "Hi"), GOOD_DAY)),
        ("messages", json.loads(record(*TALK)), talk(*TALK)),
    ],
)
@pytest.mark.parametrize("container", ["json", "jsonl", "parquet", "jsonl.gz"])
def test_formats_in_every_container(shape, one, expected, container):
    if container == "json":
        raw = json.dumps([one, one]).encode()
    elif container == "parquet":
        out = io.BytesIO()
        pd.DataFrame([one, one]).to_parquet(out)
        raw = out.getvalue()
    else:
        raw = f"{json.dumps(one)}\n{json.dumps(one)}".encode()
    if container.endswith("gz"):
        raw = gzip.compress(raw)
    assert read(raw, source(shape)) == [formats.Record(1, expected), formats.Record(2, expected)]


def test_alpaca_in_a_csv():
    raw = as_csv(["output", "instruction", "input"], ["Good day", "Translate.", "Guten Tag"])
    assert read(raw, source("alpaca"))[0][1].response == "Good day"


def test_an_unknown_speaker_is_reported():
    robot = {"conversations": [{"from": "robot", "value": "Hi"}]}
    assert "Invalid enum value 'robot'" in read(json.dumps(robot).encode(), source("sharegpt"))[0][2]


def test_a_field_that_is_no_text_is_reported():
    found = read(b'{"prompt": 5, "completion": "x"}', source("prompt_completion"))
    assert found[0][2] == "Expected text in field `prompt`, got int"
    assert "got missing" in read(b'{"completion": "x"}', source("prompt_completion"))[0][2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_column_of_labels_beside_the_records(order):
    rows = [["intent", "chat"], ["pool", record(*TALK)], ["", record(*TALK)]]
    raw = as_csv(*([row[at] for at in order] for row in rows))
    found = read(raw, source(label="intent"))
    assert [(one.row, one.conversation, one.label) for one in found] == [(2, talk(*TALK), "pool"), (3, talk(*TALK), "")]


@pytest.mark.parametrize(
    "shape, one", [("messages", json.loads(record(*TALK))), ("sharegpt", SHAREGPT), ("alpaca", ALPACA)]
)
def test_a_key_of_labels_in_the_records(shape, one):
    records = [{**one, "topic": "pool"}, {**one, "topic": 7}, one, {**one, "topic": None}]
    found = read("\n".join(map(json.dumps, records)).encode(), source(shape, label="topic"))
    assert [(record.error, record.label) for record in found] == [(None, "pool"), (None, "7"), (None, ""), (None, "")]


@pytest.mark.parametrize("label, reason", [(["a"], "text or a number in field `topic`"), ("x" * 101, "at most 100")])
def test_what_is_no_label_is_reported(label, reason):
    (found,) = read(json.dumps({**ALPACA, "topic": label}).encode(), source("alpaca", label="topic"))
    assert found.conversation is None and reason in found.error


def test_a_missing_column_of_labels_is_reported():
    with pytest.raises(UserError, match="no column 'topic'; its columns are: chat, intent"):
        read(as_csv(["chat", "intent"], [record(*TALK), "pool"]), source(label="topic"))


@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "right, one",
    [
        ("messages", {"messages": [{"role": "user", "content": "a"}]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}),
        ("alpaca", {"instruction": "a", "input": "", "output": "b"}),
        ("prompt_completion", {"prompt": "a", "completion": "b"}),
    ],
)
def test_a_wrong_format_names_the_right_one(right, one, container):
    if container == "csv":
        table = right in ("alpaca", "prompt_completion")
        raw = as_csv(list(one), list(one.values())) if table else as_csv([json.dumps(one)])
    elif container == "jsonl":
        raw = json.dumps(one).encode()
    else:
        out = io.BytesIO()
        pd.DataFrame([one]).to_parquet(out)
        raw = out.getvalue()
    for wrong in {"messages", "sharegpt", "alpaca", "prompt_completion"} - {right}:
        with pytest.raises(UserError, match=f"declared as format: {wrong}, and its first record looks like {right}"):
            read(raw, source(wrong))
    read(raw, source(right))


def test_a_repeated_key_is_an_error():
    twice = '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}'
    ((_, conversation, error, _, _),) = read(as_csv([twice]))
    assert conversation is None and error == "The key `content` is repeated in one object"


def test_tools_and_weights_come_through():
    one = {
        "messages": [
            {"role": "user", "content": "A room?"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "assistant", "content": "Two.", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "free"}}],
    }
    found = read(as_csv([json.dumps(one)]))[0][1]
    assert conversations.encode(found) == json.dumps(one, separators=(",", ":")).encode()


@pytest.mark.parametrize("container", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "calls, tools, reason",
    [
        (5, [], "Expected `array | null`, got `int` - at `$.messages[1].tool_calls`"),
        (["free"], [], "Expected `object`, got `str` - at `$.messages[1].tool_calls[0]`"),
        ([{**CALL, "function": None}], [], "got `null` - at `$.messages[1].tool_calls[0].function`"),
        ([{**CALL, "function": {"name": "a"}}], [], "missing required field `arguments`"),
        ([{**CALL, "function": {**FREE, "arguments": 5}}], [], "Expected `str`, got `int`"),
        ([{**CALL, "type": "tool"}], [], "Invalid enum value 'tool'"),
        ([{**CALL, "id": 5}], [], "Expected `str`, got `int` - at `$.messages[1].tool_calls[0].id`"),
        ([CALL], ["free"], "Expected `object`, got `str` - at `$.tools[0]`"),
        ([CALL], {"name": "free"}, "Expected `array | null`, got `object` - at `$.tools`"),
        ([CALL], [{"a": "\ud800 x"}], "the text holds half of a surrogate pair"),
        ([CALL], [{"a": "x\udc00"}], "the text holds half of a surrogate pair"),
    ],
)
def test_odd_tools_are_an_error_of_their_row(calls, tools, reason, container):
    turns = [{"role": "user", "content": "A room?"}, {"role": "assistant", "tool_calls": calls}]
    one = {"messages": turns, "tools": tools}
    good, bad = record(*TALK), json.dumps(one)
    first, second = read(as_csv([good], [bad]) if container == "csv" else f"{good}\n{bad}".encode())
    assert first.error is None and second.conversation is None and reason in second.error
    assert "\\ud800" not in bad or "‹\\ud800›" in second.snippet


def test_a_whole_surrogate_pair_and_an_escaped_backslash_are_text():
    cell = json.dumps({"messages": [{"role": "user", "content": "🙂 \\ud800"}, {"role": "assistant", "content": "a"}]})
    assert "\\ud83d" in cell and read(as_csv([cell]))[0].conversation.messages[0].text == "🙂 \\ud800"


@pytest.mark.parametrize(
    "cell",
    [
        '{"messages":[{"role":"%s\\u001b[31m\\nerror: fake","content":"x"}]}',
        '{"messages":[],"tools":[{"%s":1,"%s":1}]}',
        '{"messages":5,"%s (byte 99999999999999999999)":1}',
        '{"messages": "%s',
    ],
)
def test_no_error_shows_a_secret_or_moves_the_terminal(cell):
    cell = cell.replace("%s", KEY)
    first, second = read(as_csv([cell], [cell]))
    assert first.error == second.error and not first.conversation
    shown = first.error + first.snippet
    assert KEY not in shown and KEY[4:] not in shown and "sk•••" in shown and shown.isprintable()


def test_a_header_that_is_text_is_listed_short_and_masked():
    header = [f"My card is 4539 7031 8429 5567 \x1b[31m {'x' * 500}", f"use {KEY}", *map(str, range(100))]
    with pytest.raises(UserError) as error:
        read(as_csv(header, ["a"] * 102), source("columns", columns=Columns(user="q", assistant="a")))
    text, *_ = str(error.value).splitlines()
    assert "My card is 45•••" in text and "use sk•••" in text and " and 82 more" in text
    assert text.isprintable() and len(text) < 400


def test_a_label_is_inspected_too():
    first, second = Signaller(Failing()).rows([formats.Record(1, talk(*TALK), label=one) for one in (KEY, "pool")])
    assert (first["api_key"], second["api_key"]) == (1, 0) and first["faults"]["api_key"] == "label: ‹sk•••›"
