"""What the gate looks at beside a text itself: the question, the weights, the placeholders of a whole conversation."""

import pytest

from stages.dataset.conversations import Conversation, Message
from stages.dataset.inspector import PLACEHOLDERS, Inspector

INSPECTOR = Inspector(["<|im_end|>"], ["<|im_end|>", "<filename>"])


def faults(*turns, **given):
    return INSPECTOR.faults(Conversation(tuple(Message(*turn) for turn in turns), **given))


@pytest.mark.parametrize(
    "asked, said, repeats",
    [
        ("How do I reset it?", "How do I reset it?", True),
        ("How do I reset it?", " how do I\nreset it? ", True),
        ("How do I reset it?", "How do I reset it? Hold the button.", False),
        (" ", " ", False),
    ],
)
def test_an_answer_can_repeat_its_question(asked, said, repeats):
    assert ("echo" in faults(("user", "Hello."), ("assistant", "Hi."), ("user", asked), ("assistant", said))) == repeats


def test_only_the_last_question_is_repeated():
    assert "echo" not in faults(("user", "Hi."), ("assistant", "Yes?"), ("user", "The lamp?"), ("assistant", "Hi."))


@pytest.mark.parametrize("weights, idle", [((0, 0), True), ((0, None), False), ((1, 0), False), ((None, None), False)])
def test_a_conversation_of_weights_of_0_teaches_nothing(weights, idle):
    turns = [(Message("user", "Pool?"), Message("assistant", "At 7.", weight=weight)) for weight in weights]
    found = INSPECTOR.faults(Conversation(tuple(message for turn in turns for message in turn)))
    assert ("unlearned" in found) == idle


def test_placeholders_are_listed_once_each_in_order():
    found = faults(
        ("system", "You work for [Company]."), ("user", "Hi {{name}}"), ("assistant", "Dear {{name}}, <NAME>.")
    )
    assert found["placeholder"] == "message 1 (system): You work for ‹[Company]›."
    assert found[PLACEHOLDERS].split("\n") == ["[Company]", "{{name}}", "<NAME>"]
    many = faults(("user", "a"), ("assistant", " ".join(f"{{{{name {n}}}}}" for n in range(30)) + "."))
    assert len(many[PLACEHOLDERS].split("\n")) == 20


def test_a_tool_may_return_nothing_and_name_what_it_takes():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"to": "[Customer Name]"}'}}
    turns = (
        Message("user", "Who?"),
        Message("assistant", tool_calls=[call]),
        Message("tool", "null", tool_call_id="1"),
    )
    assert INSPECTOR.faults(Conversation((*turns, Message("assistant", "No one.")))) == {}


def test_a_secret_in_a_placeholder_is_masked():
    found = faults(("user", "a"), ("assistant", "Mail {{maren@saltlantern.example name}} [Your Name]."))
    assert "maren@" not in " ".join(found.values())


def test_a_token_left_from_pretraining_is_named_and_not_critical():
    found = faults(("user", "How?"), ("assistant", "Open <filename> first."))
    assert set(found) == {"token_name"} and "‹<filename>›" in found["token_name"]
    assert "special_token" in faults(("user", "How?"), ("assistant", "Stop <|im_end|>."))
