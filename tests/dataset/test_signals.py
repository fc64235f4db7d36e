"""Signals of conversations, for a model that reads one token a word."""

from types import SimpleNamespace

import pytest

from stages.dataset.conversations import Conversation, Message
from stages.dataset.formats import Record
from stages.dataset.near_duplicates import sketch
from stages.dataset.signals import SCHEMA, Signaller


def user(text):
    return Message("user", text)


def assistant(text=None, **given):
    return Message("assistant", text, **given)


def words(text):
    return len(text.split())


def counts(conversations):
    return [sum(words(message.text) for message in one.messages) for one in conversations]


def rows(*conversations, context=100, counts=counts, labels=None):
    """Signals of each conversation; a text stands for a record that is none, with its error."""
    reader = SimpleNamespace(
        context=context,
        special_tokens=["<end>", "<filename>"],
        control_tokens=["<end>"],
        counts=counts,
        lengths=lambda texts: [words(text) for text in texts],
    )
    records = [
        Record(row, None, one, "‹x›") if isinstance(one, str) else Record(row, one, label=label)
        for row, (one, label) in enumerate(zip(conversations, labels or [None] * len(conversations), strict=True), 11)
    ]
    return Signaller(reader).rows(records)


def row(*messages, **given):
    (found,) = rows(Conversation(messages), **given)
    return found


@pytest.mark.parametrize("context, over", [(7, 2), (8, 1), (9, 0), (10, 0), (100, 0)])
def test_tokens_beyond_the_context_are_counted(context, over):
    found = row(user("one two three four five"), assistant("one two three four"), context=context)
    assert (found["n_tokens"], found["n_over"], found["n_response"]) == (9, over, 4)


def test_a_broken_record_between_others_takes_nobodys_numbers():
    one = Conversation((user("a b c"), assistant("d")))
    other = Conversation((user("a"), assistant("b c d e")))
    found = rows(one, "malformed", other, labels=["pool", None, ""])
    assert [(each["row"], each["error"]) for each in found] == [(11, None), (12, "malformed"), (13, None)]
    assert found[1] == {"row": 12, "error": "malformed", "faults": {"error": "‹x›"}}
    assert [(each["n_tokens"], each["n_response"]) for each in (found[0], found[2])] == [(4, 1), (5, 4)]
    assert (found[0]["label"], found[2]["label"]) == ("pool", "")
    assert row(user("a"), assistant("b"))["label"] is None


def test_a_conversation_that_the_model_cannot_read_says_why_in_one_line():
    found = row(user("a"), assistant("b"), counts=lambda talks: ["no\nturns"] * len(talks))
    assert found["row"] == 11 and found["error"] == "no\\nturns"
    assert found["faults"]["error"].startswith('{"messages":[{"role":"user","content":"a"}')


def test_every_signal_is_a_column():
    assert set(row(user("a"), assistant("b"))) == set(SCHEMA.names)


def test_roles_are_first_letters_in_order():
    turns = (Message("system", "s"), user("u"), assistant("a"), Message("tool", "t"), assistant("b"))
    assert row(*turns)["roles"] == "suata"


def test_messages_that_say_nothing_are_counted_and_the_first_is_shown():
    found = row(user(" \n"), assistant("a"), user(""), assistant("b"))
    assert found["n_empty"] == 2 and found["faults"]["n_empty"].startswith("message 1 (user): ‹ \\n›")
    assert row(user("u"), assistant("a"), user(""), assistant("b"))["faults"]["n_empty"] == "message 3 (user): ‹›"
    called = row(
        user("u"), assistant(None, tool_calls=[{"function": {"name": "book"}}]), Message("tool", "t"), assistant("b")
    )
    assert called["n_empty"] == 0 and "n_empty" not in called["faults"]


def test_a_call_counts_as_the_response_where_nothing_is_said():
    called = assistant(" ", tool_calls=[{"name": "book"}])
    # As Python shows it, [{'name': 'book'}] has two words.
    assert row(user("u"), called)["n_response"] == 2 and row(user("u"), assistant(" "))["n_response"] == 0
    assert row(user("u"), assistant("Yes, booked it.", tool_calls=[{"name": "book"}]))["n_response"] == 3


@pytest.mark.parametrize("length, shown", [(19, True), (20, True), (21, False)])
def test_a_response_of_at_most_twenty_characters_is_shown_whole(length, shown):
    found = row(user("u"), assistant("a" * (length - 1) + "."))
    assert found["faults"] == (
        {"n_response": "message 2 (assistant): ‹" + "a" * (length - 1) + ".›"} if shown else None
    )


def test_a_conversation_without_messages_has_signals_too():
    found = row()
    assert (found["roles"], found["n_empty"], found["n_tokens"], found["n_response"]) == ("", 0, 0, 0)
    assert found["response_hash"] != row(user("u"), assistant("a"))["response_hash"] and found["language"] is None


def hashes(*messages):
    found = row(*messages)
    return tuple(found[f"{name}_hash"] for name in ("prompt", "system", "response", "conversation"))


def test_each_hash_changes_with_its_own_part_alone():
    system = Message("system", "Be kind.")
    before = hashes(system, user("Pool?"), assistant("At 7."))

    def changed(*messages):
        return [one != other for one, other in zip(hashes(*messages), before, strict=True)]

    assert changed(system, user("Pool?"), assistant("At 7.")) == [False, False, False, False]
    assert changed(system, user("Spa?"), assistant("At 7.")) == [True, False, False, True]
    assert changed(Message("system", "Be brief."), user("Pool?"), assistant("At 7.")) == [False, True, False, True]
    assert changed(system, user("Pool?"), assistant("At 8.")) == [False, False, True, True]
    # The same prompt, as far as people tell prompts apart.
    assert changed(system, user(" pool! "), assistant("At 7.")) == [False, False, False, True]


def test_the_response_s_hash_distinguishes_calls():
    booked, asked = (assistant(None, tool_calls=[{"function": {"name": name}}]) for name in ("book", "ask"))
    assert hashes(user("u"), booked)[2] != hashes(user("u"), asked)[2]


def test_two_system_messages_are_not_one():
    parts = Message("system", "a"), Message("system", "b")
    assert hashes(*parts, user("u"), assistant("a"))[1] != hashes(Message("system", "ab"), user("u"), assistant("a"))[1]


def test_the_sketch_is_the_prompt_s():
    system = Message("system", "Be kind.")
    assert row(system, user("Pool?"), assistant("At 7."))["sketch"] == sketch("user:pool")


ENGLISH = "Breakfast is served from seven to ten in the garden room, every day of the week."
GERMAN = "Das Frühstück gibt es jeden Tag der Woche von sieben bis zehn Uhr im Gartenzimmer."


def test_the_language_is_that_of_user_and_assistant():
    system = Message("system", GERMAN * 5)
    assert row(system, user(ENGLISH), assistant(ENGLISH))["language"] == "en"
    assert row(user(GERMAN), assistant("Ja."))["language"] == "de" == row(user("?"), assistant(GERMAN))["language"]
    assert row(user("Pool?"), assistant("At 7."))["language"] is None


def test_faults_of_the_content_are_marked_and_shown():
    found = row(user("Pool?"), assistant("At 7, as the desk says <end>"))
    assert found["special_token"] == 1 and "‹<end>›" in found["faults"]["special_token"]
    assert found["email"] == 0 and "email" not in found["faults"]


def test_a_label_is_searched_for_faults_as_well():
    talk = Conversation((user("Pool?"), assistant("It opens at seven in the morning.")))
    (found,) = rows(talk, labels=["desk@example.org"])
    assert found["email"] == 1


def test_only_the_last_message_is_shown_as_the_response():
    long = assistant("This answer is too long to be shown whole.")
    assert row(user("u"), long, user("v"), assistant("Yes."))["faults"] == {
        "n_response": "message 4 (assistant): ‹Yes.›"
    }
    assert row(user("u"), assistant("Yes."), user("v"), long)["faults"] is None
