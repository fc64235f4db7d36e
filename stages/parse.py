"""parse: from the source's own format to conversations in OpenAI's chat format, and a row of signals for each record.

One streaming pass. Nothing is repaired and nothing is dropped silently: a record that is not a conversation gets a
row of signals that says why, and the gate (`validate`) stops the run.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stages import conversations, files, params
from stages.chat import Chat
from stages.command import UserError, notice, run
from stages.content import excerpt, snippet
from stages.conversations import Conversation, Message, Role
from stages.paths import CONVERSATIONS, RAW, SIGNALS
from stages.signals import SCHEMA, Record, Signaller

CHUNK = 2_000
# Longest cell that is read, in characters: a larger one is no conversation, and csv's own limit is 131,072.
_CELL_LIMIT = 100_000_000
_BYTE = re.compile(r" \(byte (\d+)\)")


def main() -> None:
    source = params.load().data.chosen
    signaller = Signaller(Chat.load())
    with RAW.open("rb") as raw, files.replacing(CONVERSATIONS) as jsonl, files.replacing(SIGNALS) as parquet:
        records = read(raw, source)
        total = valid = 0
        with jsonl.open("wb") as out, pq.ParquetWriter(parquet, SCHEMA) as table:
            for chunk in iter(lambda: list(itertools.islice(records, CHUNK)), []):
                good = [conversation for _, conversation, _, _ in chunk if conversation is not None]
                out.writelines(conversations.encode(conversation) + b"\n" for conversation in good)
                table.write_table(pa.Table.from_pylist(signaller.rows(chunk), schema=SCHEMA))
                total, valid = total + len(chunk), valid + len(good)
    notice(f"parsed {total} records: {valid} conversations, {total - valid} that are none")


def read(raw: BinaryIO, source: params.Source) -> Iterator[Record]:
    """Records of a CSV: row number, the conversation or None, and then the reason and a snippet.

    Raises:
        UserError: the file is not UTF-8, its quotes do not balance, or a column is missing.
    """
    rows = numbered(raw)
    if source.format == "messages":
        yield from _messages(rows)
    else:
        assert source.columns is not None, "params.Source lets no table pass without columns"
        yield from _table(rows, source.columns)


def numbered(raw: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV with their numbers, as a spreadsheet shows them: the first one is row 1.

    Raises:
        UserError: the file is empty, not UTF-8, or its quotes do not balance.
    """
    csv.field_size_limit(_CELL_LIMIT)
    # utf-8-sig takes a byte order mark off where there is one.
    rows = csv.reader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""), strict=True)
    row = 0
    try:
        for row, cells in enumerate(rows, 1):
            yield row, cells
    except UnicodeDecodeError as error:
        raise UserError(f"{RAW} is not UTF-8: {error.reason} near line {rows.line_num + 1}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{RAW}, line {rows.line_num}: {error}; check the quotes of this record") from None
    if not row:
        raise UserError(f"{RAW} is empty; expected one conversation a row")


def _messages(rows: Iterable[tuple[int, list[str]]]) -> Iterator[Record]:
    """One column of JSON chat records; a first cell that does not begin like JSON is the header."""
    for row, cells in rows:
        if row == 1 and len(cells) == 1 and not cells[0].lstrip().startswith(("{", "[", "(", '"')):
            continue
        if len(cells) != 1:
            reason = f"{len(cells)} columns where one column of JSON records is expected"
            yield row, None, reason, excerpt(" | ".join(cells))
        else:
            yield _record(row, cells[0])


def _record(row: int, cell: str) -> Record:
    try:
        return row, conversations.decode(cell), None, None
    except UnicodeEncodeError as error:
        return row, None, "the text holds half of a surrogate pair", snippet(cell, (error.start, error.end))
    except msgspec.DecodeError as error:
        # The place differs from row to row; without it, equal faults have equal reasons and are told once.
        place = _BYTE.search(str(error))
        at = len(cell.encode()[: int(place[1])].decode("utf-8", "ignore")) if place else 0
        return row, None, _BYTE.sub("", str(error)), snippet(cell, (at, at + 1)) if place else excerpt(cell)


def _table(rows: Iterator[tuple[int, list[str]]], columns: params.Columns) -> Iterator[Record]:
    _, header = next(rows)
    wanted: dict[Role, str | None] = {
        "system": columns.system,
        "user": columns.user,
        "assistant": columns.assistant,
    }
    places = {role: _place(header, name) for role, name in wanted.items() if name}
    system = [Message("system", columns.system_prompt)] if columns.system_prompt else []
    for row, cells in rows:
        if len(cells) != len(header):
            reason = f"{len(cells)} columns where the header has {len(header)}"
            yield row, None, reason, excerpt(" | ".join(cells))
        else:
            yield row, Conversation((*system, *(Message(role, cells[at]) for role, at in places.items()))), None, None


def _place(header: list[str], name: str) -> int:
    if name not in header:
        raise UserError(
            f"{RAW} has no column '{name}'; its columns are: {', '.join(header)}; mend data.sources.*.columns"
        )
    return header.index(name)


if __name__ == "__main__":
    run(main)
