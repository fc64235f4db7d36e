import json
import sys

import pytest

from stages.backends.unsloth.reader import IGNORED, Chat
from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message

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


def test_only_the_last_response_is_labelled_on_request(base):
    chat = Chat.load()
    assert learned(chat, chat.example(TALK, last_only=True)) == "Gladly.<|im_end|>"


def test_the_tokens_are_those_of_the_template_with_nothing_appended(base):
    chat = Chat.load()
    example = chat.example(TALK)
    assert chat.tokenizer.decode(example.input_ids) == chat.render(TALK)
    assert len(example.labels) == len(example.input_ids)
    pairs = zip(example.labels, example.input_ids, strict=True)
    assert all(label in (IGNORED, token) for label, token in pairs)


def test_a_response_that_quotes_the_prompt_is_located_correctly(base):
    chat = Chat.load()
    echo = Conversation((Message("user", "Say yes."), Message("assistant", "Say yes."), *TALK.messages[3:]))
    assert learned(chat, chat.example(echo)) == "Say yes.<|im_end|>Gladly.<|im_end|>"


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "rewrites earlier"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not end responses with"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_rejected(base, template, message):
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


def test_tool_calls_are_learned_if_the_template_renders_them(base):
    chat = Chat.load()
    chat.tokenizer.chat_template = "{{ tools | tojson }}" + chat.tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}",
    )
    assert learned(chat, chat.example(WITH_TOOLS)) == "free_rooms<|im_end|>Two are free.<|im_end|>"


def test_tool_calls_are_rejected_if_the_template_drops_them(base):
    with pytest.raises(UserError, match="does not support tool calls"):
        Chat.load().example(WITH_TOOLS)


def test_a_conversation_rejected_by_the_template_does_not_affect_others(base):
    chat = Chat.load()
    turn = Conversation((Message("assistant", "Hi."), Message("user", "Hello?")))
    chat.tokenizer.chat_template = (
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
        "{% for tool in tools or [] %}{{ (tool.function.name + '')[:0] }}{% endfor %}" + chat.tokenizer.chat_template
    )
    odd = Conversation(TALK.messages, tools=[{"function": 5}])
    calls, order, tools, first, last = chat.counts([WITH_TOOLS, turn, odd, TALK, TALK])
    assert first == last == len(chat.example(TALK).input_ids)
    assert "does not support tool calls" in calls and order.endswith("rejects the conversation: the user begins")
    assert "rejects the conversation" in tools


def test_the_context_length_comes_from_the_model_configuration(base, tmp_path):
    assert Chat.load().context == 2048
    for config, expected in [({"max_position_embeddings": 77}, 77), ({}, sys.maxsize)]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert Chat(None, tmp_path).context == expected


def test_lengths_are_in_tokens_without_special_tokens(base):
    chat = Chat.load()
    # One token per byte; the end token counts as one.
    assert chat.lengths(["ab", "", "a<|im_end|>"]) == [2, 0, 2] and chat.lengths([]) == []
    assert chat.counts([Conversation(()), TALK]) == [0, len(chat.example(TALK).input_ids)]


def test_special_tokens_are_those_marked_as_special_by_the_tokenizer(base):
    chat = Chat.load()
    chat.tokenizer.add_tokens(["plain"])
    assert chat.special_tokens == ["<pad>", "<|im_end|>", "<|im_start|>"]


def test_tokens_that_neither_have_a_part_nor_are_in_the_template_are_words_of_a_text(base):
    chat = Chat.load()
    more = ["<filename>", "<|eot|>", "[MASK]", "<start_of_turn>"]
    chat.tokenizer.add_special_tokens({"additional_special_tokens": more})
    chat.tokenizer.chat_template += "{# <start_of_turn> #}"
    assert set(chat.special_tokens) == {"<pad>", "<|im_end|>", "<|im_start|>", *more}
    assert set(chat.special_tokens) - set(chat.control_tokens) == {"<filename>"}


def test_a_conversation_is_rendered_up_to_a_message(base):
    chat = Chat.load()
    first = "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert chat.render(TALK, 1) == first
    assert chat.render(TALK, 1, answer_next=True) == first + "<|im_start|>assistant\n"
    assert chat.render(TALK, -3) == chat.render(TALK, 2) == first + "<|im_start|>user\nPool?<|im_end|>\n"


def test_a_template_gets_only_the_fields_that_a_message_has(base):
    chat = Chat.load()
    chat.tokenizer.chat_template = "{% for m in messages %}{{ m | tojson }};{% endfor %}{{ tools | tojson }}"
    text = chat.render(WITH_TOOLS)
    *turns, tools = text.split(";")
    # Of arguments that are JSON text the template gets the object, of which it makes JSON itself.
    called = {**CALL, "function": {"name": "free_rooms", "arguments": {"day": "Monday"}}}
    assert [json.loads(turn) for turn in turns] == [
        {"role": "user", "content": "A room on Monday?"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "Two are free."},
    ]
    assert json.loads(tools) == WITH_TOOLS.tools


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda tokenizer: setattr(tokenizer, "chat_template", None), "has no chat template; choose a chat"),
        (lambda tokenizer: setattr(tokenizer, "eos_token", None), "has no end token; choose a chat"),
    ],
)
def test_a_tokenizer_without_template_or_end_token_is_rejected(base, tmp_path, spoil, message):
    tokenizer = Chat.load().tokenizer
    spoil(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        Chat.load(tmp_path)


def test_labels_are_the_tokens_of_the_answer(base):
    chat = Chat.load()
    talk = Conversation((Message("user", "a"), Message("assistant", "bc")))
    example = chat.example(talk)
    # The template renders "assistant", a newline, the two letters, the end token and a newline.
    ids = chat.tokenizer.convert_tokens_to_ids(["b", "c", "<|im_end|>"])
    assert example.labels[-4:] == [*ids, IGNORED] and example.input_ids[-4:-1] == ids
    assert set(example.labels[:-4]) == {IGNORED}
