"""From a source's record to a conversation, for each `format` that a source can have. Nothing is repaired."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from stages import params
from stages.command import UserError
from stages.content import excerpt, snippet
from stages.conversations import Conversation, Message, Role
from stages.reading import Content

# Row number, conversation or None, and then why there is none, with a snippet.
Record = tuple[int, Conversation | None, str | None, str | None]
_NAME = re.compile(r"[\w .-]{1,64}")
_BYTE = re.compile(r" \(byte (\d+)\)")
_Shape = Callable[[Any], Conversation]


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    speaker: Literal["system", "human", "user", "gpt", "assistant"] = msgspec.field(name="from")
    value: str


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


def read(rows: Iterator[tuple[int, Content]], source: params.Source) -> Iterator[Record]:
    """A record for each row; a header is none.

    Raises:
        UserError: a column that the format needs is missing.
    """
    if source.format in ("messages", "sharegpt"):
        shape = _messages if source.format == "messages" else _sharegpt
        yield from (_record(row, content, shape) for row, content in _without_header(rows))
    else:
        yield from _fields(rows, _columns(source))


def _without_header(rows: Iterator[tuple[int, Content]]) -> Iterator[tuple[int, Content]]:
    """All rows but a first one of a single cell that is a name and not a record."""
    for row, content in rows:
        if not (row == 1 and isinstance(content, list) and len(content) == 1 and _NAME.fullmatch(content[0])):
            yield row, content


def _record(row: int, content: Content, shape: _Shape) -> Record:
    """Decode one record of JSON, wherever it stands."""
    if isinstance(content, list):
        if len(content) != 1:
            reason = f"{len(content)} columns where one column of JSON records is expected"
            return row, None, reason, excerpt(" | ".join(content))
        content = content[0]
    try:
        return row, shape(content), None, None
    except UnicodeEncodeError as error:
        return row, None, "the text holds half of a surrogate pair", snippet(_text(content), (error.start, error.end))
    except RecursionError:
        return row, None, "the JSON is nested too deeply", excerpt(_text(content))
    except (msgspec.DecodeError, TypeError) as error:
        return row, None, *_why(str(error), _text(content))


def _why(reason: str, text: str) -> tuple[str, str]:
    """Reason and snippet. The place differs from row to row; without it, equal faults have equal reasons."""
    place = _BYTE.search(reason)
    if not place:
        return reason, excerpt(text)
    at = len(text.encode()[: int(place[1])].decode("utf-8", "ignore"))
    return _BYTE.sub("", reason), snippet(text, (at, at + 1))


def _text(content: Any) -> str:
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    return content if isinstance(content, str) else repr(content)


def _messages(content: Any) -> Conversation:
    return _decoded(content, Conversation)


def _sharegpt(content: Any) -> Conversation:
    record = _decoded(content, _ShareGPT)
    system = [Message("system", record.system)] if record.system else []
    return Conversation((*system, *(Message(_SPEAKERS[turn.speaker], turn.value) for turn in record.conversations)))


def _decoded(content: Any, kind: Any) -> Any:
    # A value that is decoded already goes through JSON once more: it may hold what JSON refuses.
    record = content if isinstance(content, str | bytes) else msgspec.json.encode(content)
    return msgspec.json.decode(record, type=kind)


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


def _fields(rows: Iterator[tuple[int, Content]], wanted: dict[str, Any]) -> Iterator[Record]:
    header: list[str] | None = None
    for row, content in rows:
        if isinstance(content, list) and header is None:
            header = content
            _require(header, wanted)
            continue
        if isinstance(content, list) and header is not None:
            if len(content) != len(header):
                reason = f"{len(content)} columns where the header has {len(header)}"
                yield row, None, reason, excerpt(" | ".join(content))
                continue
            content = dict(zip(header, content, strict=True))
        yield _record(row, content, lambda fields: _conversation(fields, wanted))


def _require(header: list[str], wanted: dict[str, Any]) -> None:
    names = [name for role, names in wanted.items() if role != "constant" for name in names]
    for name in names:
        if not name.endswith("?") and name not in header:
            raise UserError(
                f"the source has no column '{name}'; its columns are: {', '.join(header)}; mend data.sources.*"
            )


def _conversation(content: Any, wanted: dict[str, Any]) -> Conversation:
    fields = _decoded(content, dict[str, Any])
    system = wanted.get("constant") or _joined(fields, wanted.get("system", []))
    user, assistant = _joined(fields, wanted["user"]), _joined(fields, wanted["assistant"])
    messages = (Message("user", user), Message("assistant", assistant))
    # A system column may be empty in some rows; an empty question or answer is for the gate to see.
    return Conversation((Message("system", system), *messages) if system else messages)


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
