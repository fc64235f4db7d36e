"""Rows of a source file, whatever holds them: CSV, JSON, JSON Lines or Parquet, gzipped or not.

The first bytes show what the file is; a declaration that they contradict is refused.
Memory is bounded by one record, but for a JSON array, which is one document of limited size.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.cli import UserError, notice
from stages.dataset import encodings
from stages.dataset.source import Content, Source

# Longest record that is read, in bytes or characters: a larger one is no conversation. csv's own limit is 131,072.
RECORD_LIMIT = 4_000_000
# More columns than this are no table of conversations, and would take their toll on every row.
_COLUMN_LIMIT = 10_000
_HEAD = 64_000
_BLOCK = 1 << 20
_DELIMITERS = ",;\t|"
# Signs that end a row or a cell, or that csv refuses.
_NO_DELIMITERS = '"\r\n\0'
# Rows and bytes of Parquet that are unpacked at once.
_BATCH = 64
_BATCH_BYTES = 64_000_000
# Longest JSON array, in bytes: it is one document, and held whole.
_ARRAY_LIMIT = 64_000_000
_DAMAGE = (OSError, EOFError, zlib.error)
# Takes a byte order mark off where there is one.
_UTF8, _UTF8_MARK = "utf-8-sig", b"\xef\xbb\xbf"
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def rows(path: Path, source: Source, limit: int) -> Iterator[tuple[int, Content]]:
    """The file's records with their numbers, as a spreadsheet or an editor shows them.

    A gzipped file may have at most `limit` bytes when it is unpacked.

    Raises:
        UserError: it is empty or damaged, too large, or not what the source declares it to be.
    """
    with _unpacked(path, limit) as file:
        try:
            head = file.peek(_HEAD)[:_HEAD]
            container = _container(head, source.encoding)
            if source.container not in (None, container):
                raise UserError(
                    f"{path} is declared as {source.container}, and is {container}; fix {source.key('container')}, or"
                    " leave it null"
                )
            if container == "parquet":
                found = _parquet(file, path, limit)
            else:
                encoding = _encoding(path, head, source, limit)
                if container == "csv":
                    found = _csv(file, head, encoding, source)
                else:
                    found = {"json": _json, "jsonl": _jsonl}[container](_in_utf8(file, encoding, source))
            empty = True
            for row in found:
                empty = False
                yield row
            if empty:
                raise UserError(f"{path} is empty; expected one conversation a record")
        except _DAMAGE as error:
            raise UserError(f"{path} is damaged: {error}; fetch it again") from None


@contextmanager
def _unpacked(path: Path, limit: int) -> Iterator[Any]:
    with io.BufferedReader(io.FileIO(path), _HEAD) as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            yield io.BufferedReader(_Limited(gzip.GzipFile(fileobj=file), limit, path), _HEAD)
        else:
            yield file


class _Limited(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes: a small gzip can hold a thousand times its size."""

    def __init__(self, inner: Any, limit: int, path: Path) -> None:
        self._inner, self._left, self._limit, self._path = inner, limit, limit, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path, self._limit)
        buffer[: len(data)] = data
        return len(data)


def _too_large(path: Path, limit: int) -> UserError:
    return UserError(f"{path} unpacks to more than data.max_mb allows ({limit / 1e6:g} MB)")


def container(path: Path, source: Source, limit: int) -> str:
    """What the file is: csv, json, jsonl or parquet."""
    with _unpacked(path, limit) as file:
        return _container(file.peek(_HEAD)[:_HEAD], source.encoding)


def _container(head: bytes, encoding: str | None) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    start = _beginning(head, encoding).lstrip()
    if start.startswith("{"):
        # A CSV of unquoted JSON does not exist: its commas would make columns.
        return "jsonl"
    if start.startswith("["):
        return "json"
    return "csv"


def _beginning(head: bytes, encoding: str | None) -> str:
    if head.startswith(_UTF16_MARKS):
        return head.decode("utf-16", "ignore")
    try:
        return head.decode(encoding or "utf-8", "ignore").removeprefix("\ufeff")
    except (LookupError, ValueError):
        # What was declared is not an encoding, which is an error where text is read.
        return head.decode("utf-8", "ignore")


def _in_utf8(file: Any, encoding: str, source: Source) -> Any:
    # What nobody declared was looked through already; a declaration may be wrong.
    sure = encoding == _UTF8 and source.encoding is None
    return file if sure else io.BufferedReader(_Recoded(file, encoding, source), _HEAD)


class _Recoded(io.RawIOBase):
    """A stream of text in some encoding, given as UTF-8."""

    def __init__(self, inner: Any, encoding: str, source: Source) -> None:
        self._inner, self._encoding, self._source = inner, encoding, source
        self._decoder, self._left = codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._inner.read(_HEAD)
            try:
                self._left = self._decoder.decode(block, final=not block).encode()
            except UnicodeError as error:
                raise _not_in(self._encoding, block, error, self._source) from None
            if not block:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _not_in(encoding: str, head: bytes, error: UnicodeError, source: Source, place: str = "") -> UserError:
    reason, sample, name = str(error), head, encoding.removesuffix("-sig")
    if isinstance(error, UnicodeDecodeError):
        reason, sample = error.reason, head + error.object[max(0, error.start - 1000) : error.start + 1000]
    return UserError(
        f"the source is not {name}: {reason}{place}; it looks like {encodings.guess(sample)}: fix"
        f" {source.key('encoding')}, or save it as UTF-8"
    )


def _csv(file: Any, head: bytes, encoding: str, source: Source) -> Iterator[tuple[int, Content]]:
    csv.field_size_limit(RECORD_LIMIT)
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    reader = csv.reader(text, strict=True, delimiter=_delimiter(head, encoding, source))
    blank = 0
    try:
        for number, cells in enumerate(reader, 1):
            if len(cells) > _COLUMN_LIMIT:
                raise UserError(f"row {number} has {len(cells):,} columns; this is not a table of conversations")
            if not cells:
                # At the end of the file blank lines are its end; before another row they are rows.
                blank += 1
                continue
            yield from ((before, list[str]()) for before in range(number - blank, number))
            blank = 0
            yield number, cells
    except UnicodeError as error:
        raise _not_in(encoding, head, error, source, f" near line {reader.line_num + 1}") from None
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of the source: {error}; check the quotes of this record") from None


def _encoding(path: Path, head: bytes, source: Source, limit: int) -> str:
    """The encoding of text: as declared, or else UTF-8, UTF-16 by its byte order mark, or a guess.

    Raises:
        UserError: the declared encoding is unknown, or the file is clearly in another; or there is no guess.
    """
    declared = source.encoding
    if declared is None and head.startswith(_UTF16_MARKS):
        return "utf-16"
    name = encodings.known(declared or "utf-8", source.key("encoding"))
    with _unpacked(path, limit) as file:
        ascii_only, fault = _survey(file)
    if name == "utf-8":
        guess = None if fault is None or declared else encodings.guess(head + fault)
        if guess == encodings.BINARY:
            raise UserError(f"{path} is {encodings.BINARY}; expected CSV, JSON, JSON Lines or Parquet")
        if guess:
            notice(f"{path} is not UTF-8 and is read as {guess}; {source.key('encoding')} declares another")
        return guess or _UTF8
    if fault is None and not ascii_only:
        raise UserError(f"{path} is declared as {declared}, and is utf-8; fix {source.key('encoding')}")
    if other := encodings.contradicted(name, head + (fault or b"")):
        raise UserError(
            f"{path} is declared as {declared}, and reads as a text in {other}; fix {source.key('encoding')}, or save"
            " it as UTF-8"
        )
    return name


def _survey(file: Any) -> tuple[bool, bytes | None]:
    """Whether all of a file is ASCII, and what is around the first place that is not UTF-8."""
    decoder, ascii_only = codecs.getincrementaldecoder("utf-8")(), True
    try:
        for block in iter(lambda: file.read(_BLOCK), b""):
            ascii_only = ascii_only and block.isascii()
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return False, error.object[max(0, error.start - 1000) : error.start + 1000]
    return ascii_only, None


def _delimiter(head: bytes, encoding: str, source: Source) -> str:
    """The declared delimiter, or the one that is most often outside quotes in the first line."""
    if source.delimiter and source.delimiter in _NO_DELIMITERS:
        raise UserError(
            f"{source.key('delimiter')}: {source.delimiter!r} cannot separate cells; expected e.g. ',' or ';'"
        )
    line = next(iter(head.decode(encoding, "ignore").splitlines()), "")
    outside = "".join(line.split('"')[::2])
    counts = {sign: outside.count(sign) for sign in _DELIMITERS}
    found = max(counts, key=lambda sign: counts[sign])
    if source.delimiter is None:
        return found if counts[found] else ","
    if counts[found] and not outside.count(source.delimiter):
        raise UserError(
            f"{source.key('delimiter')} is {source.delimiter!r}, and the first line has none; it looks like {found!r}"
        )
    return source.delimiter


def _jsonl(file: BinaryIO) -> Iterator[tuple[int, Content]]:
    for number, line in enumerate(iter(lambda: file.readline(RECORD_LIMIT + 1), b""), 1):
        if len(line) > RECORD_LIMIT:
            raise UserError(f"line {number} of the source has more than {RECORD_LIMIT:,} bytes")
        record = line.removeprefix(_UTF8_MARK).strip() if number == 1 else line.strip()
        if record:
            yield number, record


def _json(file: Any) -> Iterator[tuple[int, Content]]:
    """A JSON array is one document, and is held whole, but taken apart record by record; JSON Lines streams."""
    data = file.read(_ARRAY_LIMIT + 1).removeprefix(_UTF8_MARK)
    if len(data) > _ARRAY_LIMIT:
        raise UserError(
            f"the source is one JSON array of more than {_ARRAY_LIMIT / 1e6:g} MB, and would have to be held in memory;"
            " write one record a line, as `jq -c '.[]'` does"
        )
    try:
        text = data.decode()
        del data
        yield from enumerate(_elements(text), 1)
    except RecursionError:
        raise UserError("the source is JSON that is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeError) as error:
        raise UserError(f"the source is not a JSON array: {error}; fix it, or write one record a line") from None


def _elements(text: str) -> Iterator[bytes]:
    """The elements of a JSON array, as they are written: decoded, small ones take a hundred times that memory."""
    # Python makes no number of more than 4,300 digits.
    decoder, begin = json.JSONDecoder(parse_int=str), _past_space(text, 0)
    # What looked like one may read otherwise in the encoding that the file turned out to have.
    if text[begin : begin + 1] != "[":
        raise json.JSONDecodeError("Expecting '['", text, begin)
    at = _past_space(text, begin + 1)
    more = text[at : at + 1] != "]"
    while more:
        _, end = decoder.raw_decode(text, at)
        yield text[at:end].encode()
        at = _past_space(text, end)
        if text[at : at + 1] not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        more = text[at] == ","
        at = _past_space(text, at + 1) if more else at
    if _past_space(text, at + 1) < len(text):
        raise json.JSONDecodeError("Extra data after the array", text, at + 1)


def _past_space(text: str, at: int) -> int:
    found = _NO_SPACE.search(text, at)
    return found.start() if found else len(text)


def _parquet(file: Any, path: Path, limit: int) -> Iterator[tuple[int, Content]]:
    # Parquet is read from its end, so what is gzipped has to be unpacked by its owner.
    if not file.seekable():
        raise UserError("a Parquet file must not be gzipped; unpack it first (it is compressed inside)")
    try:
        parquet = pq.ParquetFile(file)
        groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > limit:
            raise _too_large(path, limit)
        number = unpacked = 0
        for batch in _batches(parquet):
            unpacked += batch.nbytes
            # What the file says of its size counts a value once, however many rows share it.
            if unpacked > limit:
                raise _too_large(path, limit)
            _refuse_long(batch, number)
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except pa.ArrowException as error:
        raise UserError(f"the source is a damaged Parquet file: {error}; fetch it again") from None


def _batches(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches of so few rows that each is small, even where all rows share the longest value that there can be."""
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        longest = max((group.column(at).total_uncompressed_size for at in range(group.num_columns)), default=0)
        rows = min(_BATCH, max(1, _BATCH_BYTES // max(1, longest)))
        yield from parquet.iter_batches(rows, row_groups=[number])


def _refuse_long(batch: pa.RecordBatch, before: int) -> None:
    """Stop at a record beyond the limit; `before` is the number of rows before the batch."""
    if batch.nbytes <= RECORD_LIMIT:
        return
    for row in range(batch.num_rows):
        sizes = {
            name: column.slice(row, 1).nbytes for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        if sum(sizes.values()) > RECORD_LIMIT:
            longest = max(sizes, key=lambda name: sizes[name])
            raise UserError(f"row {before + row + 1} of the source has more than {RECORD_LIMIT:,} bytes in '{longest}'")
