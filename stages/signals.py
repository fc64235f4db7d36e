"""Signals: what the gate knows of a row. Numbers, hashes and flags, never a conversation's text."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from stages import conversations, language
from stages.backends import Reader
from stages.content import NAMES, Inspector
from stages.conversations import Conversation, Message
from stages.neighbours import SKETCH_BYTES, sketch
from stages.shapes import Record

_SPEAKERS = {"user", "assistant"}

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # as a spreadsheet shows it: the first record is row 1, or row 2 under a header
        ("error", pa.string()),  # why the record is not a conversation; null where it is one
        ("roles", pa.string()),  # first letters, in order: "sua"
        ("n_empty", pa.int64()),  # messages with nothing but white space
        ("n_tokens", pa.int64()),  # as the base model reads the conversation
        ("n_over", pa.int64()),  # tokens beyond what the base model can read
        ("n_response", pa.int64()),  # characters of the response
        (
            "label",
            pa.string(),
        ),  # the slice that it belongs to; empty where the record has none, null where none is asked
        ("prompt_hash", pa.string()),
        ("sketch", pa.binary(SKETCH_BYTES)),  # of the prompt's set of 4-grams, to find nearly equal prompts
        ("response_hash", pa.string()),
        ("system_hash", pa.string()),
        ("conversation_hash", pa.string()),
        ("language", pa.string()),  # ISO 639-1; null where the text is too short to tell
        *((name, pa.int8()) for name in NAMES),  # 1 where the content has this fault
        ("faults", pa.map_(pa.string(), pa.string())),  # a masked snippet for each fault; the one column with text
    ]
)


class Signaller:
    """Makes rows of signals with one base model's tokenizer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._context = reader.context
        self._inspector = Inspector(reader.special_tokens)

    def rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """One row for each record."""
        tokens = iter(self._reader.counts([one.conversation for one in records if one.conversation is not None]))
        return [
            {"row": one.row, "error": one.error, "faults": {"error": one.snippet}}
            if one.conversation is None
            else {"row": one.row, "label": one.label, **self._signals(one.conversation, next(tokens))}
            for one in records
        ]

    def _signals(self, conversation: Conversation, tokens: int) -> dict[str, Any]:
        messages = conversation.messages
        faults = self._inspector.faults(conversation)
        system = [message.text for message in messages if message.role == "system"]
        return {
            "roles": "".join(message.role[0] for message in messages),
            "n_empty": sum(not (message.text.strip() or message.tool_calls) for message in messages),
            "n_tokens": tokens,
            "n_over": max(0, tokens - self._context),
            "n_response": _length(messages[-1]) if messages else 0,
            "prompt_hash": _hash(conversation.prompt_key),
            "sketch": sketch(conversation.prompt_key),
            "response_hash": _hash(repr(messages[-1]) if messages else ""),
            "system_hash": _hash("\n".join(system)),
            "conversation_hash": conversations.identity(conversations.encode(conversation)),
            "language": language.detect(" ".join(one.text for one in messages if one.role in _SPEAKERS)),
            **{name: int(name in faults) for name in NAMES},
            "faults": faults or None,
        }


def _length(message: Message) -> int:
    """Characters that the message says, or calls tools with."""
    return len(message.text.strip()) or len(str(message.tool_calls or ""))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
