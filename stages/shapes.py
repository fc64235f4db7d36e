"""From a source's record to a conversation, for each `format` that a source can have. Nothing is repaired."""

import collections
import itertools
import json
import re
from collections.abc import Callable, Container, Iterator
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import msgspec

from stages import params
from stages.command import UserError
from stages.content import excerpt, one_line, snippet
from stages.conversations import Conversation, Message, Role
from stages.reading import Content

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


class Record(NamedTuple):
    """What became of a row: a conversation and its label, or an error with a snippet of what stands there."""

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


# By what names of keys or columns a format is known.
_MARKS = {
    "messages": ["messages"],
    "sharegpt": ["conversations"],
    "alpaca": ["instruction", "output"],
    "prompt_completion": ["prompt", "completion"],
}
_SPEAKERS: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def read(rows: Iterator[tuple[int, Content]], source: params.Source) -> Iterator[Record]:
    """A record for each row; a header is none.

    Raises:
        UserError: a column that the format or the label needs is missing, or the first rows are of another format.
    """
    first = list(itertools.islice(rows, 2))
    _refuse_other_format([content for _, content in first], source.format)
    return (_records if source.format in ("messages", "sharegpt") else _fields)(itertools.chain(first, rows), source)


def _refuse_other_format(contents: list[Content], declared: str) -> None:
    found = {look for content in contents if (look := _looks_like(content))}
    if declared != "columns" and found and declared not in found:
        raise UserError(
            f"the source is declared as format: {declared}, and its first record looks like {found.pop()}; mend"
            " data.sources.*.format"
        )


def _looks_like(content: Content) -> str | None:
    """The format that a header or a record has by its names, where they tell."""
    if isinstance(content, list) and len(content) > 1:
        return _format_of(content)
    try:
        record = _decoded(content[0] if isinstance(content, list) else content, dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError, IndexError):
        return None
    return _format_of(record)


def _format_of(names: Container[str]) -> str | None:
    return next((form for form, keys in _MARKS.items() if all(key in names for key in keys)), None)


def _records(rows: Iterator[tuple[int, Content]], source: params.Source) -> Iterator[Record]:
    """JSON records: alone in a row, or in a cell beside that of the label, which a header names."""
    shape = _messages if source.format == "messages" else _sharegpt
    header: list[str] = []
    for row, content in rows:
        if not isinstance(content, list):
            yield _record(row, content, partial(shape, label=source.label), source)
        elif row == 1 and source.label:
            header = content
            _require(header, [source.label])
        elif row == 1 and len(content) == 1 and _NAME.fullmatch(content[0]):
            pass
        elif len(content) != (2 if source.label else 1):
            beside = f", and a column '{source.label}'," if source.label else ""
            reason = f"{len(content)} columns where one column of JSON records{beside} is expected"
            yield Record(row, None, reason, excerpt(" | ".join(content)))
        else:
            label = content.pop(header.index(source.label)) if source.label else None
            yield _record(row, content[0], partial(_beside, shape, label), source)


def _beside(shape: Callable[[Any], _Shaped], label: str | None, cell: str) -> _Shaped:
    return shape(cell)[0], label


def _record(row: int, content: Content, shape: Callable[[Any], _Shaped], source: params.Source) -> Record:
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
    # What msgspec says of it depends on where it stands, and can be that the text is cut off.
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
    field = ("label", Any, msgspec.field(default=None, name=label))
    return msgspec.defstruct(f"Labelled{kind.__name__}", [field], bases=(kind,), frozen=kind.__struct_config__.frozen)


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
        raise msgspec.ValidationError(f"The key `{twice}` stands more than once in one object")


def _columns(source: params.Source) -> dict[str, Any]:
    """For each role the names of the columns that it is made of; a name that ends in ? may be missing."""
    if source.format == "alpaca":
        return {"system": ["system?"], "user": ["instruction", "input?"], "assistant": ["output"]}
    if source.format == "prompt_completion":
        return {"user": ["prompt"], "assistant": ["completion"]}
    columns = source.columns
    assert columns is not None, "params.Source lets no table pass without columns"
    named = {"user": [columns.user], "assistant": [columns.assistant]}
    if columns.system_prompt:
        return {"constant": columns.system_prompt, **named}
    return {"system": [columns.system], **named} if columns.system else named


def columns(source: params.Source) -> dict[str, str]:
    """For each role the source's column, where it is one."""
    named = {role: names for role, names in _columns(source).items() if role != "constant"}
    return {role: " and ".join(name.removesuffix("?") for name in names) for role, names in named.items()}


def _fields(rows: Iterator[tuple[int, Content]], source: params.Source) -> Iterator[Record]:
    wanted = _columns(source)
    header: list[str] | None = None
    for row, content in rows:
        if isinstance(content, list):
            if header is None:
                header = content
                _require(header, _names(wanted, source))
                continue
            if len(content) != len(header):
                reason = f"{len(content)} columns where the header has {len(header)}"
                yield Record(row, None, reason, excerpt(" | ".join(content)))
                continue
            content = dict(zip(header, content, strict=True))
        yield _record(row, content, partial(_conversation, wanted=wanted, label=source.label), source)


def _names(wanted: dict[str, Any], source: params.Source) -> list[str]:
    """Columns that have to be there."""
    names = [name for role, names in wanted.items() if role != "constant" for name in names]
    return [name for name in [*names, source.label or "?"] if not name.endswith("?")]


def _require(header: list[str], names: list[str]) -> None:
    for name in names:
        if name not in header:
            look = _format_of(header)
            hint = f"; it looks like format: {look}" if look else ""
            raise UserError(
                f"the source has no column '{name}'; its columns are: {_listed(header)}{hint}; mend data.sources.*"
            )
        if header.count(name) > 1:
            raise UserError(
                f"the source has {header.count(name)} columns '{name}', of which one is meant; rename the others"
            )


def _listed(header: list[str]) -> str:
    """The first names; where a header is missing, they are a conversation's text."""
    more = f" and {len(header) - _NAMED} more" if len(header) > _NAMED else ""
    return ", ".join(map(excerpt, header[:_NAMED])) + more


def _conversation(content: Any, wanted: dict[str, Any], label: str | None) -> _Shaped:
    fields = _decoded(content, dict[str, Any])
    system = wanted.get("constant") or _joined(fields, wanted.get("system", []))
    user, assistant = _joined(fields, wanted["user"]), _joined(fields, wanted["assistant"])
    messages = (Message("user", user), Message("assistant", assistant))
    # A system column may be empty in some rows; an empty question or answer is for the gate to see.
    conversation = Conversation((Message("system", system), *messages) if system else messages)
    return conversation, fields.get(label) if label else None


def _joined(fields: dict[str, Any], names: list[str]) -> str:
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
