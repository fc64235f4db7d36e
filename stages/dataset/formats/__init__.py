"""From a source's record to a conversation, for each `format` that a source can have. Nothing is repaired."""

import itertools
from collections.abc import Iterator

from stages.core.cli import UserError
from stages.dataset.formats import grouped, suggest, tabled
from stages.dataset.formats.keys import CHANGING, Keys
from stages.dataset.formats.records import Record
from stages.dataset.formats.registry import REGISTRY, Format, column_names, format_of, looks_like
from stages.dataset.formats.registry import read as _read
from stages.dataset.readers import limits
from stages.dataset.source import Content, Source

__all__ = [
    "CHANGING",
    "REGISTRY",
    "Format",
    "Record",
    "columns",
    "header_of",
    "in_records",
    "members",
    "read",
    "record_column",
]

# Rows that a declaration is tried on before the file is read.
_TRIED = 10
_ELSE = (
    "docs/own-csv.md lists the shapes that are read; `python -m stages.commands.inspect FILE` shows what a file holds"
)
columns = column_names


def read(rows: Iterator[tuple[int, Content]], source: Source) -> Iterator[Record]:
    """A record for each row, or for each conversation where a row is one message; a header is none.

    Raises:
        UserError: a column that the format or the label needs is missing, or the first rows are of another format. It
            ends with the declaration that reads them, where there is one.
    """
    first = _first(rows)
    _refuse_other_format(first, source)
    keys = Keys(source)
    yield from _read(itertools.chain(first, rows), source, keys)
    keys.report()


def _first(rows: Iterator[tuple[int, Content]]) -> list[tuple[int, Content]]:
    """Some of the first rows, together not much longer than one record may be."""
    found, size = [], 0
    for row in rows:
        found.append(row)
        content = row[1]
        size += (
            sum(map(len, content)) if isinstance(content, list) else len(content if isinstance(content, bytes) else ())
        )
        if len(found) == _TRIED or size > limits.RECORD_LIMIT:
            break
    return found


def in_records(source: Source) -> bool:
    """Whether a record is one JSON text, which a table has in a single column."""
    return REGISTRY[source.format].record is not None


def header_of(first: list[str], source: Source) -> list[str] | None:
    """The names of a table's columns, given its first row; None where that row is a record already."""
    return tabled.header_of(first, source.label) if in_records(source) else first


def record_column(header: list[str], source: Source) -> str | None:
    """The name of the column that holds the records, where the header shows it."""
    place = tabled.record_column(header, source.label)
    return header[place] if place is not None else None


def members(rows: Iterator[tuple[int, Content]], source: Source, firsts: set[int]) -> dict[int, int]:
    """For each further row of the conversations that begin in the rows `firsts`, that first row."""
    return grouped.members(rows, source, firsts, format_of) if source.turns else {}


def _refuse_other_format(first: list[tuple[int, Content]], source: Source) -> None:
    """Refuse a file whose first rows are of another format.

    Raises:
        UserError: they are, with the declaration that reads them.
    """
    found = set[str]().union(*(looks_like(content) for _, content in first[:2]))
    if REGISTRY[source.format].marks and found and source.format not in found:
        raise UserError(
            f"the source is declared as format: {source.format}, and its first record looks like"
            f" {', '.join(sorted(found))}; fix {source.key('format')}\n{suggest.way_out(first, source) or _ELSE}"
        )
    try:
        records = suggest.tried(first, source)
    except UserError as error:
        raise UserError(f"{error}\n{suggest.way_out(first, source) or _ELSE}") from None
    if any(one.conversation is not None for one in records) or not records:
        return
    if way := suggest.way_out(first, source):
        raise UserError(
            f"none of the first {len(records)} records is of format {source.format}: {records[0].error};"
            f" fix {source.key('format')}\n{way}"
        )
