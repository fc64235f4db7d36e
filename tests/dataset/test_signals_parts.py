"""What the gate knows of a row: each signal from the part of the conversation that it is about, and from no other."""

import pytest

from stages.dataset.conversations import Conversation, Message
from stages.dataset.formats import Record
from stages.dataset.signals import SCHEMA, Signaller

CALL = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": '{"room": 1}'}}


class Reader:
    """Counts words in place of tokens."""

    context, special_tokens, control_tokens = 6, ("<s>",), ("<s>",)

    def counts(self, talks):
        return [sum(len(one.text.split()) for one in talk.messages) for talk in talks]

    def lengths(self, texts):
        return [len(text.split()) for text in texts]


def signals(*messages, label=None, tools=None):
    record = Record(1, Conversation(messages, tools=tools), label=label)
    (row,) = Signaller(Reader()).rows([record])
    return row


ASK = Message("user", "Is there a pool?")


@pytest.mark.parametrize(
    "one, other",
    [
        (Message("assistant", "Yes."), Message("assistant", "No.")),
        (Message("assistant", tool_calls=[CALL]), Message("assistant", tool_calls=[{**CALL, "id": "c2"}])),
        (
            Message("assistant", tool_calls=[CALL]),
            Message("assistant", tool_calls=[{**CALL, "function": {"name": "book", "arguments": '{"room": 2}'}}]),
        ),
        (Message("assistant", "Yes.", tool_calls=[CALL]), Message("assistant", "Yes.")),
        (Message("assistant", "Yes.", name="a"), Message("assistant", "Yes.")),
        (Message("assistant", "Yes.", weight=1), Message("assistant", "Yes.")),
    ],
    ids=["text", "call-id", "call-arguments", "call", "name", "weight"],
)
def test_the_response_hash_covers_all_of_the_response_with_its_tool_calls(one, other):
    hashes = [signals(ASK, answer)["response_hash"] for answer in (one, other)]
    assert hashes[0] != hashes[1] and all(len(one) == 32 for one in hashes)
    assert signals(Message("user", "Other?"), one)["response_hash"] == hashes[0]


def test_the_prompt_hash_is_that_of_the_prompt_alone():
    answer, system = Message("assistant", "Yes."), Message("system", "Be kind.")
    row = signals(ASK, answer)
    same = signals(system, Message("user", "is there a POOL"), Message("assistant", "No."))
    assert row["prompt_hash"] == same["prompt_hash"] and row["sketch"] == same["sketch"]
    assert row["prompt_hash"] != signals(Message("user", "Is there a bar?"), answer)["prompt_hash"]


def test_the_system_hash_is_that_of_the_system_message_alone():
    system, answer = Message("system", "Be kind."), Message("assistant", "Yes.")
    assert signals(system, ASK, answer)["system_hash"] == signals(system, answer)["system_hash"]
    assert signals(system, ASK, answer)["system_hash"] != signals(Message("system", "Be."), ASK, answer)["system_hash"]
    assert signals(ASK, answer)["system_hash"] == signals(Message("system", ""), ASK, answer)["system_hash"]


def test_the_conversation_hash_is_that_of_all():
    row = signals(ASK, Message("assistant", "Yes."))
    assert row["conversation_hash"] != signals(ASK, Message("assistant", "Yes."), tools=[{"a": 1}])["conversation_hash"]


@pytest.mark.parametrize("words, over", [(5, 0), (6, 0), (7, 1), (9, 3)])
def test_tokens_beyond_the_context_are_counted(words, over):
    row = signals(Message("user", "a " * (words - 1)), Message("assistant", "b"))
    assert (row["n_tokens"], row["n_over"], row["n_response"]) == (words, over, 1)


def test_roles_and_empty_messages_are_counted():
    turns = (Message("system", " "), ASK, Message("assistant", tool_calls=[CALL]), Message("tool", ""), Message("user"))
    row = signals(*turns, Message("assistant", "Yes."))
    assert row["roles"] == "suatua" and row["n_empty"] == 1
    # No system prompt is one, and a tool may have nothing to tell.
    assert row["faults"]["n_empty"].startswith("message 5 (user): ")


def test_a_response_of_calls_is_as_long_as_they_are():
    assert signals(ASK, Message("assistant", tool_calls=[CALL]))["n_response"] == len(str([CALL]).split())


@pytest.mark.parametrize("length, shown", [(0, True), (20, True), (21, False)])
def test_a_short_response_is_shown_whole(length, shown):
    row = signals(ASK, Message("assistant", "x" * length))
    assert ("n_response" in (row["faults"] or {})) == shown
    if shown:
        assert row["faults"]["n_response"] == f"message 2 (assistant): ‹{'x' * length}›"


def test_the_language_is_that_of_user_and_assistant():
    german = "Wann gibt es morgens Frühstück und wo wird es serviert, bitte schön?"
    english = "You are a helpful receptionist who answers politely and briefly. " * 4
    row = signals(
        Message("system", english), Message("user", german), Message("assistant", german), Message("tool", english)
    )
    assert row["language"] == "de" and signals(ASK)["language"] is None


def test_a_row_without_a_conversation_says_why_and_has_no_signals():
    row = Signaller(Reader()).rows([Record(7, None, "no JSON", "‹{›")])[0]
    assert row == {"row": 7, "error": "no JSON", "faults": {"error": "‹{›"}}


def test_rows_keep_their_order_and_numbers_beside_broken_ones():
    talk = Conversation((Message("user", "a b"), Message("assistant", "c.")))
    rows = Signaller(Reader()).rows(
        [Record(3, None, "x"), Record(4, talk, label="pool"), Record(5, None), Record(6, Conversation(()))]
    )
    assert [row["row"] for row in rows] == [3, 4, 5, 6] and [row["error"] for row in rows] == ["x", None, "", None]
    assert (rows[1]["n_tokens"], rows[1]["label"], rows[3]["roles"], rows[3]["n_response"]) == (3, "pool", "", 0)
    assert set(rows[1]) == set(SCHEMA.names)
