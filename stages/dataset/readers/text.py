"""Text in any encoding: which one a file is in, and its content as UTF-8."""

import codecs
import io
from pathlib import Path
from typing import Any

from stages.core.cli import UserError, notice
from stages.dataset import encodings
from stages.dataset.readers.kinds import UTF16_MARKS
from stages.dataset.readers.limits import HEAD
from stages.dataset.readers.packing import unpacked
from stages.dataset.source import Source

_BLOCK = 1 << 20
# Takes a byte order mark off where there is one.
_UTF8 = "utf-8-sig"


def in_utf8(file: Any, encoding: str, source: Source) -> Any:
    """The file as a stream of UTF-8."""
    # What nobody declared was looked through already; a declaration may be wrong.
    sure = encoding == _UTF8 and source.encoding is None
    return file if sure else io.BufferedReader(_Recoded(file, encoding, source), HEAD)


class _Recoded(io.RawIOBase):
    """A stream of text in some encoding, given as UTF-8."""

    def __init__(self, inner: Any, encoding: str, source: Source) -> None:
        self._inner, self._encoding, self._source = inner, encoding, source
        self._decoder, self._left = codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._inner.read(HEAD)
            try:
                self._left = self._decoder.decode(block, final=not block).encode()
            except UnicodeError as error:
                raise not_in(self._encoding, block, error, self._source) from None
            if not block:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def not_in(encoding: str, head: bytes, error: UnicodeError, source: Source, place: str = "") -> UserError:
    """The error for text that is not in the encoding that was declared or guessed."""
    reason, sample, name = str(error), head, encoding.removesuffix("-sig")
    if isinstance(error, UnicodeDecodeError):
        reason, sample = error.reason, head + error.object[max(0, error.start - 1000) : error.start + 1000]
    return UserError(
        f"the source is not {name}: {reason}{place}; it looks like {encodings.guess(sample)}: fix"
        f" {source.key('encoding')}, or save it as UTF-8"
    )


def encoding(path: Path, head: bytes, source: Source, limit: int) -> str:
    """The encoding of text: as declared, or else UTF-8, UTF-16 by its byte order mark, or a guess.

    Raises:
        UserError: the declared encoding is unknown, or the file is clearly in another; or there is no guess.
    """
    declared = source.encoding
    if declared is None and head.startswith(UTF16_MARKS):
        return "utf-16"
    name = encodings.known(declared or "utf-8", source.key("encoding"))
    with unpacked(path, limit) as file:
        ascii_only, fault = _survey(file)
    if name == "utf-8":
        return _guessed(path, head + fault, source) if fault is not None and not declared else _UTF8
    if fault is None and not ascii_only:
        raise UserError(f"{path} is declared as {declared}, and is utf-8; fix {source.key('encoding')}")
    if other := encodings.contradicted(name, head + (fault or b"")):
        raise UserError(
            f"{path} is declared as {declared}, and reads as a text in {other}; fix {source.key('encoding')}, or save"
            " it as UTF-8"
        )
    return name


def _guessed(path: Path, sample: bytes, source: Source) -> str:
    guess = encodings.guess(sample)
    if guess == encodings.BINARY:
        raise UserError(f"{path} is {encodings.BINARY}; expected CSV, JSON, JSON Lines, Parquet or .xlsx")
    if guess == encodings.UNKNOWN:
        raise UserError(
            f"{path} is not UTF-8, and it is in {encodings.UNKNOWN}; save it as UTF-8, or declare it:"
            f" {source.key('encoding')}: cp1252 (or mac_roman, cp437, koi8_r, ...)"
        )
    notice(f"{path} is not UTF-8 and is read as {guess}; {source.key('encoding')} declares another")
    return guess


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
