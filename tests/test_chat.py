import pytest

from stages.backends.unsloth.chat import IGNORED, Chat
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
    assert chat.tokenizer.decode(example.input_ids) == chat.render(TALK)
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


def test_a_message_of_weight_zero_is_not_learned(base):
    chat = Chat.load()
    first = Message("assistant", "Yes, at 7.", weight=0)
    talk = Conversation((*TALK.messages[:2], first, *TALK.messages[3:]))
    assert learned(chat, chat.example(talk)) == "Gladly.<|im_end|>"
    silent = Conversation((TALK.messages[1], first))
    assert learned(chat, chat.example(silent)) == "" and learned(chat, chat.example(silent, last_only=True)) != ""


CALL = {"id": "1", "type": "function", "function": {"name": "free_rooms", "arguments": '{"day": "Monday"}'}}
WITH_TOOLS = Conversation(
    (
        Message("user", "A room on Monday?"),
        Message("assistant", tool_calls=[CALL]),
        Message("tool", "2", tool_call_id="1"),
        Message("assistant", "Two are free."),
    ),
    tools=[{"type": "function", "function": {"name": "free_rooms", "parameters": {}}}],
)


def test_tool_calls_are_learned_where_the_template_writes_them(base):
    chat = Chat.load()
    chat.tokenizer.chat_template = chat.tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}",
    )
    assert learned(chat, chat.example(WITH_TOOLS)) == "free_rooms<|im_end|>Two are free.<|im_end|>"


def test_tool_calls_are_refused_where_the_template_leaves_them_out(base):
    with pytest.raises(UserError, match="has no place for tool calls"):
        Chat.load().example(WITH_TOOLS)


def test_what_the_template_refuses_concerns_one_conversation_alone(base):
    chat = Chat.load()
    turn = Conversation((Message("assistant", "Hi."), Message("user", "Hello?")))
    chat.tokenizer.chat_template = (
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
        "{% for tool in tools or [] %}{{ (tool.function.name + '')[:0] }}{% endfor %}" + chat.tokenizer.chat_template
    )
    odd = Conversation(TALK.messages, tools=[{"function": 5}])
    calls, order, tools, first, last = chat.counts([WITH_TOOLS, turn, odd, TALK, TALK])
    assert first == last == len(chat.example(TALK).input_ids)
    assert "has no place for tool calls" in calls and order.endswith("refuses the conversation: the user begins")
    assert "refuses the conversation" in tools
