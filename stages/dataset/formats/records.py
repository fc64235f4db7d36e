"""One record: decoded, or the reason why it is no conversation, in words that are equal for equal faults."""

import collections
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from stages.dataset.conversations import Conversation
from stages.dataset.masking import excerpt, one_line, snippet
from stages.dataset.source import Content, Source

_BYTE = re.compile(r" \(byte (\d{1,9})\)$")
# Half of a surrogate pair as JSON escapes it.
_HALF = re.compile(
    r"(?<!\\)(?:\\\\)*+(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_HALF_REASON = "the text holds half of a surrogate pair"
# How Python writes a list of messages, as pandas does into a CSV.
PYTHON = re.compile(r"\s*(\[\s*)?\{'")
_PYTHON_REASON = (
    "the cell is a Python list and not JSON; docs/conversions.md#python-lists-in-a-csv has the lines that convert it"
)
# Longest label: a longer one is no name of a slice.
_LABEL_LIMIT = 100
# A conversation, and what the record gives as its label.
Shaped = tuple[Conversation, Any]


class Record(NamedTuple):
    """What became of a row: a conversation and its label, or an error with a snippet of what is there."""

    row: int
    conversation: Conversation | None
    error: str | None = None
    snippet: str = ""
    label: str | None = None


def shaped(row: int, content: Content, shape: Callable[[Any], Shaped], source: Source) -> Record:
    """The record that `shape` makes of the content, or what is wrong with it."""
    try:
        conversation, label = shape(content)
        return Record(row, conversation, label=_label(label, source.label) if source.label else None)
    except UnicodeEncodeError as error:
        why, seen = _HALF_REASON, snippet(error.object, (error.start, error.end))
    except RecursionError:
        why, seen = "the JSON is nested too deeply", excerpt(_text(content))
    except (msgspec.DecodeError, TypeError) as error:
        why, seen = _why(error, _text(content))
    return Record(row, None, why, seen)


def _label(value: Any, name: str) -> str:
    """The label as text, empty where the record has none."""
    if not isinstance(value, str | int | None):
        raise msgspec.ValidationError(f"Expected text or a number in field `{name}`, got {type(value).__name__}")
    label = "" if value is None else str(value).strip()
    if len(label) > _LABEL_LIMIT:
        raise msgspec.ValidationError(f"Expected a label of at most {_LABEL_LIMIT} characters in field `{name}`")
    return label


def _why(error: Exception, text: str) -> tuple[str, str]:
    """Reason and snippet. The place differs from row to row; without it, equal faults have equal reasons."""
    why = str(error)
    # What msgspec says of it depends on its place, and can be that the text is cut off.
    if not isinstance(error, msgspec.ValidationError) and (half := _HALF.search(text)):
        return _HALF_REASON, snippet(text, half.span(1))
    if not isinstance(error, msgspec.ValidationError) and PYTHON.match(text):
        return _PYTHON_REASON, excerpt(text)
    if not (place := _BYTE.search(why)):
        return one_line(why), excerpt(text)
    at = len(text.encode()[: int(place[1])].decode("utf-8", "ignore"))
    return one_line(_BYTE.sub("", why)), snippet(text, (at, at + 1))


def _text(content: Any) -> str:
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    return content if isinstance(content, str) else repr(content)


def decoded(content: Any, kind: Any) -> Any:
    """The record as a value of `kind`; a decoded one goes through JSON once more, for it may hold what JSON refuses.

    Raises:
        msgspec.DecodeError: it is not JSON, or not of that kind, or repeats a key.
    """
    record = as_json(content)
    value = msgspec.json.decode(record, type=kind)
    refuse_repetition(record)
    return value


def as_json(content: Any) -> str | bytes:
    """The record in JSON."""
    return content if isinstance(content, str | bytes) else msgspec.json.encode(content)


def refuse_repetition(record: str | bytes) -> None:
    """Refuse equal keys in an object: msgspec keeps the last, and what the others said would be lost without a trace.

    Raises:
        msgspec.ValidationError: there are some.
    """
    json.loads(record, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise msgspec.ValidationError(f"The key `{twice}` is repeated in one object")
