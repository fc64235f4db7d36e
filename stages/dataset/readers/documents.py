"""JSON: one record a line, or documents that are held whole: an array, records one after the other, or a list in an
object."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from stages.core.cli import UserError
from stages.core.text import printable
from stages.dataset.readers import limits
from stages.dataset.source import Content

_UTF8_MARK = b"\xef\xbb\xbf"
_NO_SPACE = re.compile(r"[^ \t\r\n]")
# Keys of a message: a list of objects that have one is a conversation, not a list of records.
_OF_A_MESSAGE = ("role", "from", "author", "speaker")
# Objects that hold a conversation's text begin so where pandas wrote one column after the other.
_BY_COLUMN = re.compile(r'\{\s*"0"\s*:')


def lines(file: BinaryIO) -> Iterator[tuple[int, Content]]:
    """The records of JSON Lines with the numbers of their lines; a single one may be an object that holds the list.

    Raises:
        UserError: a line is too long.
    """
    records = _lines(file)
    first = next(records, None)
    if first is None:
        return
    second = next(records, None)
    if second is None:
        yield from _unwrapped(*first)
    else:
        yield first
        yield second
        yield from records


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(lambda: file.readline(limits.RECORD_LIMIT + 1), b""), 1):
        if len(line) > limits.RECORD_LIMIT:
            raise UserError(f"line {number} of the source has more than {limits.RECORD_LIMIT:,} bytes")
        record = line.removeprefix(_UTF8_MARK).strip() if number == 1 else line.strip()
        if record:
            yield number, record


def _unwrapped(number: int, record: bytes) -> Iterator[tuple[int, Content]]:
    """The elements of the list that a file's only record holds, or that record."""
    spans = None
    try:
        text = record.decode()
        if text.startswith("{"):
            spans = _Document(text).wrapped(0)
    except (json.JSONDecodeError, UnicodeError, RecursionError):
        # What is wrong with it is said where it is decoded.
        pass
    if spans is None:
        yield number, record
    else:
        yield from ((count, text[begin:end].encode()) for count, (begin, end) in enumerate(spans, 1))


def whole(file: Any) -> Iterator[tuple[int, Content]]:
    """The records of a JSON document, which is held whole, but taken apart record by record; JSON Lines streams.

    Raises:
        UserError: it is not JSON, is too large, or holds several lists.
    """
    data = file.read(limits.ARRAY_LIMIT + 1).removeprefix(_UTF8_MARK)
    if len(data) > limits.ARRAY_LIMIT:
        raise UserError(
            f"the source is one JSON array of more than {limits.ARRAY_LIMIT / 1e6:g} MB, and would have to be held in"
            " memory; write one record a line, as `jq -c '.[]'` does (`jq -c .` for records without brackets around"
            " them, `jq -c '.data[]'` for a list under the key data)"
        )
    begins = b"{" if data.lstrip()[:1] == b"{" else b"["
    try:
        text = data.decode()
        del data
        spans = _records(text) if begins == b"{" else _elements(text)
        yield from ((number, text[begin:end].encode()) for number, (begin, end) in enumerate(spans, 1))
    except RecursionError:
        raise UserError("the source is JSON that is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeError) as error:
        kind = "a JSON array" if begins == b"[" else "JSON"
        raise UserError(f"the source is not {kind}: {error}; fix it, or write one record a line") from None


def _elements(text: str) -> Iterator[tuple[int, int]]:
    """Where the elements of a JSON array begin and end: decoded, small ones take a hundred times that memory."""
    begin = _past_space(text, 0)
    # What looked like one may read otherwise in the encoding that the file turned out to have.
    if text[begin : begin + 1] != "[":
        raise json.JSONDecodeError("Expecting '['", text, begin)
    document = _Document(text)
    yield from document.elements(begin)
    if (end := _past_space(text, document.at)) < len(text):
        raise json.JSONDecodeError("Extra data after the array", text, end)


def _records(text: str) -> Iterator[tuple[int, int]]:
    """Where records begin and end that follow each other, or that are the list in a single object."""
    document, at = _Document(text), _past_space(text, 0)
    if (spans := document.wrapped(at)) is not None:
        yield from spans
        return
    while at < len(text):
        end = document.end(at)
        yield at, end
        at = _past_space(text, end)


class _Document:
    """JSON that is walked through; a list is never decoded as a whole. `at` is where the last walk ended."""

    def __init__(self, text: str) -> None:
        self._text, self.at = text, 0
        # Python makes no number of more than 4,300 digits.
        self._decoder = json.JSONDecoder(parse_int=str)

    def end(self, at: int) -> int:
        """Where the value that begins at `at` ends."""
        return int(self._decoder.raw_decode(self._text, at)[1])

    def elements(self, at: int) -> Iterator[tuple[int, int]]:
        """Where the elements of the array that begins at `at` begin and end."""
        text, at = self._text, _past_space(self._text, at + 1)
        more = text[at : at + 1] != "]"
        while more:
            end = self.end(at)
            yield at, end
            at = _past_space(text, end)
            if text[at : at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            more = text[at] == ","
            at = _past_space(text, at + 1) if more else at
        self.at = at + 1

    def wrapped(self, at: int) -> Iterator[tuple[int, int]] | None:
        """The elements of the one list of records in the object at `at`, if it is all that the text holds.

        Raises:
            UserError: it holds several lists, or a table by its columns.
        """
        text, lists, is_record = self._text, dict[str, int](), False
        for key, value in self._members(at):
            if text.startswith("{", value) and _BY_COLUMN.match(text, value):
                raise UserError(
                    "the source is a table that pandas wrote by its columns; write it as one record a line:"
                    " pandas.read_json(FILE).to_json('data/local/mine.jsonl', orient='records', lines=True)"
                )
            if text.startswith("[", value):
                is_record = is_record or self._holds_messages(value)
                lists |= {key: value} if self._holds_records(value) else {}
        if is_record or _past_space(text, self.at) < len(text) or not lists:
            return None
        if len(lists) > 1:
            names = ", ".join(printable(key)[:40] for key in list(lists)[:5])
            raise UserError(
                f"the source is one JSON object with the lists {names}; write the one that has the conversations as one"
                f" record a line, as `jq -c '.{printable(next(iter(lists)))[:40]}[]'` does"
            )
        return self.elements(next(iter(lists.values())))

    def _members(self, at: int) -> Iterator[tuple[str, int]]:
        """The keys of the object at `at`, each with where its value begins."""
        text, at = self._text, _past_space(self._text, at + 1)
        more = text[at : at + 1] != "}"
        while more:
            key, at = self._decoder.raw_decode(text, at)
            at = _past_space(text, at)
            if not isinstance(key, str) or text[at : at + 1] != ":":
                raise json.JSONDecodeError("Expecting a key and ':'", text, at)
            at = _past_space(text, at + 1)
            yield key, at
            # Whoever takes the value may have walked through it.
            at = _past_space(text, self._past(at))
            if text[at : at + 1] not in (",", "}"):
                raise json.JSONDecodeError("Expecting ',' or '}'", text, at)
            more = text[at] == ","
            at = _past_space(text, at + 1) if more else at
        self.at = at + 1

    def _past(self, at: int) -> int:
        if not self._text.startswith("[", at):
            return self.end(at)
        for _ in self.elements(at):
            pass
        return self.at

    def _holds_messages(self, at: int) -> bool:
        """Whether the array's first element is a message."""
        first = _past_space(self._text, at + 1)
        return self._text.startswith("{", first) and any(key in _OF_A_MESSAGE for key, _ in self._members(first))

    def _holds_records(self, at: int) -> bool:
        """Whether the array's first element is a record: an object that is no message, or a list of messages."""
        first = _past_space(self._text, at + 1)
        return self._text.startswith(("{", "["), first) and not self._holds_messages(at)


def _past_space(text: str, at: int) -> int:
    found = _NO_SPACE.search(text, at)
    return found.start() if found else len(text)
