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
    with contextlib.suppress(msgspec.ValidationError):
        record: Any = _read(content, Conversation, label)
        if not any(message.role == "tool" or message.tool_calls for message in record.messages):
            refuse_repetition(as_json(content))
            return _without_label(record), record.label if label else None
        if _answered(record):
            refuse_repetition(as_json(content))
            msgspec.json.decode(as_json(content), type=_Called)
            return _without_label(record), record.label if label else None
    return _otherwise(content, label, chats)


def _answered(record: Conversation) -> bool:
    """Whether all results of tools say which call they answer."""
    return all(message.tool_call_id is not None for message in record.messages if message.role == "tool")


def sharegpt(content: Any, label: str | None, chats: Chats) -> Shaped:
    """A record with conversations of from and value.

    Raises:
        msgspec.DecodeError: it is not JSON, or no conversation, and where.
    """
    with contextlib.suppress(msgspec.ValidationError):
        record: Any = _read(content, _ShareGPT, label)
        refuse_repetition(as_json(content))
        system = [Message("system", record.system)] if record.system else []
        turns = (Message(_SPEAKERS[turn.speaker], turn.value) for turn in record.conversations)
        return Conversation((*system, *turns)), record.label if label else None
    return _otherwise(content, label, chats)


def _otherwise(content: Any, label: str | None, chats: Chats) -> Shaped:
    value = msgspec.json.decode(as_json(content))
    refuse_repetition(as_json(content))
    found = value.pop(label, None) if label and isinstance(value, dict) else None
    conversation = chats.conversation(value)
    # What is no call in OpenAI's form is refused here.
    msgspec.convert({"messages": [{"tool_calls": one.tool_calls} for one in conversation.messages]}, _Called)
    return conversation, found


def _read(content: Any, kind: Any, label: str | None) -> Any:
    return msgspec.json.decode(as_json(content), type=_labelled(kind, label) if label else kind)


def _without_label(record: Conversation) -> Conversation:
    if type(record) is Conversation:
        return record
    return Conversation(**{name: getattr(record, name) for name in Conversation.__struct_fields__})


@cache
def _labelled(kind: Any, label: str) -> Any:
    """The record's type with one more key, which holds the label; a record may lack it."""
    held = ("label", Any, msgspec.field(default=None, name=label))
    return msgspec.defstruct(f"Labelled{kind.__name__}", [held], bases=(kind,), frozen=kind.__struct_config__.frozen)
