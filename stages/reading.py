"""Rows of a source file, whatever holds them: CSV, JSON, JSON Lines or Parquet, gzipped or not.

What the file is shows in its first bytes; a declaration (`data.sources.*.container`) that they contradict is refused.
Memory is bounded by one record, but for a JSON array, which is one document.
"""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from charset_normalizer import from_bytes

from stages import language
from stages.command import UserError, notice
from stages.params import Source

# Longest record that is read, in bytes or characters: a larger one is no conversation. csv's own limit is 131,072.
RECORD_LIMIT = 4_000_000
# More columns than this are no table of conversations, and would take their toll on every row.
_COLUMN_LIMIT = 10_000
_HEAD = 64_000
# Encodings that CSVs are found in; a guess among all that there are is mostly wrong.
_ENCODINGS = ["utf_8", "utf_16", "cp1252", "cp1250", "cp1251", "shift_jis", "gb18030", "big5", "euc_kr"]
_CP1250_LANGUAGES = {"bs", "cs", "hr", "hu", "pl", "ro", "sk", "sl", "sq"}
_BINARY = "a binary file"
_BLOCK = 1 << 20
_DELIMITERS = ",;\t|"
_BATCH = 1_000
_DAMAGE = (OSError, EOFError, zlib.error)
_UTF8_MARK = b"\xef\xbb\xbf"


# What a row holds: cells of a CSV, the bytes of a JSON record, or a decoded record.
Content = list[str] | bytes | Any


def rows(path: Path, source: Source, limit: int) -> Iterator[tuple[int, Content]]:
    """The file's records with their numbers, as a spreadsheet or an editor shows them.

    A gzipped file may have at most `limit` bytes when it is unpacked.

    Raises:
        UserError: it is empty or damaged, too large, or not what the source declares it to be.
    """
    with _unpacked(path, limit) as file:
        try:
            head = file.peek(_HEAD)[:_HEAD]
            container = _container(head)
            if source.container not in (None, container):
                raise UserError(
                    f"{path} is declared as {source.container}, and is {container}; mend data.sources.*.container or"
                    " leave it null"
                )
            if container == "csv":
                found = _csv(file, head, _encoding(path, head, source, limit), source)
            else:
                found = {"json": _json, "jsonl": _jsonl, "parquet": _parquet}[container](file)
            empty = True
            for row in found:
                empty = False
                yield row
            if empty:
                raise UserError(f"{path} is empty; expected one conversation a record")
        except _DAMAGE as error:
            raise UserError(f"{path} is damaged: {error}; get it again") from None


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
            raise UserError(f"{self._path} unpacks to more than data.max_mb allows ({self._limit / 1e6:g} MB)")
        buffer[: len(data)] = data
        return len(data)


def _container(head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(_UTF8_MARK).lstrip()
    if start.startswith(b"{"):
        # A CSV of unquoted JSON does not exist: its commas would make columns.
        return "jsonl"
    if start.startswith(b"["):
        return "json"
    return "csv"


def _csv(file: Any, head: bytes, encoding: str, source: Source) -> Iterator[tuple[int, Content]]:
    csv.field_size_limit(RECORD_LIMIT)
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    reader = csv.reader(text, strict=True, delimiter=_delimiter(head, encoding, source))
    try:
        for number, cells in enumerate(reader, 1):
            if len(cells) > _COLUMN_LIMIT:
                raise UserError(f"row {number} has {len(cells):,} columns; this is no table of conversations")
            yield number, cells
    except UnicodeDecodeError as error:
        found = _guess(head + error.object[max(0, error.start - 1000) : error.start + 1000])
        raise UserError(
            f"the source is not {encoding}: {error.reason} near line {reader.line_num + 1}; it looks like {found}: mend"
            " data.sources.*.encoding, or save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of the source: {error}; check the quotes of this record") from None


def _encoding(path: Path, head: bytes, source: Source, limit: int) -> str:
    """The encoding of a CSV: as declared, or else UTF-8, UTF-16 by its byte order mark, or a guess.

    Raises:
        UserError: the declared encoding is unknown, or the file is UTF-8 all the same; or there is no guess.
    """
    declared = source.encoding
    if declared is None and head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        name = codecs.lookup(declared or "utf-8").name
    except LookupError:
        raise UserError(f"data.sources.*.encoding: Python knows no '{declared}'; expected e.g. utf-8") from None
    with _unpacked(path, limit) as file:
        ascii_only, fault = _survey(file)
    if name == "utf-8":
        guess = None if fault is None or declared else _guess(head + fault)
        if guess == _BINARY:
            raise UserError(f"{path} is {_BINARY}; expected CSV, JSON, JSON Lines or Parquet")
        if guess:
            notice(f"{path} is not UTF-8 and is read as {guess}; data.sources.*.encoding declares another")
        # utf-8-sig takes a byte order mark off where there is one.
        return guess or "utf-8-sig"
    if fault is None and not ascii_only:
        raise UserError(f"{path} is declared as {declared}, and is utf-8; mend data.sources.*.encoding")
    return name


def _survey(file: Any) -> tuple[bool, bytes | None]:
    """Whether all of a file is ASCII, and what stands around the first place that is not UTF-8."""
    decoder, ascii_only = codecs.getincrementaldecoder("utf-8")(), True
    try:
        for block in iter(lambda: file.read(_BLOCK), b""):
            ascii_only = ascii_only and block.isascii()
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return False, error.object[max(0, error.start - 1000) : error.start + 1000]
    return ascii_only, None


def _guess(sample: bytes) -> str:
    """The most likely encoding of a sample, seen from its lines that are not ASCII."""
    odd = b"\n".join(line for line in sample.splitlines() if not line.isascii())
    best = from_bytes(odd, cp_isolation=_ENCODINGS).best()
    if best is None:
        return _BINARY
    if best.encoding not in ("cp1250", "cp1252"):
        return best.encoding
    # These two differ in few letters, and only the language tells which of them are meant.
    return "cp1250" if language.detect(odd.decode("cp1250", "ignore"), 1) in _CP1250_LANGUAGES else "cp1252"


def _delimiter(head: bytes, encoding: str, source: Source) -> str:
    """The declared delimiter, or the one that most often stands outside quotes in the first line."""
    line = next(iter(head.decode(encoding, "ignore").splitlines()), "")
    outside = "".join(line.split('"')[::2])
    counts = {sign: outside.count(sign) for sign in _DELIMITERS}
    found = max(counts, key=lambda sign: counts[sign])
    if source.delimiter is None:
        return found if counts[found] else ","
    if counts[found] and not outside.count(source.delimiter):
        raise UserError(
            f"data.sources.*.delimiter is {source.delimiter!r}, and the first line has none; it looks like {found!r}"
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
    """A JSON array is one document, and is read whole; JSON Lines streams."""
    data = file.read().removeprefix(_UTF8_MARK)
    try:
        yield from enumerate(map(bytes, msgspec.json.decode(data, type=list[msgspec.Raw])), 1)
    except RecursionError:
        raise UserError("the source is JSON that is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise UserError(f"the source is not a JSON array: {error}; mend it, or write one record a line") from None


def _parquet(file: Any) -> Iterator[tuple[int, Content]]:
    # Parquet is read from its end, so what is gzipped has to be unpacked by its owner.
    if not file.seekable():
        raise UserError("a Parquet file must not be gzipped; unpack it first (it is compressed inside)")
    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(_BATCH):
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except pa.ArrowException as error:
        raise UserError(f"the source is a damaged Parquet file: {error}; get it again") from None
