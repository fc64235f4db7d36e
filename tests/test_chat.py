import pytest

from stages.chat import IGNORED, Chat
from stages.command import UserError
from stages.conversations import Conversation, Message

TALK = Conversation(
    (
        Message("system", "Be kind."),
        Message("user", "Pool?"),
        Message("assistant", "Yes, at 7."),
        Message("user", "Thanks!"),
        Message("assistant", "Gladly."),
    )
)


def learned(chat, example):
    return chat.tokenizer.decode([label for label in example.labels if label != IGNORED])


def test_each_response_and_its_end_token_are_learned(base):
    chat = Chat.load()
    assert learned(chat, chat.example(TALK)) == "Yes, at 7.<|im_end|>Gladly.<|im_end|>"


def test_the_last_response_alone(base):
    chat = Chat.load()
    assert learned(chat, chat.example(TALK, last_only=True)) == "Gladly.<|im_end|>"


def test_the_tokens_are_the_templates_and_nothing_is_appended(base):
    chat = Chat.load()
    example = chat.example(TALK)
    assert chat.tokenizer.decode(example.input_ids) == chat.render(TALK.messages)
    assert len(example.labels) == len(example.input_ids)
    pairs = zip(example.labels, example.input_ids, strict=True)
    assert all(label in (IGNORED, token) for label, token in pairs)


def test_a_response_that_quotes_the_prompt_is_found_at_its_own_place(base):
    chat = Chat.load()
    echo = Conversation((Message("user", "Say yes."), Message("assistant", "Say yes."), *TALK.messages[3:]))
    assert learned(chat, chat.example(echo)) == "Say yes.<|im_end|>Gladly.<|im_end|>"


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "rewrites earlier"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not close a response with"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(base, template, message):
    chat = Chat.load()
    chat.tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        chat.example(TALK)
