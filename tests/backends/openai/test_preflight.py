"""What the service would reject is found in both splits before anything is uploaded."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import params
from stages.backends.openai.reader import HostedChat
from stages.backends.openai.training import preflight
from stages.core.cli import UserError
from stages.core.paths import SIGNALS, SPLITS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from tests.conftest import set_params

CHAT = HostedChat("gpt-3.5-turbo-0125")


def talk(number):
    return Conversation((Message("user", f"Room {number}?"), Message("assistant", "Yes.")))


GOOD = [talk(n) for n in range(10)]
BAD = Conversation((Message("user", "a", weight=0), Message("assistant", "b")))


@pytest.fixture
def write(project):
    """write(train, validation) writes the splits, and signals with row numbers from 2."""

    def run(train=GOOD, validation=GOOD[:1]):
        SPLITS["train"].parent.mkdir(parents=True)
        conversations.write_jsonl(SPLITS["train"], train)
        conversations.write_jsonl(SPLITS["validation"], validation)
        hashes = [conversations.identity(conversations.encode(one)) for one in (*train, *validation)]
        pq.write_table(pa.table({"row": range(2, len(hashes) + 2), "conversation_hash": hashes}), SIGNALS)

    return run


def check():
    return preflight.check(params.load(), CHAT)


def test_counts_are_those_of_the_train_split(write):
    write(validation=[talk(n) for n in range(50, 80)])
    assert check() == (10, sum(map(CHAT.count, GOOD)))


@pytest.mark.parametrize("split, row", [("train", 12), ("validation", 13)])
def test_an_error_in_either_split_is_reported_with_its_row(write, split, row):
    write(
        **{"train": GOOD, "validation": [talk(50), talk(51)]}
        | {split: [*GOOD, BAD] if split == "train" else [talk(50), BAD]}
    )
    with pytest.raises(
        UserError, match=rf"^the service would reject the data: 1 error; .*\nrow {row}: message 1 \(user\): only"
    ):
        check()


def test_all_errors_are_counted_and_the_first_ten_are_listed(write):
    bad = [Conversation((Message("user", f"a{n}", weight=0), Message("assistant", "b"))) for n in range(12)]
    write(train=bad)
    with pytest.raises(UserError) as error:
        check()
    first, *lines = str(error.value).splitlines()
    assert first == "the service would reject the data: 12 errors; fix the source"
    assert [line.split(":")[0] for line in lines] == [f"row {n}" for n in range(2, 12)]


def test_duplicates_are_reported_by_their_first_row_and_unknown_rows_as_a_question_mark(write):
    write(train=[*GOOD, BAD, BAD])
    with pytest.raises(UserError, match=r"2 errors.*\nrow 12: .*\nrow 12: "):
        check()
    pq.write_table(pa.table({"row": [2], "conversation_hash": ["other"]}), SIGNALS)
    with pytest.raises(UserError, match=r"\nrow \?: "):
        check()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_largest_file_that_the_service_accepts(write, monkeypatch, split):
    write(train=GOOD, validation=[talk(n) for n in range(50, 70)] if split == "validation" else [talk(50)])
    size = SPLITS[split].stat().st_size
    monkeypatch.setattr(preflight, "_LARGEST_FILE", size)
    check()
    monkeypatch.setattr(preflight, "_LARGEST_FILE", size - 1)
    with pytest.raises(UserError, match=rf"^{SPLITS[split]} has 0 MB; the service accepts 0 MB$"):
        check()


def test_a_file_of_more_than_512_megabytes_is_rejected(write):
    write()
    os.truncate(SPLITS["validation"], 512_000_001)
    with pytest.raises(UserError, match=r"validation.jsonl has 512 MB; the service accepts 512 MB"):
        check()


@pytest.mark.parametrize("seed, right", [(2**31 - 1, True), (2**31, False)])
def test_the_largest_seed_that_the_service_accepts(write, seed, right):
    write()
    set_params(seed=seed)
    if right:
        check()
    else:
        with pytest.raises(UserError, match=r"seed: 2147483648 exceeds the service's maximum of 2147483647"):
            check()


@pytest.mark.parametrize("count", [9, 10])
def test_at_least_ten_conversations_are_required(write, count):
    write(train=GOOD[:count])
    if count == 10:
        check()
    else:
        with pytest.raises(UserError, match="has 9 conversations; the service requires at least 10"):
            check()


def test_the_longest_example_that_the_model_accepts():
    one = talk(1)
    context = CHAT.context
    assert list(preflight._faults(one, context, CHAT)) == []
    assert list(preflight._faults(one, context + 1, CHAT)) == [
        "16386 tokens exceed the 16385 that gpt-3.5-turbo-0125 accepts",
    ]


CALL = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "book"}}
ASK, ANSWER, DONE = Message("user", "a"), Message("tool", "b", tool_call_id="c1"), Message("assistant", "c")
CALLS = Message("assistant", tool_calls=[CALL])


def errors(*messages, tools=None):
    return list(preflight._faults(Conversation(messages, tools=tools), 5, CHAT))


@pytest.mark.parametrize(
    "found, expected",
    [
        (errors(ASK, DONE), []),
        (errors(ASK, CALLS, ANSWER, DONE, tools=[TOOL]), []),
        (errors(ASK, CALLS, tools=[TOOL]), []),
        (errors(ASK, Message("assistant", "b", weight=0), ASK, Message("assistant", "b", weight=1)), []),
        (errors(ASK, Message("assistant", "b", weight=0), ASK, DONE), []),
        (errors(ASK, Message("assistant", "")), []),
        (errors(), ["the last message is not the assistant's", "no assistant message has weight 1"]),
        (errors(ASK, DONE, ASK), ["the last message is not the assistant's"]),
        (errors(ASK, Message("assistant", "b", weight=0)), ["no assistant message has weight 1"]),
        (errors(Message("user", "a", weight=1), DONE), ["message 1 (user): only assistant messages can"]),
        (errors(ASK, Message("assistant"), ASK, DONE), ["message 2 (assistant): neither content"]),
        (errors(Message("user", "<|im_sep|>"), DONE), ["message 1 (user): the text contains a special token"]),
        (errors(ASK, ANSWER, CALLS, DONE, tools=[TOOL]), ["message 2 (tool): tool_call_id 'c1' does not match an"]),
        (errors(ASK, CALLS, Message("tool", "b"), DONE, tools=[TOOL]), ["message 3 (tool): tool_call_id None does"]),
        (errors(ASK, CALLS, ANSWER, DONE), ["message 2 (assistant): the called tool 'book' is not among"]),
        (errors(ASK, DONE, tools=[{**TOOL, "type": "tool"}]), ["a tool is not of the form"]),
        (errors(ASK, DONE, tools=[{"type": "function", "function": "book"}]), ["a tool is not of the form"]),
        (errors(ASK, DONE, tools=[TOOL, {"type": "function"}]), ["a tool is not of the form"]),
    ],
)  # fmt: skip
def test_each_rule_of_the_service(found, expected):
    assert len(found) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "part, value", [("id", None), ("id", 5), ("name", None), ("name", 5), ("arguments", None), ("arguments", {})]
)
def test_a_tool_call_needs_an_id_a_name_and_arguments_that_are_strings(part, value):
    function = {**CALL["function"], **({part: value} if part != "id" else {})}
    call = {**CALL, "function": function, **({part: value} if part == "id" else {})}
    found = errors(ASK, Message("assistant", tool_calls=[call]), tools=[TOOL])
    assert [fault.partition(": ")[2] for fault in found] == [
        "a tool call needs an id and a function with name and arguments, all of them strings"
    ]
