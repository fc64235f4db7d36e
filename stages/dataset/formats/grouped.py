"""Tables with one row for each message, put together to conversations in one pass.

The rows lie in a temporary database on the disk, so a conversation's rows may be anywhere in the file, and memory is
bounded by one conversation.
"""

import itertools
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import msgspec

from stages.dataset.conversations import Conversation
from stages.dataset.formats import fields
from stages.dataset.formats.chats import Chats
from stages.dataset.formats.keys import Keys
from stages.dataset.formats.records import Record, decoded, shaped
from stages.dataset.masking import excerpt
from stages.dataset.readers import limits
from stages.dataset.source import Content, Source, Turns

# Columns of a message that are passed on as they are.
_OF_A_MESSAGE = ("name", "tool_call_id", "tool_calls", "function_call", "weight")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?")
_ROWS_NAMED = 10
# A row's number, and its fields by name.
Row = tuple[int, dict[str, Any]]
_TABLE = """
create table said (row integer primary key, conversation text, body blob);
create index of_a_conversation on said (conversation);
"""
_IN_ORDER = """
select row, conversation, body from said
join (select conversation, min(row) as begins from said group by conversation) using (conversation)
order by begins, row
"""


def read(rows: Iterator[tuple[int, Content]], source: Source, keys: Keys, look: Any) -> Iterator[Record]:
    """A conversation for each value of the source's column of conversations, numbered by its first row.

    Raises:
        UserError: a column is missing or repeated.
    """
    assert source.turns is not None
    turns, chats = source.turns, Chats.of(source, keys)
    with closing(sqlite3.connect("")) as database:
        database.executescript(_TABLE)
        for row, found in named(rows, source, _needed(turns, source), look):
            if isinstance(found, Record):
                yield found
                continue
            identity = found.get(turns.conversation)
            if identity is None or isinstance(identity, dict | list) or not str(identity).strip():
                reason = f"no text in field `{turns.conversation}`, which says to which conversation the row belongs"
                yield Record(row, None, reason, excerpt(str(found)))
                continue
            database.execute("insert into said values (?, ?, ?)", (row, str(identity), msgspec.json.encode(found)))
        said = database.execute(_IN_ORDER)
        for identity, group in itertools.groupby(said, key=lambda one: one[1]):
            yield _record(identity, ((row, body) for row, _, body in group), turns, chats, source)


def _needed(turns: Turns, source: Source) -> list[str]:
    return [name for name in (turns.conversation, turns.role, turns.content, turns.order, source.label) if name]


def named(
    rows: Iterator[tuple[int, Content]], source: Source, needed: list[str], look: Any
) -> Iterator[tuple[int, dict[str, Any] | Record]]:
    """Rows with their fields by name, of a table or of JSON records; a row that has none is an error of its own.

    Raises:
        UserError: a column is missing or repeated.
    """
    header: list[str] | None = None
    for row, content in rows:
        if not isinstance(content, list):
            found: list[dict[str, Any]] = []
            record = shaped(row, content, partial(_kept, into=found), source)
            yield row, found[0] if found else record
        elif header is None:
            header = content
            fields.require(header, needed, source, look)
        elif reason := fields.misfit(content, header):
            yield row, Record(row, None, reason, excerpt(" | ".join(content)))
        else:
            yield row, dict(zip(header, content, strict=True))


def _kept(content: Content, into: list[dict[str, Any]]) -> tuple[Any, None]:
    into.append(decoded(content, dict[str, Any]))
    return None, None


def _record(identity: str, group: Iterator[tuple[int, bytes]], turns: Turns, chats: Chats, source: Source) -> Record:
    rows, size, said = [], 0, list[Row]()
    for row, body in group:
        rows.append(row)
        size += len(body)
        if size <= limits.RECORD_LIMIT:
            said.append((row, msgspec.json.decode(body)))
    where = f"conversation {excerpt(identity)}, rows {_listed(rows)}"
    if size > limits.RECORD_LIMIT:
        return Record(rows[0], None, f"a conversation of more than {limits.RECORD_LIMIT:,} bytes", where)
    found = shaped(
        rows[0], said, lambda group: (_conversation(group, turns, chats, source), _label(group, source)), source
    )
    return found if found.error is None else found._replace(snippet=where)


def _listed(rows: list[int]) -> str:
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    return ", ".join(map(str, rows[:_ROWS_NAMED])) + more


def _label(group: list[Row], source: Source) -> Any:
    """The first label that a row of the conversation has."""
    return next((one[source.label] for _, one in group if source.label and one.get(source.label)), None)


def _conversation(group: list[Row], turns: Turns, chats: Chats, source: Source) -> Conversation:
    used = {*_needed(turns, source), *_OF_A_MESSAGE}
    messages = []
    for _, found in _ordered(group, turns):
        chats.keys.leave((name, value) for name, value in found.items() if name not in used)
        message = {"role": found.get(turns.role), "content": found.get(turns.content)}
        messages.append(message | {name: found[name] for name in _OF_A_MESSAGE if found.get(name) not in (None, "")})
    return chats.conversation(messages)


def _ordered(group: list[Row], turns: Turns) -> list[Row]:
    """The rows by the order column: by numbers, or by dates as ISO writes them; without one as they follow."""
    if turns.order is None:
        return group
    values = [found.get(turns.order) for _, found in group]
    places: list[Any]
    try:
        places = [float(value) for value in values]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        if not all(isinstance(value, str) and _DATE.fullmatch(value) for value in values):
            raise msgspec.ValidationError(
                f"Expected numbers, or dates such as 2026-11-25 10:00, in field `{turns.order}`"
            ) from None
        places = values
    if len(set(places)) < len(places):
        raise msgspec.ValidationError(f"Two messages have the same value in field `{turns.order}`")
    return [one for _, one in sorted(zip(places, group, strict=True), key=lambda pair: pair[0])]


def members(rows: Iterator[tuple[int, Content]], source: Source, firsts: set[int], look: Any) -> dict[int, int]:
    """For each further row of the conversations that begin in the rows `firsts`, that first row."""
    assert source.turns is not None
    begins, found = dict[str, int](), dict[int, int]()
    for row, content in named(rows, source, _needed(source.turns, source), look):
        if isinstance(content, Record):
            continue
        identity = str(content.get(source.turns.conversation))
        if row in firsts:
            begins[identity] = row
        elif identity in begins:
            found[row] = begins[identity]
    return found
