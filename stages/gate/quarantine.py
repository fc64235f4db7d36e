"""Rows that the gate sets aside, as a table that pandas and any other reader of CSV take as it is.

Its columns are `row`, `why` and then the source's own. A record of JSON or JSON Lines is one cell, `record`, as it is
written: it may be no JSON at all, and can go back into its file. So is a record of a CSV that has no header. Of a table
with a row for each message, a conversation's further rows are JSON lists in the column `more` of its first.
"""

import collections
import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import QUARANTINE, RAW
from stages.dataset import formats, readers
from stages.dataset.source import Content, Source

_OURS = ("row", "why")
_RECORD = ["record"]
# Cells of a row beyond the header, as a JSON list; the column is there where a row has some.
_MORE = "more"


def write(reasons: Mapping[int, str], source: Source, limit: int) -> None:
    """Write data/quarantine.csv: the rows of the source that have a reason, in the source's order.

    Every cell is quoted: a reader would take a carriage return outside quotes for the end of the record.

    Raises:
        UserError: the source lacks one of the rows, or cannot be read.
    """
    with files.replacing(QUARANTINE) as path, tempfile.TemporaryFile() as spool:
        names, widest = _spool(spool, reasons, source, limit)
        wide = widest > len(names)
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(_unique([*_OURS, *names, _MORE] if wide else [*_OURS, *names]))
            for row, cells in _spooled(spool):
                writer.writerow([row, reasons[row], *_fitted(cells, len(names), wide)])


def _spool(spool: BinaryIO, reasons: Mapping[int, str], source: Source, limit: int) -> tuple[list[str], int]:
    """Keep the rows on the disk until it is known whether one is wider than the header; names and the widest row."""
    names, widest, kept = None, 0, dict[int, list[str]]()
    firsts = formats.members(readers.rows(RAW, source, limit), source, set(reasons)) if reasons else {}
    last = max([*reasons, *firsts], default=0)
    for row, content in readers.rows(RAW, source, limit):
        names = _names(content, source) if names is None else names
        if row > last:
            break
        if row in reasons:
            kept[row] = _cells(content, names)
        elif row in firsts:
            # Further rows of a conversation are cells beyond the header of its first.
            kept[firsts[row]].append(msgspec.json.encode(_cells(content, names)).decode())
        if row in kept and not firsts:
            widest = max(widest, _put(spool, row, kept[row]))
            kept[row] = []
    if len(kept) < len(reasons):
        raise UserError(f"{RAW} changed while it was read; run `dvc repro` again")
    for row, cells in kept.items() if firsts else ():
        widest = max(widest, _put(spool, row, cells))
    return names or [], widest


def _put(spool: BinaryIO, row: int, cells: list[str]) -> int:
    spool.write(msgspec.json.encode((row, cells)) + b"\n")
    return len(cells)


def _spooled(spool: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    spool.seek(0)
    for line in spool:
        yield msgspec.json.decode(line, type=tuple[int, list[str]])


def _names(first: Content, source: Source) -> list[str]:
    """The source's columns, given the first row; those of a table without a name have their number."""
    if isinstance(first, list):
        first = formats.header_of(first, source) or _RECORD
    elif isinstance(first, dict):
        first = list(first)
    else:
        first = _RECORD
    return [name or f"column {number}" for number, name in enumerate(first, 1)]


def _cells(content: Content, names: Sequence[str]) -> list[str]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        return [_text(content[name]) for name in names]
    return [content.decode("utf-8", "replace")]


def _text(value: Any) -> str:
    """A value of Parquet: text as it is, nothing as an empty cell, all else as JSON."""
    plain = msgspec.to_builtins(value, enc_hook=str)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()


def _fitted(cells: list[str], width: int, wide: bool) -> list[str]:
    """As many cells as the header has names: missing ones are empty, further ones are together in the last."""
    row = cells[:width] + [""] * (width - len(cells))
    more = msgspec.json.encode(cells[width:]).decode() if cells[width:] else ""
    return [*row, more] if wide else row


def _unique(names: Sequence[str]) -> list[str]:
    """The names, in which a repeated one gets a number as pandas gives it: `row`, `row.1`, `row.2`."""
    taken, seen, counts, found = set(names), set[str](), collections.Counter[str](), []
    for name in names:
        new = name
        while name in seen and new in taken:
            counts[name] += 1
            new = f"{name}.{counts[name]}"
        taken.add(new)
        seen.add(name)
        found.append(new)
    return found
