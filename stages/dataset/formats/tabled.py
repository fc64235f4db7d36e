"""JSON records in a table: alone in a row, or in a cell beside metadata, which a header names."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from stages.dataset.formats.chats import LISTS, SYSTEM
from stages.dataset.formats.fields import misfit, require
from stages.dataset.formats.keys import Keys
from stages.dataset.formats.records import Record, Shaped, decoded, shaped
from stages.dataset.masking import excerpt
from stages.dataset.source import Content, Source

# What a column may be called; a record has other signs.
_NAME = re.compile(r"[^\"\[\]{}=<>\\\x00-\x1f]{0,64}")
_JSON = ("{", "[")
# Columns that belong to the conversation in another one.
_READ = (*SYSTEM, "tools", "functions")


def header_of(first: list[str], label: str | None) -> list[str] | None:
    """The names of a table's columns, given its first row; None where that row is a record already."""
    if label:
        return first
    return first if any(map(str.strip, first)) and all(map(_NAME.fullmatch, first)) and _has_word(first) else None


def _has_word(first: list[str]) -> bool:
    return any(sign.isalpha() for name in first for sign in name)


def record_column(header: list[str], label: str | None) -> int | None:
    """Where the records are under a header: in the column of a list of messages, or the only one beside the label's."""
    named = [at for at, name in enumerate(header) if name in LISTS]
    others = [at for at, name in enumerate(header) if name != label]
    found = named or others
    return found[0] if len(found) == 1 else None


def read(
    rows: Iterator[tuple[int, Content]],
    shape: Callable[..., Shaped],
    source: Source,
    keys: Keys,
    look: Any,
) -> Iterator[Record]:
    """A record for each row; a header is none.

    Raises:
        UserError: the column of the label is missing or repeated.
    """
    header: list[str] = []
    place: int | None = None
    for row, content in rows:
        if not isinstance(content, list):
            yield shaped(row, content, partial(shape, label=source.label), source)
        elif row == 1 and (names := header_of(content, source.label)) is not None:
            header, place = names, record_column(names, source.label)
            require(header, [source.label] if source.label else [], source, look)
        elif len(header) < 2 and len(content) == 1:
            yield shaped(row, content[0], partial(shape, label=source.label), source)
        elif len(header) < 2 and content:
            reason = f"{len(content)} columns where one column of JSON records is expected"
            yield Record(row, None, reason, excerpt(" | ".join(content)))
        elif misplaced := misfit(content, header):
            yield Record(row, None, misplaced, excerpt(" | ".join(content)))
        else:
            at = place if place is not None else _json_at(content)
            beside = partial(
                _beside, row=dict(zip(header, content, strict=True)), shape=shape, source=source, keys=keys
            )
            yield shaped(row, content[at], partial(beside, name=header[at]), source)


def _json_at(content: list[str]) -> int:
    """The first cell that may be JSON."""
    return next((at for at, cell in enumerate(content) if cell.lstrip().startswith(_JSON)), 0)


def _beside(
    cell: str, name: str, row: dict[str, str], shape: Callable[..., Shaped], source: Source, keys: Keys
) -> Shaped:
    """The record in a cell, with what other cells say of it: a system prompt, tools, metadata."""
    given = row.pop(source.label) if source.label else None
    others = {other: value for other, value in row.items() if other != name}
    said = {other: others.pop(other) for other in _READ if others.get(other, "").strip()}
    keys.leave(others.items())
    if said:
        value = decoded(cell, Any)
        record = value if isinstance(value, dict) else {"messages": value}
        if twice := said.keys() & record.keys():
            raise msgspec.ValidationError(f"The key `{min(twice)}` is in the record and in a column; keep one")
        cell = msgspec.json.encode({**said, **record}).decode()
    return shape(cell, label=None)[0], given
