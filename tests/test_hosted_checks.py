"""What the service would refuse is found in either split before anything is uploaded."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import conversations, params
from stages.backends.openai import checks
from stages.backends.openai.chat import HostedChat
from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.paths import SIGNALS, SPLITS

from .conftest import set_params

CHAT = HostedChat("gpt-3.5-turbo-0125")


def talk(number):
    return Conversation((Message("user", f"Room {number}?"), Message("assistant", "Yes.")))


GOOD = [talk(n) for n in range(10)]
BAD = Conversation((Message("user", "a", weight=0), Message("assistant", "b")))


@pytest.fixture
def write(project):
    """write(train, validation) writes the splits, and signals in which row 2 is the first conversation."""

    def run(train=GOOD, validation=GOOD[:1]):
        SPLITS["train"].parent.mkdir(parents=True)
        conversations.write_jsonl(SPLITS["train"], train)
        conversations.write_jsonl(SPLITS["validation"], validation)
        hashes = [conversations.identity(conversations.encode(one)) for one in (*train, *validation)]
        pq.write_table(pa.table({"row": range(2, len(hashes) + 2), "conversation_hash": hashes}), SIGNALS)

    return run


def check():
    return checks.check(params.load(), CHAT)


def test_examples_and_tokens_are_those_of_the_train_split(write):
    write(validation=[talk(n) for n in range(50, 80)])
    assert check() == (10, sum(map(CHAT.count, GOOD)))


@pytest.mark.parametrize("split, row", [("train", 12), ("validation", 13)])
def test_a_fault_in_either_split_is_found_with_its_row(write, split, row):
    write(
        **{"train": GOOD, "validation": [talk(50), talk(51)]}
        | {split: [*GOOD, BAD] if split == "train" else [talk(50), BAD]}
    )
    with pytest.raises(
        UserError, match=rf"^the service would refuse 1 things; .*\nrow {row}: message 1 \(user\): only"
    ):
        check()


def test_the_first_ten_faults_are_named_and_all_are_counted(write):
    bad = [Conversation((Message("user", f"a{n}", weight=0), Message("assistant", "b"))) for n in range(12)]
    write(train=bad)
    with pytest.raises(UserError) as error:
        check()
    first, *lines = str(error.value).splitlines()
    assert first.startswith("the service would refuse 12 things")
    assert [line.split(":")[0] for line in lines] == [f"row {n}" for n in range(2, 12)]


def test_equal_conversations_are_named_by_their_first_row_and_unknown_ones_by_a_question_mark(write):
    write(train=[*GOOD, BAD, BAD])
    with pytest.raises(UserError, match=r"refuse 2 things.*\nrow 12: .*\nrow 12: "):
        check()
    pq.write_table(pa.table({"row": [2], "conversation_hash": ["other"]}), SIGNALS)
    with pytest.raises(UserError, match=r"\nrow \?: "):
        check()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_largest_file_that_the_service_takes(write, monkeypatch, split):
    write(train=GOOD, validation=[talk(n) for n in range(50, 70)] if split == "validation" else [talk(50)])
    size = SPLITS[split].stat().st_size
    monkeypatch.setattr(checks, "_LARGEST_FILE", size)
    check()
    monkeypatch.setattr(checks, "_LARGEST_FILE", size - 1)
    with pytest.raises(UserError, match=rf"^{SPLITS[split]} has 0 MB; the service takes 0$"):
        check()


def test_a_file_of_more_than_512_megabytes_is_refused(write):
    write()
    os.truncate(SPLITS["validation"], 512_000_001)
    with pytest.raises(UserError, match=r"validation.jsonl has 512 MB; the service takes 512"):
        check()


@pytest.mark.parametrize("seed, right", [(2**31 - 1, True), (2**31, False)])
def test_the_largest_seed_that_the_service_takes(write, seed, right):
    write()
    set_params(seed=seed)
    if right:
        check()
    else:
        with pytest.raises(UserError, match=r"seed: 2147483648 is more than the service takes \(2147483647\)"):
            check()


@pytest.mark.parametrize("count", [9, 10])
def test_ten_conversations_are_the_fewest(write, count):
    write(train=GOOD[:count])
    if count == 10:
        check()
    else:
        with pytest.raises(UserError, match="has 9 conversations; the service takes no fewer than 10"):
            check()


def test_the_longest_example_that_the_model_learns_from():
    one = talk(1)
    context = CHAT.context
    assert list(checks._faults(one, context, CHAT)) == []
    assert list(checks._faults(one, context + 1, CHAT)) == [
        "16386 tokens; gpt-3.5-turbo-0125 learns from at most 16385",
    ]


CALL = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "book"}}
ASK, ANSWER, DONE = Message("user", "a"), Message("tool", "b", tool_call_id="c1"), Message("assistant", "c")
CALLS = Message("assistant", tool_calls=[CALL])


def faults(*messages, tools=None):
    return list(checks._faults(Conversation(messages, tools=tools), 5, CHAT))


@pytest.mark.parametrize(
    "found, expected",
    [
        (faults(ASK, DONE), []),
        (faults(ASK, CALLS, ANSWER, DONE, tools=[TOOL]), []),
        (faults(ASK, CALLS, tools=[TOOL]), []),
        (faults(ASK, Message("assistant", "b", weight=0), ASK, Message("assistant", "b", weight=1)), []),
        (faults(ASK, Message("assistant", "b", weight=0), ASK, DONE), []),
        (faults(ASK, Message("assistant", "")), []),
        (faults(), ["the last message is not the assistant's", "no assistant message has weight 1"]),
        (faults(ASK, DONE, ASK), ["the last message is not the assistant's"]),
        (faults(ASK, Message("assistant", "b", weight=0)), ["no assistant message has weight 1"]),
        (faults(Message("user", "a", weight=1), DONE), ["message 1 (user): only assistant messages have a weight"]),
        (faults(ASK, Message("assistant"), ASK, DONE), ["message 2 (assistant): it has neither content"]),
        (faults(Message("user", "<|im_sep|>"), DONE), ["message 1 (user): the text holds one of the model's special"]),
        (faults(ASK, ANSWER, CALLS, DONE, tools=[TOOL]), ["message 2 (tool): tool_call_id 'c1' answers no call"]),
        (faults(ASK, CALLS, Message("tool", "b"), DONE, tools=[TOOL]), ["message 3 (tool): tool_call_id None answers"]),
        (faults(ASK, CALLS, ANSWER, DONE), ["message 2 (assistant): the tool 'book' is called, but is not among"]),
        (faults(ASK, DONE, tools=[{**TOOL, "type": "tool"}]), ["a tool is not of the form"]),
        (faults(ASK, DONE, tools=[{"type": "function", "function": "book"}]), ["a tool is not of the form"]),
        (faults(ASK, DONE, tools=[TOOL, {"type": "function"}]), ["a tool is not of the form"]),
    ],
)  # fmt: skip
def test_the_rules_of_the_service(found, expected):
    assert len(found) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "part, value", [("id", None), ("id", 5), ("name", None), ("name", 5), ("arguments", None), ("arguments", {})]
)
def test_a_call_needs_an_id_a_name_and_arguments_that_are_text(part, value):
    function = {**CALL["function"], **({part: value} if part != "id" else {})}
    call = {**CALL, "function": function, **({part: value} if part == "id" else {})}
    found = faults(ASK, Message("assistant", tool_calls=[call]), tools=[TOOL])
    assert [fault.partition(": ")[2] for fault in found] == [
        "a tool call needs an id, and a function with name and arguments, all of them text"
    ]
