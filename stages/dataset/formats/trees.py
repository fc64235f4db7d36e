"""Trees of messages, as OpenAssistant publishes them: the best-ranked path of each tree is its conversation.

A record is a whole tree (`prompt` with `replies`), or a row is one message with `message_id` and `parent_id`. Of
several replies the one with the lowest `rank` is taken, or else the first; a question at the end without a reply is
left out.
"""

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import msgspec

from stages.dataset.conversations import Conversation
from stages.dataset.formats import grouped
from stages.dataset.formats.chats import Chats
from stages.dataset.formats.keys import Keys
from stages.dataset.formats.records import Record, decoded, shaped
from stages.dataset.masking import excerpt
from stages.dataset.source import Content, Source

_NEEDED = ["message_id", "parent_id", "text", "role"]
# What a message says beside its text is about how it was collected, not part of the conversation.
_TABLE = """
create table said (row integer primary key, id text, parent text, rank real, body blob);
create unique index of_an_id on said (id);
create index of_a_parent on said (parent);
"""
_ROOTS = "select row, id, body from said where parent is null order by row"
_BEST = "select row, id, body from said where parent = ? order by rank is null, rank, row limit 1"
_ORPHANS = "select row, parent from said where parent is not null and parent not in (select id from said) order by row"
# Messages of a path: a longer one is a circle or no conversation.
_LONGEST = 1_000
Found = dict[str, Any]


def read(rows: Iterator[tuple[int, Content]], source: Source, keys: Keys, look: Any) -> Iterator[Record]:
    """A conversation for each tree, numbered by the row of its first message.

    Raises:
        UserError: a column is missing or repeated.
    """
    chats = Chats.of(source, keys)
    first = next(rows, None)
    if first is None:
        return
    rows = itertools.chain([first], rows)
    yield from (_nested if _is_nested(first[1]) else _flat)(rows, source, chats, look)


def _is_nested(content: Content) -> bool:
    try:
        return not isinstance(content, list) and "prompt" in decoded(content, dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError):
        return False


def _nested(rows: Iterator[tuple[int, Content]], source: Source, chats: Chats, _: Any) -> Iterator[Record]:
    left = 0
    for row, content in rows:
        counts: list[int] = []
        yield shaped(row, content, partial(_of_tree, chats=chats, source=source, counts=counts), source)
        left += sum(counts)
    _say(chats, left)


def _of_tree(content: Content, chats: Chats, source: Source, counts: list[int]) -> tuple[Conversation, Any]:
    tree = decoded(content, dict[str, Any])
    path, at = list[Found](), tree.get("prompt")
    while isinstance(at, dict):
        path.append(at)
        replies = at.get("replies") or []
        best = sorted((one for one in replies if isinstance(one, dict)), key=_rank)
        at = best[0] if best else None
    found = _conversation(path, chats)
    counts.append(_size(tree.get("prompt")) - len(found.messages))
    return found, tree.get(source.label or "")


def _rank(found: Found) -> tuple[bool, float]:
    rank = found.get("rank")
    return not isinstance(rank, int | float), rank if isinstance(rank, int | float) else 0


def _size(tree: Any) -> int:
    count, left = 0, [tree]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            count += 1
            left.extend(one.get("replies") or [])
    return count


def _flat(rows: Iterator[tuple[int, Content]], source: Source, chats: Chats, look: Any) -> Iterator[Record]:
    with closing(sqlite3.connect("")) as database:
        database.executescript(_TABLE)
        total = used = 0
        for row, found in grouped.named(rows, source, [*_NEEDED, *([source.label] if source.label else [])], look):
            record = found if isinstance(found, Record) else _keep(database, row, found)
            total += record is None
            if record is not None:
                yield record
        for row, parent in database.execute(_ORPHANS):
            total -= 1
            yield Record(row, None, "the message's parent_id is that of no message in the file", excerpt(parent))
        for row, identity, body in database.execute(_ROOTS):
            found_rows, said = _path(database, row, identity, body)
            record = shaped(
                row, said, lambda path: (_conversation(path, chats), path[0].get(source.label or "")), source
            )
            used += len(record.conversation.messages) if record.conversation else len(said)
            where = f"the tree's rows {', '.join(map(str, found_rows[:10]))}"
            yield record if record.error is None else record._replace(snippet=where)
        _say(chats, total - used)


def _keep(database: sqlite3.Connection, row: int, found: Found) -> Record | None:
    """Put a message into the database; what is wrong with it, if something is."""
    identity, parent = (_identity(found.get(name)) for name in ("message_id", "parent_id"))
    if identity is None:
        return Record(row, None, "no text in field `message_id`", excerpt(str(found)))
    rank = found.get("rank")
    try:
        place = float(rank) if rank not in (None, "") else None
        database.execute(
            "insert into said values (?, ?, ?, ?, ?)", (row, identity, parent, place, msgspec.json.encode(found))
        )
    except (TypeError, ValueError):
        return Record(row, None, "Expected a number in field `rank`", excerpt(str(rank)))
    except sqlite3.IntegrityError:
        return Record(row, None, "the message_id is that of another row too", excerpt(identity))
    return None


def _identity(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def _path(database: sqlite3.Connection, row: int, identity: str, body: bytes) -> tuple[list[int], list[Found]]:
    rows, said = [row], [msgspec.json.decode(body)]
    while (best := database.execute(_BEST, (identity,)).fetchone()) and len(rows) < _LONGEST:
        row, identity, body = best
        rows.append(row)
        said.append(msgspec.json.decode(body))
    return rows, said


def _conversation(path: list[Found], chats: Chats) -> Conversation:
    found = chats.conversation([{"role": one.get("role"), "content": one.get("text")} for one in path])
    messages = list(found.messages)
    while len(messages) > 1 and messages[-1].role == "user":
        messages.pop()
    return Conversation(tuple(messages))


def _say(chats: Chats, left: int) -> None:
    chats.keys.note(
        f"the source holds trees of messages; the best-ranked path of each is read, and {left:,} messages on other"
        " paths are left out"
    )
