"""From a source's record to a conversation, for each `format` that a source can have. Nothing is repaired.

A format is one entry in `REGISTRY`: what params.yaml allows, the documentation and the hints of errors follow from it.
"""

import collections
import itertools
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import msgspec

from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message, Role
from stages.dataset.masking import excerpt, one_line, snippet
from stages.dataset.source import Content, Source

_NAME = re.compile(r"[\w .-]{1,64}")
_BYTE = re.compile(r" \(byte (\d{1,9})\)$")
# Half of a surrogate pair as JSON escapes it.
_HALF = re.compile(
    r"(?<!\\)(?:\\\\)*+(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_HALF_REASON = "the text holds half of a surrogate pair"
# Names that an error lists.
_NAMED = 20
# Longest label: a longer one is no name of a slice.
_LABEL_LIMIT = 100
# A conversation, and what the record gives as its label.
_Shaped = tuple[Conversation, Any]
# For each role the names of the columns or keys that it is made of; a name that ends in ? may be missing.
_Columns = Mapping[str, Sequence[str]]


class Record(NamedTuple):
    """What became of a row: a conversation and its label, or an error with a snippet of what is there."""

    row: int
    conversation: Conversation | None
    error: str | None = None
    snippet: str = ""
    label: str | None = None


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


def read(rows: Iterator[tuple[int, Content]], source: Source) -> Iterator[Record]:
    """A record for each row; a header is none.

    Raises:
        UserError: a column that the format or the label needs is missing, or the first rows are of another format.
    """
    first = list(itertools.islice(rows, 2))
    _refuse_other_format([content for _, content in first], source)
    return (_records if in_records(source) else _fields)(itertools.chain(first, rows), source)


def in_records(source: Source) -> bool:
    """Whether a record is one JSON text, which a table has in a single column."""
    return REGISTRY[source.format].record is not None


def header_of(first: list[str], source: Source) -> list[str] | None:
    """The names of a CSV's columns, given its first row; None where that row is a record already."""
    if not in_records(source) or source.label:
        return first
    return first if len(first) == 1 and _NAME.fullmatch(first[0]) else None


def _refuse_other_format(contents: list[Content], source: Source) -> None:
    found = {look for content in contents if (look := _looks_like(content))}
    if REGISTRY[source.format].marks and found and source.format not in found:
        raise UserError(
            f"the source is declared as format: {source.format}, and its first record looks like"
            f" {', '.join(sorted(found))}; fix {source.key('format')}"
        )


def _looks_like(content: Content) -> str | None:
    """The format of a header or a record by its names, if they show it."""
    if isinstance(content, list) and len(content) > 1:
        return _format_of(content)
    try:
        record = _decoded(content[0] if isinstance(content, list) else content, dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError, IndexError):
        return None
    return _format_of(record)


def _format_of(names: Container[str]) -> str | None:
    marked = [form for form in REGISTRY.values() if form.marks]
    return next((form.name for form in marked if all(mark in names for mark in form.marks)), None)


def _records(rows: Iterator[tuple[int, Content]], source: Source) -> Iterator[Record]:
    """JSON records: alone in a row, or in a cell beside that of the label, which a header names."""
    shape = REGISTRY[source.format].record
    assert shape is not None
    names: list[str] = []
    for row, content in rows:
        if not isinstance(content, list):
            yield _record(row, content, partial(_alone, shape, source.label), source)
        elif row == 1 and header_of(content, source) is not None:
            names = content
            _require(names, [source.label] if source.label else [], source)
        elif len(content) != (2 if source.label else 1):
            beside = f", and a column '{source.label}'," if source.label else ""
            reason = f"{len(content)} columns where one column of JSON records{beside} is expected"
            yield Record(row, None, reason, excerpt(" | ".join(content)))
        else:
            label = content.pop(names.index(source.label)) if source.label else None
            yield _record(row, content[0], partial(_beside, shape, label), source)


def _alone(shape: Callable[[Any, str | None], _Shaped], label: str | None, content: Content) -> _Shaped:
    return shape(content, label)


def _beside(shape: Callable[[Any, str | None], _Shaped], label: str | None, cell: str) -> _Shaped:
    return shape(cell, None)[0], label


def _record(row: int, content: Content, shape: Callable[[Any], _Shaped], source: Source) -> Record:
    """Decode one record."""
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
    if not (place := _BYTE.search(why)):
        return one_line(why), excerpt(text)
    at = len(text.encode()[: int(place[1])].decode("utf-8", "ignore"))
    return one_line(_BYTE.sub("", why)), snippet(text, (at, at + 1))


def _text(content: Any) -> str:
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    return content if isinstance(content, str) else repr(content)


def _messages(content: Any, label: str | None = None) -> _Shaped:
    record = _decoded(content, _labelled(Conversation, label) if label else Conversation)
    if any(message.tool_calls for message in record.messages):
        msgspec.json.decode(_json(content), type=_Called)
    if label is None:
        return record, None
    return Conversation(**{name: getattr(record, name) for name in Conversation.__struct_fields__}), record.label


def _sharegpt(content: Any, label: str | None = None) -> _Shaped:
    record = _decoded(content, _labelled(_ShareGPT, label) if label else _ShareGPT)
    system = [Message("system", record.system)] if record.system else []
    turns = (Message(_SPEAKERS[turn.speaker], turn.value) for turn in record.conversations)
    return Conversation((*system, *turns)), record.label if label else None


@cache
def _labelled(kind: Any, label: str) -> Any:
    """The record's type with one more key, which holds the label; a record may lack it."""
    held = ("label", Any, msgspec.field(default=None, name=label))
    return msgspec.defstruct(f"Labelled{kind.__name__}", [held], bases=(kind,), frozen=kind.__struct_config__.frozen)


def _json(content: Any) -> str | bytes:
    # A value that is decoded already goes through JSON once more: it may hold what JSON refuses.
    return content if isinstance(content, str | bytes) else msgspec.json.encode(content)


def _decoded(content: Any, kind: Any) -> Any:
    record = _json(content)
    value = msgspec.json.decode(record, type=kind)
    # msgspec keeps the last of equal keys; what the others said would be lost without a trace.
    json.loads(record, object_pairs_hook=_without_repetition)
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise msgspec.ValidationError(f"The key `{twice}` is repeated in one object")


def _columns(source: Source) -> _Columns:
    if (columns := source.columns) is None:
        return REGISTRY[source.format].columns
    named = {"user": [columns.user], "assistant": [columns.assistant]}
    return {"system": [columns.system], **named} if columns.system else named


def columns(source: Source) -> dict[str, str]:
    """For each role the source's columns."""
    named = _columns(source)
    return {role: " and ".join(name.removesuffix("?") for name in names) for role, names in named.items()}


def _fields(rows: Iterator[tuple[int, Content]], source: Source) -> Iterator[Record]:
    wanted, constant = _columns(source), source.columns.system_prompt if source.columns else None
    shape = partial(_conversation, wanted=wanted, constant=constant, label=source.label)
    header: list[str] | None = None
    for row, content in rows:
        if isinstance(content, list):
            if header is None:
                header = content
                _require(header, _names(wanted, source), source)
                continue
            if len(content) != len(header):
                reason = f"{len(content)} columns where the header has {len(header)}"
                yield Record(row, None, reason, excerpt(" | ".join(content)))
                continue
            content = dict(zip(header, content, strict=True))
        yield _record(row, content, shape, source)


def _names(wanted: _Columns, source: Source) -> list[str]:
    """Columns that have to be there."""
    names = [name for names in wanted.values() for name in names]
    return [name for name in [*names, source.label or "?"] if not name.endswith("?")]


def _require(header: list[str], names: list[str], source: Source) -> None:
    for name in names:
        if name not in header:
            look = _format_of(header)
            hint = f"; it looks like format: {look}" if look else ""
            key = source.key("label" if name == source.label else "columns" if source.columns else "format")
            raise UserError(f"the source has no column '{name}'; its columns are: {_listed(header)}{hint}; fix {key}")
        if header.count(name) > 1:
            raise UserError(
                f"the source has {header.count(name)} columns '{name}', of which one is meant; rename the others"
            )


def _listed(header: list[str]) -> str:
    """The first names; where a header is missing, they are a conversation's text."""
    more = f" and {len(header) - _NAMED} more" if len(header) > _NAMED else ""
    return ", ".join(map(excerpt, header[:_NAMED])) + more


def _conversation(content: Any, wanted: _Columns, constant: str | None, label: str | None) -> _Shaped:
    fields = _decoded(content, dict[str, Any])
    system = constant or _joined(fields, wanted.get("system", ()))
    user, assistant = _joined(fields, wanted["user"]), _joined(fields, wanted["assistant"])
    messages = (Message("user", user), Message("assistant", assistant))
    # A system column may be empty in some rows; an empty question or answer is for the gate to see.
    conversation = Conversation((Message("system", system), *messages) if system else messages)
    return conversation, fields.get(label) if label else None


def _joined(fields: dict[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        value = fields.get(name.removesuffix("?"))
        if value is None and name.endswith("?"):
            continue
        if not isinstance(value, str):
            kind = "missing" if value is None else type(value).__name__
            raise msgspec.ValidationError(f"Expected text in field `{name.removesuffix('?')}`, got {kind}")
        parts.append(value)
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Format:
    """How a record holds a conversation.

    `meaning` describes it for people. It is recognised by `marks`, names of keys or columns. A format has `record`,
    which turns one JSON record into a conversation and the value of its label, or `columns`, or else the source names
    its columns itself.
    """

    name: str
    meaning: str
    marks: tuple[str, ...] = ()
    record: Callable[[Any, str | None], _Shaped] | None = None
    columns: _Columns = field(default_factory=dict)

    @property
    def of_named_columns(self) -> bool:
        """Whether a source of this format has to name its columns."""
        return self.record is None and not self.columns


_ALL = (
    Format("messages", "JSON chat records with messages", ("messages",), record=_messages),
    Format("columns", "a table whose columns are named"),
    Format("sharegpt", "JSON records with conversations of from and value", ("conversations",), record=_sharegpt),
    Format(
        "alpaca",
        "instruction, input and output",
        ("instruction", "output"),
        columns={"system": ["system?"], "user": ["instruction", "input?"], "assistant": ["output"]},
    ),
    Format(
        "prompt_completion",
        "prompt and completion",
        ("prompt", "completion"),
        columns={"user": ["prompt"], "assistant": ["completion"]},
    ),
)
REGISTRY = {form.name: form for form in _ALL}
