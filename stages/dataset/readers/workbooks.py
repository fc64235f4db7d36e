"""Spreadsheets (.xlsx): the rows of one sheet as text, read in openpyxl's read-only mode.

The file is a ZIP of XML. The sheet streams; the texts that cells share are held, and of limited size.
"""

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.cli import UserError, notice
from stages.core.text import printable
from stages.dataset.readers.limits import too_large
from stages.dataset.readers.packing import archive
from stages.dataset.readers.tables import without_blank_end
from stages.dataset.source import Source

# Bytes of the whole content, and of the parts that openpyxl holds in memory.
_CONTENT_LIMIT, _HELD_LIMIT = 256_000_000, 64_000_000
_SHEETS = "xl/worksheets/"
# Excel's own number of rows: a file may name any number for its next row. Columns beyond these take their toll.
_ROW_LIMIT, _COLUMN_LIMIT = 1_048_576, 1_000
_NAMED = 20


def rows(file: Any, path: Path, source: Source, limit: int) -> Iterator[tuple[int, list[str]]]:
    """The rows of a sheet with their numbers, each as wide as the first; empty rows at its end are left out.

    Raises:
        UserError: it is damaged or too large, there is no such sheet, or it is packed itself.
    """
    if not file.seekable():
        raise UserError("a spreadsheet must not be packed once more; unpack it first (it is compressed inside)")
    with archive(file, path) as found:
        _refuse_large(found.infolist(), path, limit)
    yield from _read(file, path, source)


def sheets(path: Path) -> list[str]:
    """The names of a spreadsheet's sheets; none where it cannot be read."""
    import openpyxl

    try:
        with path.open("rb") as file:
            return [one.title for one in openpyxl.load_workbook(file, read_only=True).worksheets]
    except Exception:
        # What is wrong with it is said where its rows are read.
        return []


def _refuse_large(inside: list[zipfile.ZipInfo], path: Path, limit: int) -> None:
    if sum(one.file_size for one in inside) > limit:
        raise too_large(path, limit)
    held = sum(one.file_size for one in inside if not one.filename.startswith(_SHEETS))
    if held > _HELD_LIMIT or sum(one.file_size for one in inside) > _CONTENT_LIMIT:
        raise UserError(f"{path} is too large for a spreadsheet (more than {_CONTENT_LIMIT / 1e6:g} MB, or"
                        f" {_HELD_LIMIT / 1e6:g} MB of shared texts); save it as CSV")  # fmt: skip


def _read(file: Any, path: Path, source: Source) -> Iterator[tuple[int, list[str]]]:
    # It takes a while, and most sources are no spreadsheets.
    import openpyxl

    file.seek(0)
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet = book[_chosen([one.title for one in book.worksheets], source)]
        # Where a sheet begins and ends it may say wrongly.
        sheet.reset_dimensions()
        width = 0
        for number, cells in without_blank_end(_numbered(sheet)):
            width = width or len(cells)
            yield number, cells + [""] * (width - len(cells)) if cells else cells
    except UserError:
        raise
    except Exception as error:
        # openpyxl raises whatever its parsers do.
        raise UserError(
            f"{path} is a damaged spreadsheet: {printable(str(error))[:200]}; open it, save it again, or save it as CSV"
        ) from None


def _chosen(names: list[str], source: Source) -> str:
    listed = ", ".join(printable(name) for name in names[:_NAMED])
    if source.sheet is None:
        if not names:
            raise UserError("the spreadsheet has no sheet with cells; save the table as CSV")
        if len(names) > 1:
            notice(f"the spreadsheet has the sheets {listed}; the first is read, {source.key('sheet')} names another")
        return names[0]
    if source.sheet not in names:
        raise UserError(f"{source.key('sheet')}: there is no sheet '{source.sheet}'; the sheets are: {listed}")
    return source.sheet


def _numbered(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        if number > _ROW_LIMIT or len(values) > _COLUMN_LIMIT:
            raise UserError(
                f"the sheet has more than {_ROW_LIMIT:,} rows or {_COLUMN_LIMIT:,} columns; save the table as CSV"
            )
        cells = [_text(value) for value in values]
        while cells and not cells[-1]:
            cells.pop()
        yield number, cells


def _text(value: Any) -> str:
    """A cell as the sheet shows it, without the format of its numbers."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
