"""parse: from the source's own format to conversations in OpenAI's chat format, and a row of signals for each record.

One streaming pass. Nothing is repaired and nothing is dropped silently: a record that is not a conversation gets a
row of signals that says why, and the gate (`validate`) stops the run.
"""

import csv
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stages import conversations, files, params
from stages.chat import Chat
from stages.command import UserError, notice, run
from stages.conversations import Conversation, Message, Role
from stages.paths import CONVERSATIONS, RAW, SIGNALS

CHUNK = 2_000
# Longest cell that is read, in characters: a larger one is no conversation, and csv's own limit is 131,072.
_CELL_LIMIT = 100_000_000
_SNIPPET = 60

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # as a spreadsheet shows it: the first record is row 1, or row 2 under a header
        ("error", pa.string()),  # why the record is not a conversation; null where it is one
        ("snippet", pa.string()),  # text around the fault
        ("roles", pa.string()),  # first letters, in order: "sua"
        ("n_empty", pa.int64()),  # messages with nothing but white space
        ("n_tokens", pa.int64()),  # in the base model's chat template and tokenizer
        ("prompt_hash", pa.string()),
        ("conversation_hash", pa.string()),
    ]
)

Record = tuple[int, Conversation | None, str | None, str | None]


def main() -> None:
    source = params.load().data.chosen
    chat = Chat.load()
    with RAW.open("rb") as raw, files.replacing(CONVERSATIONS) as jsonl, files.replacing(SIGNALS) as parquet:
        records = read(raw, source)
        total = valid = 0
        with jsonl.open("wb") as out, pq.ParquetWriter(parquet, SCHEMA) as table:
            for chunk in iter(lambda: list(itertools.islice(records, CHUNK)), []):
                good = [conversation for _, conversation, _, _ in chunk if conversation is not None]
                out.writelines(conversations.encode(conversation) + b"\n" for conversation in good)
                table.write_table(pa.Table.from_pylist(list(_signals(chunk, chat)), schema=SCHEMA))
                total, valid = total + len(chunk), valid + len(good)
    notice(f"parsed {total} records: {valid} conversations, {total - valid} that are none")


def read(raw: BinaryIO, source: params.Source) -> Iterator[Record]:
    """Records of a CSV: row number, the conversation or None, and then the reason and a snippet.

    Raises:
        UserError: the file is not UTF-8, its quotes do not balance, or a column is missing.
    """
    csv.field_size_limit(_CELL_LIMIT)
    # utf-8-sig takes a byte order mark off where there is one.
    rows = csv.reader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""), strict=True)
    convert: Callable[[int, Iterable[list[str]]], Iterator[Record]]
    convert = _messages if source.format == "messages" else _table_reader(source.columns)
    try:
        first = next(rows, None)
        if first is None:
            raise UserError(f"{RAW} is empty; expected one conversation a row")
        yield from convert(1, itertools.chain([first], rows))
    except UnicodeDecodeError as error:
        raise UserError(f"{RAW} is not UTF-8: {error.reason} near line {rows.line_num + 1}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{RAW}, line {rows.line_num}: {error}; check the quotes of this record") from None


def _messages(number: int, rows: Iterable[list[str]]) -> Iterator[Record]:
    """One column of JSON chat records; a first cell that does not begin like JSON is the header."""
    for row, cells in enumerate(rows, number):
        if row == 1 and len(cells) == 1 and not cells[0].lstrip().startswith(("{", "[", "(", '"')):
            continue
        if len(cells) != 1:
            yield row, None, f"{len(cells)} columns where one column of JSON records is expected", ""
        else:
            yield _record(row, cells[0])


def _record(row: int, cell: str) -> Record:
    try:
        return row, conversations.decode(cell), None, None
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        return row, None, str(error), cell[:_SNIPPET]


def _table_reader(columns: params.Columns | None) -> Callable[[int, Iterable[list[str]]], Iterator[Record]]:
    assert columns is not None, "params.Source lets no table pass without columns"

    def convert(number: int, rows: Iterable[list[str]]) -> Iterator[Record]:
        numbered = iter(enumerate(rows, number))
        _, header = next(numbered)
        wanted: dict[Role, str | None] = {
            "system": columns.system,
            "user": columns.user,
            "assistant": columns.assistant,
        }
        places = {role: _place(header, name) for role, name in wanted.items() if name}
        for row, cells in numbered:
            if len(cells) != len(header):
                yield (
                    row,
                    None,
                    f"{len(cells)} columns where the header has {len(header)}",
                    " | ".join(cells)[:_SNIPPET],
                )
                continue
            system = [Message("system", columns.system_prompt)] if columns.system_prompt else []
            yield row, Conversation((*system, *(Message(role, cells[at]) for role, at in places.items()))), None, None

    return convert


def _place(header: list[str], name: str) -> int:
    if name not in header:
        raise UserError(
            f"{RAW} has no column '{name}'; its columns are: {', '.join(header)}; mend data.sources.*.columns"
        )
    return header.index(name)


def _signals(chunk: list[Record], chat: Chat) -> Iterator[dict[str, Any]]:
    for row, conversation, error, snippet in chunk:
        if conversation is None:
            yield {"row": row, "error": error, "snippet": snippet}
            continue
        roles = "".join(message.role[0] for message in conversation.messages)
        yield {
            "row": row,
            "roles": roles,
            "n_empty": sum(not message.content.strip() for message in conversation.messages),
            "n_tokens": chat.count(conversation),
            "prompt_hash": _hash(conversation.prompt_key) if conversation.messages else None,
            "conversation_hash": _hash(conversations.encode(conversation).decode()),
        }


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


if __name__ == "__main__":
    run(main)
