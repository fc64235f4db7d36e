import pytest

from stages.dataset.conversations import Conversation, Message
from stages.metrics import baselines
from stages.metrics.baselines import SHOTS, LookUp, asked

SYSTEM = Message("system", "Be kind.")


def talk(*texts, system=SYSTEM):
    roles = ("user", "assistant")
    turns = [Message(roles[place % 2], text) for place, text in enumerate(texts)]
    return Conversation((system, *turns) if system else tuple(turns))


TRAIN = [
    talk("When is breakfast served?", "At seven."),
    talk("How much is the car park?", "Ten euros."),
    talk("Is there a sauna?", "Yes.", "And when is it open?", "Until nine."),
    talk("Where is the swimming pool?", "Downstairs."),
]


def test_the_answer_of_the_most_similar_training_prompt_is_looked_up():
    test = [talk("What time do you serve breakfast?", "?"), talk("What does parking cost?", "?")]
    assert LookUp.of(TRAIN).nearest(test) == ["At seven.", "Ten euros."]


def test_every_assistant_message_is_an_answer_to_what_is_said_before_it():
    assert [turn.response for turn in LookUp.of(TRAIN).turns] == [
        "At seven.",
        "Ten euros.",
        "Yes.",
        "Until nine.",
        "Downstairs.",
    ]
    assert LookUp.of(TRAIN).nearest([talk("Do you have a sauna?", "?")]) == ["Yes."]


def test_messages_that_are_not_learned_are_no_answers():
    message = Message("assistant", "No.", weight=0)
    train = [Conversation((SYSTEM, Message("user", "Q"), message, Message("user", "R"), Message("assistant", "Yes.")))]
    assert [turn.response for turn in LookUp.of(train).turns] == ["Yes."]


def test_prompts_are_compared_by_what_was_asked_last():
    assert asked(TRAIN[2]) == "And when is it open?"


def test_the_constant_answer_is_the_one_most_similar_to_all_others():
    answers = [
        "The pool is open until nine.",
        "The pool is open until ten.",
        "The pool is open until eight.",
        "No dogs.",
    ]
    train = [talk("Q", answer) for answer in answers]
    (first, second) = LookUp.of(train).constant([TRAIN[0], TRAIN[1]])
    assert first == second and first in answers[:3]


def test_examples_come_before_the_prompt_the_most_similar_last():
    train = [*TRAIN, talk("May I bring a dog?", "Yes, one."), talk("Until when can I check out?", "Eleven.")]
    (found,) = LookUp.of(train).with_examples([talk("What time do you serve breakfast?", "Seven o'clock.")])
    texts = [message.text for message in found.messages]
    # One system prompt, then the examples without theirs, then the conversation itself.
    assert texts[0] == "Be kind." and texts.count("Be kind.") == 1
    assert texts[-4:] == [
        "When is breakfast served?",
        "At seven.",
        "What time do you serve breakfast?",
        "Seven o'clock.",
    ]
    assert len([message for message in found.prompt if message.role == "assistant"]) >= SHOTS
    assert [message.role for message in found.messages[1:]] == ["user", "assistant"] * ((len(texts) - 1) // 2)


def test_fewer_training_conversations_than_examples_are_all_used():
    (found,) = LookUp.of(TRAIN[:1]).with_examples([talk("Breakfast?", "?", system=None)])
    assert [message.text for message in found.messages] == ["When is breakfast served?", "At seven.", "Breakfast?", "?"]


@pytest.mark.parametrize("most, kept", [(10, range(7)), (7, range(7)), (6, range(0, 7, 2)), (3, range(0, 7, 4))])
def test_of_too_many_turns_an_even_choice_is_searched(monkeypatch, most, kept):
    monkeypatch.setattr(baselines, "_SEARCHED", most)
    train = (talk(f"Question {number}?", str(number)) for number in range(7))
    assert [turn.response for turn in LookUp.of(train).turns] == [str(number) for number in kept]
