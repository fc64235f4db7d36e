"""Packed files: gzip, Zstandard, and ZIP with one file in it, unpacked as a stream of limited size."""

import gzip
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.cli import UserError
from stages.core.text import printable
from stages.dataset.readers.limits import HEAD, too_large

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# What an archive may say of itself: a list of more files than this holds would fill the memory before it is looked at.
_LISTING_LIMIT = 1_000_000
# Others need a dictionary of a size that the file itself chooses.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What systems put beside the one file.
_BESIDE = ("__MACOSX/", ".DS_Store", "Thumbs.db")
_WORKBOOK = "xl/workbook.xml"
_DOCUMENTS = {"word/document.xml": "a Word document", "content.xml": "an OpenDocument file"}
_NAMED = 5


@contextmanager
def unpacked(path: Path, limit: int) -> Iterator[Any]:
    """The file's bytes, unpacked where it is packed; a spreadsheet is a ZIP and stays one.

    Raises:
        UserError: it unpacks to more than `limit` bytes, or is an archive that does not hold exactly one file.
        OSError, EOFError, zlib.error: it is damaged.
    """
    with io.BufferedReader(io.FileIO(path), HEAD) as file:
        magic = file.peek(4)[:4]
        if magic.startswith(_GZIP):
            yield _limited(gzip.GzipFile(fileobj=file), limit, path)
        elif magic == _ZSTANDARD:
            # Arrow says where a stream is cut off; the package zstandard ends it as if it were whole.
            yield _limited(pa.CompressedInputStream(file, "zstd"), limit, path)
        elif magic in ZIP:
            with archive(file, path) as found:
                yield file if _WORKBOOK in found.namelist() else _limited(_only(found, limit, path), limit, path)
        else:
            yield file


def archive(file: Any, path: Path) -> zipfile.ZipFile:
    """The ZIP in a file, whose list of contents is of limited size.

    Raises:
        UserError: it is not a ZIP, or lists too many files.
    """
    try:
        found = zipfile.ZipFile(_Bounded(file, path))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} is a damaged ZIP file: {error}; fetch it again") from None
    file.seek(0)
    return found


def _only(found: zipfile.ZipFile, limit: int, path: Path) -> Any:
    for name, kind in _DOCUMENTS.items():
        if name in found.namelist():
            raise UserError(f"{path} is {kind}; save its table as CSV or .xlsx")
    inside = [one for one in found.infolist() if not one.is_dir() and not _is_beside(one.filename)]
    if len(inside) != 1:
        names = ", ".join(printable(one.filename) for one in inside[:_NAMED]) or "no file"
        more = f" and {len(inside) - _NAMED} more" if len(inside) > _NAMED else ""
        raise UserError(
            f"{path} is a ZIP that holds {names}{more}; expected one file: unpack it, and declare the file that has the"
            " conversations"
        )
    (one,) = inside
    if one.flag_bits & 1 or one.compress_type not in _METHODS:
        how = "encrypted" if one.flag_bits & 1 else "packed by an unusual method"
        raise UserError(f"{printable(one.filename)} in {path} is {how}; unpack it, and declare the file itself")
    if one.file_size > limit:
        raise too_large(path, limit)
    try:
        return _Member(found.open(one))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise OSError(str(error)) from None


def _is_beside(name: str) -> bool:
    return name.startswith(_BESIDE[0]) or name.rpartition("/")[2] in _BESIDE


def _limited(inner: Any, limit: int, path: Path) -> io.BufferedReader:
    return io.BufferedReader(_Limited(inner, limit, path), HEAD)


class _Member:
    """A file in a ZIP, whose damage is an OSError as that of other files."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def read(self, count: int) -> bytes:
        try:
            return bytes(self._inner.read(count))
        except zipfile.BadZipFile as error:
            raise OSError(str(error)) from None


class _Limited(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes: a small packed file can hold a thousand times its size."""

    def __init__(self, inner: Any, limit: int, path: Path) -> None:
        self._inner, self._left, self._limit, self._path = inner, limit, limit, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise too_large(self._path, self._limit)
        buffer[: len(data)] = data
        return len(data)


class _Bounded:
    """A file that refuses to be read in larger pieces than an honest archive needs."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner, self._path = inner, path

    def read(self, count: int = -1) -> bytes:
        found = bytes(self._inner.read(min(count, _LISTING_LIMIT + 1) if count >= 0 else _LISTING_LIMIT + 1))
        if len(found) > _LISTING_LIMIT:
            raise UserError(f"{self._path} is a ZIP with a list of more files than is read; unpack it")
        return found

    def seek(self, *place: int) -> int:
        return int(self._inner.seek(*place))

    def tell(self) -> int:
        return int(self._inner.tell())

    def seekable(self) -> bool:
        return True
