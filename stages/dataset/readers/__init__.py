"""Rows of a source file, whatever holds them: CSV, JSON, JSON Lines, Parquet or a spreadsheet, packed or not.

The first bytes show what the file is; a declaration that they contradict is refused.
Memory is bounded by one record, but for a JSON document and the texts of a spreadsheet, which are of limited size.
"""

from collections.abc import Iterator
from pathlib import Path

from stages.core.cli import UserError
from stages.dataset.readers import columnar, documents, kinds, tables, text, workbooks
from stages.dataset.readers.limits import DAMAGE, HEAD
from stages.dataset.readers.packing import unpacked
from stages.dataset.source import Content, Source


def rows(path: Path, source: Source, limit: int) -> Iterator[tuple[int, Content]]:
    """The file's records with their numbers, as a spreadsheet or an editor shows them.

    A packed file may have at most `limit` bytes when it is unpacked.

    Raises:
        UserError: it is empty or damaged, too large, or not what the source declares it to be.
    """
    empty = True
    try:
        for row in _rows(path, source, limit):
            empty = False
            yield row
    except DAMAGE as error:
        raise UserError(f"{path} is damaged: {error}; fetch it again") from None
    if empty:
        raise UserError(f"{path} is empty; expected one conversation a record")


def _rows(path: Path, source: Source, limit: int) -> Iterator[tuple[int, Content]]:
    with unpacked(path, limit) as file:
        head = file.peek(HEAD)[:HEAD]
        container = kinds.container(head, source.encoding)
        if source.container not in (None, container):
            raise UserError(
                f"{path} is declared as {source.container}, and is {container}; fix {source.key('container')}, or"
                " leave it null"
            )
        if container == "parquet":
            yield from columnar.rows(file, path, limit)
        elif container == "xlsx":
            yield from workbooks.rows(file, path, source, limit)
        else:
            encoding = text.encoding(path, head, source, limit)
            if container == "csv":
                yield from tables.rows(file, head, encoding, source)
            else:
                read = documents.lines if container == "jsonl" else documents.whole
                yield from read(text.in_utf8(file, encoding, source))


def container(path: Path, source: Source, limit: int) -> str:
    """What the file is: csv, json, jsonl, parquet or xlsx."""
    with unpacked(path, limit) as file:
        return kinds.container(file.peek(HEAD)[:HEAD], source.encoding)
