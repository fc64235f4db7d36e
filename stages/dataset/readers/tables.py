"""CSV: rows of cells, with the delimiter seen from the first rows."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from stages.core.cli import UserError
from stages.dataset.readers import limits
from stages.dataset.readers.limits import COLUMN_LIMIT, HEAD
from stages.dataset.readers.text import not_in
from stages.dataset.source import Source

# The surest first: where rows fit two equally, commas and semicolons may be signs of the text.
_DELIMITERS = "\t|,;"
# Signs that end a row or a cell, or that csv refuses.
_NO_DELIMITERS = '"\r\n\0'
# Rows that a delimiter is seen from, and the share of them that must be as wide as the first.
_LOOKED_AT, _EQUALLY_WIDE = 20, 0.6
_ESCAPED = re.compile(r'\\(["\\])')


def rows(file: Any, head: bytes, encoding: str, source: Source) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV with their numbers; a row without any text is `[]`, and none at the end of the file.

    Raises:
        UserError: it is not in `encoding`, its quotes do not match, or it has too many columns.
    """
    csv.field_size_limit(limits.RECORD_LIMIT)
    text: Iterable[str] = io.TextIOWrapper(file, encoding=encoding, newline="")
    if source.escape == "backslash":
        text = map(_doubled, text)
    reader = csv.reader(text, strict=True, delimiter=_delimiter(head, encoding, source))
    try:
        yield from without_blank_end(enumerate(reader, 1))
    except UnicodeError as error:
        raise not_in(encoding, head, error, source, f" near line {reader.line_num + 1}") from None
    except csv.Error as error:
        escaped = source.escape is None and b'\\"' in head
        place = source.key("escape").rpartition(".")[0]
        hint = f"; if \\ escapes them, put in params.yaml under {place}:\nescape: backslash" if escaped else ""
        raise UserError(
            f"line {reader.line_num} of the source: {error}; check the quotes of this record{hint}"
        ) from None


def without_blank_end(numbered: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """The rows, without those at the end whose cells are all empty; before another row, such a row is `[]`.

    A spreadsheet writes rows of nothing but delimiters where cells were emptied.
    """
    blank = 0
    for number, cells in numbered:
        if len(cells) > COLUMN_LIMIT:
            raise UserError(f"row {number} has {len(cells):,} columns; this is not a table of conversations")
        # A single empty cell is in quotes, and a record that is empty.
        if not any(cells) and len(cells) != 1:
            blank += 1
            continue
        yield from ((before, list[str]()) for before in range(number - blank, number))
        blank = 0
        yield number, cells


def _doubled(line: str) -> str:
    r"""The line with `\"` as `""` and `\\` as `\`; any other backslash is text."""
    return _ESCAPED.sub(lambda found: '""' if found[1] == '"' else "\\", line)


def _delimiter(head: bytes, encoding: str, source: Source) -> str:
    """The declared delimiter, or the one by which the first rows are equally wide, and widest."""
    if source.delimiter and source.delimiter in _NO_DELIMITERS:
        raise UserError(
            f"{source.key('delimiter')}: {source.delimiter!r} cannot separate cells; expected e.g. ',' or ';'"
        )
    lines = head.decode(encoding, "ignore").removeprefix("\ufeff").splitlines(keepends=True)
    if len(head) == HEAD and len(lines) > 1:
        # The last one is cut off.
        lines.pop()
    if source.escape == "backslash":
        lines = [_doubled(line) for line in lines]
    widths = {sign: _widths(lines, sign) for sign in {*_DELIMITERS, source.delimiter or ","}}
    found = max(_DELIMITERS, key=lambda sign: _fit(widths[sign]))
    if source.delimiter is None:
        return found if _fit(widths[found]) > (0.0, 1) else ","
    if _first(widths[found]) > 1 and _first(widths[source.delimiter]) == 1:
        raise UserError(
            f"{source.key('delimiter')} is {source.delimiter!r}, and the first line has none; it looks like {found!r}"
        )
    return source.delimiter


def _widths(lines: list[str], sign: str) -> list[int]:
    """How many cells the first rows have with this delimiter."""
    try:
        rows = itertools.islice(csv.reader(lines, delimiter=sign), _LOOKED_AT)
        return [len(cells) for cells in rows if any(cells)]
    except csv.Error:
        return []


def _first(widths: list[int]) -> int:
    return widths[0] if widths else 1


def _fit(widths: list[int]) -> tuple[float, int]:
    """How well a delimiter parts the rows: the share that is as wide as the first, and that width."""
    first, others = _first(widths), widths[1:]
    if first == 1:
        return 0.0, 1
    share = sum(width == first for width in others) / len(others) if others else 1.0
    # Below that the delimiter is a sign in the text, unless the rows have no other.
    return (share if share >= _EQUALLY_WIDE else 0.0), first
