"""Signals: what the gate knows of a row. Numbers, hashes and flags, never a conversation's text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import files
from stages.dataset import conversations, language, shared_text
from stages.dataset.conversations import Conversation, Message, ModelReader
from stages.dataset.formats import Record
from stages.dataset.inspector import NAMES, Inspector, place
from stages.dataset.masking import excerpt, one_line, snippet
from stages.dataset.near_duplicates import SKETCH_BYTES, sketch

_SPEAKERS = {"user", "assistant"}
# Characters of a response that is shown whole.
_SHOWN_WHOLE = 20

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # as a spreadsheet shows it: the first record is row 1, or row 2 under a header
        ("error", pa.string()),  # why the record is not a conversation; null where it is one
        ("roles", pa.string()),  # first letters, in order: "sua"
        ("n_empty", pa.int64()),  # messages of user and assistant with nothing but white space
        ("n_tokens", pa.int64()),  # as the base model reads the conversation
        ("n_over", pa.int64()),  # tokens beyond what the base model can read
        ("n_response", pa.int64()),  # tokens of the response
        # the slice that it belongs to; empty where the record has none, null where none is asked
        ("label", pa.string()),
        ("prompt_hash", pa.string()),
        ("sketch", pa.binary(SKETCH_BYTES)),  # of the prompt's set of 4-grams, to find nearly equal prompts
        ("response_hash", pa.string()),
        ("system_hash", pa.string()),
        ("conversation_hash", pa.string()),
        ("language", pa.string()),  # ISO 639-1; null if the text is too short
        *((name, pa.int8()) for name in NAMES),  # 1 where the content has this fault
        ("faults", pa.map_(pa.string(), pa.string())),  # a masked snippet for each fault; the one column with text
    ]
)


class Signaller:
    """Makes rows of signals with one base model's tokenizer."""

    def __init__(self, reader: ModelReader) -> None:
        self._reader = reader
        self._context = reader.context
        self._inspector = Inspector(reader.control_tokens, reader.special_tokens)
        self._prompts = shared_text.Sample()

    def rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """One row for each record."""
        read = [one.conversation for one in records if one.conversation is not None]
        tokens = iter(self._reader.counts(read))
        responses = iter(self._reader.lengths([_said(one.messages[-1]) if one.messages else "" for one in read]))
        return [
            _none(one.row, one.error or "", one.snippet)
            if one.conversation is None
            else self._row(one, one.conversation, next(tokens), next(responses))
            for one in records
        ]

    def _row(self, record: Record, conversation: Conversation, tokens: int | str, response: int) -> dict[str, Any]:
        if isinstance(tokens, str):
            return _none(record.row, one_line(tokens), excerpt(conversations.encode(conversation).decode()))
        signals = self._signals(conversation, record.label or "", tokens, response)
        return {"row": record.row, "error": None, "label": record.label, **signals}

    def _signals(self, conversation: Conversation, label: str, tokens: int, response: int) -> dict[str, Any]:
        messages, prompt = conversation.messages, conversation.prompt_key
        faults = self._inspector.faults(conversation, label) | _short(messages) | _empty(messages)
        system = [message.text for message in messages if message.role == "system"]
        prompt_hash = _hash(prompt)
        self._prompts.add(int(prompt_hash, 16), prompt)
        return {
            "roles": "".join(message.role[0] for message in messages),
            "n_empty": sum(_is_empty(message) for message in messages),
            "n_tokens": tokens,
            "n_over": max(0, tokens - self._context),
            "n_response": response,
            "prompt_hash": prompt_hash,
            "sketch": sketch(prompt),
            "response_hash": _hash(repr(messages[-1]) if messages else ""),
            "system_hash": _hash("\n".join(system)),
            "conversation_hash": conversations.identity(conversations.encode(conversation)),
            "language": language.detect(" ".join(one.text for one in messages if one.role in _SPEAKERS)),
            **{name: int(name in faults) for name in NAMES},
            "faults": faults or None,
        }

    def compare_without_shared(self, signals: Path, jsonl: Path) -> int:
        """Sketch the prompts again without what many of them share, which is known once all are seen.

        `signals` and `jsonl` hold the rows and the conversations as they were written. Returns the number of prompts
        that share something; if none does, the file stays as it is.
        """
        shared, changed = self._prompts.shared(), 0
        if not shared:
            return 0
        with (
            files.replacing(signals) as new,
            jsonl.open("rb") as lines,
            pq.ParquetFile(signals) as old,
            pq.ParquetWriter(new, SCHEMA) as table,
        ):
            for group in range(old.num_row_groups):
                rows = old.read_row_group(group)
                valid = [error is None for error in rows["error"].to_pylist()]
                prompts = [conversations.decode(next(lines)).prompt_key if one else "" for one in valid]
                compared = [shared.without(prompt) for prompt in prompts]
                changed += sum(one != other for one, other in zip(prompts, compared, strict=True))
                made = [sketch(prompt) if one else None for one, prompt in zip(valid, compared, strict=True)]
                table.write_table(_with_sketches(rows, made))
        return changed


def _with_sketches(rows: pa.Table, sketches: list[bytes | None]) -> pa.Table:
    at = SCHEMA.get_field_index("sketch")
    return rows.set_column(at, SCHEMA.field(at), pa.array(sketches, SCHEMA.field(at).type))


def _none(row: int, error: str, seen: str) -> dict[str, Any]:
    """The row of a record that is no conversation, or none that the base model can read."""
    return {"row": row, "error": error, "faults": {"error": seen}}


def _said(message: Message) -> str:
    """What the message says, or calls tools with."""
    return message.text.strip() or str(message.tool_calls or "")


def _short(messages: Sequence[Message]) -> dict[str, str]:
    """The response where it is short enough to be shown whole, for the rule that finds it too short."""
    if not messages or len(messages[-1].text) > _SHOWN_WHOLE:
        return {}
    return {"n_response": place(len(messages), messages[-1]) + snippet(messages[-1].text, (0, len(messages[-1].text)))}


def _is_empty(message: Message) -> bool:
    """Whether a speaker says nothing. No system prompt is one, and a tool may have nothing to tell."""
    return message.role in _SPEAKERS and not _said(message)


def _empty(messages: Sequence[Message]) -> dict[str, str]:
    for number, message in enumerate(messages, 1):
        if _is_empty(message):
            return {"n_empty": place(number, message) + snippet(message.text, (0, len(message.text)))}
    return {}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
