"""JSON records of messages: those in OpenAI's form are decoded at once, and all others by way of `chats`."""

import contextlib
from functools import cache
from typing import Any, Literal

import msgspec

from stages.dataset.conversations import Conversation, Message, Role
from stages.dataset.formats.chats import Chats
from stages.dataset.formats.records import Shaped, as_json, refuse_repetition


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    speaker: Literal["system", "human", "user", "gpt", "assistant"] = msgspec.field(name="from")
    value: str


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    type: Literal["function"]
    function: _Function


class _Caller(msgspec.Struct):
    tool_calls: list[_Call] | None = None


class _Called(msgspec.Struct):
    """The part of a record that calls tools. Conversations keep calls as they are written, keys in the same order."""

    messages: list[_Caller]


class _ShareGPT(msgspec.Struct, forbid_unknown_fields=True):
    conversations: list[_Turn]
    id: str | int | None = None
    system: str | None = None


_SPEAKERS: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def messages(content: Any, label: str | None, chats: Chats) -> Shaped:
    """A record with a list of messages, or the bare list.

    Raises:
        msgspec.DecodeError: it is not JSON, or no conversation, and where.
    """
    text = as_json(content)
    with contextlib.suppress(msgspec.ValidationError):
        record = _strict(text, Conversation, label)
        if any(message.role == "tool" or message.tool_calls for message in record.messages):
            _check_calls(text, record)
        return _without_label(record), record.label if label else None
    return _otherwise(text, label, chats)


def _strict(text: str | bytes, kind: type[msgspec.Struct], label: str | None) -> Any:
    """A record of exactly this kind, with the label beside it if there is one.

    Raises:
        msgspec.DecodeError: it is not JSON, of another kind, or has a key twice.
    """
    record = msgspec.json.decode(text, type=_labelled(kind, label) if label else kind)
    refuse_repetition(text)
    return record


def _check_calls(text: str | bytes, record: Conversation) -> None:
    """Refuse calls in another form, and results of tools that leave open which call they answer.

    Raises:
        msgspec.ValidationError: there are some.
    """
    msgspec.json.decode(text, type=_Called)
    if any(message.role == "tool" and message.tool_call_id is None for message in record.messages):
        raise msgspec.ValidationError("a result without tool_call_id")


def sharegpt(content: Any, label: str | None, chats: Chats) -> Shaped:
    """A record with conversations of from and value.

    Raises:
        msgspec.DecodeError: it is not JSON, or no conversation, and where.
    """
    text = as_json(content)
    with contextlib.suppress(msgspec.ValidationError):
        record = _strict(text, _ShareGPT, label)
        system = [Message("system", record.system)] if record.system else []
        turns = (Message(_SPEAKERS[turn.speaker], turn.value) for turn in record.conversations)
        return Conversation((*system, *turns)), record.label if label else None
    return _otherwise(text, label, chats)


def _otherwise(text: str | bytes, label: str | None, chats: Chats) -> Shaped:
    value = msgspec.json.decode(text)
    refuse_repetition(text)
    found = value.pop(label, None) if label and isinstance(value, dict) else None
    conversation = chats.conversation(value)
    # What is no call in OpenAI's form is refused here.
    msgspec.convert({"messages": [{"tool_calls": one.tool_calls} for one in conversation.messages]}, _Called)
    return conversation, found


def _without_label(record: Conversation) -> Conversation:
    if type(record) is Conversation:
        return record
    return Conversation(**{name: getattr(record, name) for name in Conversation.__struct_fields__})


@cache
def _labelled(kind: Any, label: str) -> Any:
    """The record's type with one more key, which holds the label; a record may lack it."""
    held = ("label", Any, msgspec.field(default=None, name=label))
    return msgspec.defstruct(f"Labelled{kind.__name__}", [held], bases=(kind,), frozen=kind.__struct_config__.frozen)
