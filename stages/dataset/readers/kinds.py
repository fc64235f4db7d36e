"""What a file is, from its first bytes, and what to do with one that holds no records."""

import re

import msgspec

from stages.core.cli import UserError
from stages.dataset.readers.limits import HEAD
from stages.dataset.readers.packing import ZIP

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_EXPECTED = "expected CSV, JSON, JSON Lines, Parquet or .xlsx"
# Kinds of files that hold no records as they are, by their first bytes, with what turns them into one that does.
_OTHERS = {
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "save its table as .xlsx or CSV"),
    b"%PDF": ("a PDF", "copy its text into a table"),
    b"SQLite format 3\x00": ("an SQLite database", "export its table: sqlite3 -header -csv FILE 'select * from TABLE'"),
    b"ARROW1": ("an Arrow file", "write it as Parquet: pandas.read_feather(FILE).to_parquet(...)"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "write it as Parquet: datasets.load_from_disk(FOLDER).to_parquet(...)"),
    b"ORC": ("an ORC file", "write it as Parquet: pandas.read_orc(FILE).to_parquet(...)"),
    b"Obj\x01": ("an Avro file", "write it as JSON Lines"),
    b"\x89HDF": ("an HDF5 file", "write its table as Parquet: pandas.read_hdf(FILE).to_parquet(...)"),
    b"BZh": ("packed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("packed with xz", "unpack it with xz -d"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it, and declare the file in it"),
    b"Rar!": ("a RAR archive", "unpack it, and declare the file in it"),
}
_WEB = ("<!doctype html", "<html", "<?xml")
# A document on one line that begins with a list is one record only under these names.
_WRAPPED = re.compile(
    r'\{\s*"(?!(?:messages|conversations?|contents|dialog|dialogue|turns|history|prompt|completion|tools)")[^"]*"'
    r"\s*:\s*\[\s*[\[{]"
)
# How a line of indented JSON ends.
_UNFINISHED = ("{", "[", ",", ":")


def container(head: bytes, encoding: str | None) -> str:
    """csv, json, jsonl, parquet or xlsx, given a file's first bytes.

    Raises:
        UserError: it is a kind of file that holds no records.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(ZIP):
        return "xlsx"
    for magic, (kind, way) in _OTHERS.items():
        if head.startswith(magic):
            raise UserError(f"the source is {kind}; {_EXPECTED}: {way}")
    start = beginning(head, encoding).lstrip()
    if start[:20].lower().startswith(_WEB):
        raise UserError(f"the source is a web page or XML; {_EXPECTED}: link to the raw file, or export a table")
    if start[:1] not in ("{", "["):
        return "csv"
    # A CSV of unquoted JSON does not exist: its commas would make columns.
    return _json_kind(start, len(head) == HEAD)


def beginning(head: bytes, encoding: str | None) -> str:
    """The first bytes as text."""
    if head.startswith(UTF16_MARKS):
        return head.decode("utf-16", "ignore")
    try:
        return head.decode(encoding or "utf-8", "ignore").removeprefix("\ufeff")
    except (LookupError, ValueError):
        # What was declared is not an encoding, which is an error where text is read.
        return head.decode("utf-8", "ignore")


def _json_kind(text: str, more: bool) -> str:
    """json for one or more documents that are read whole, jsonl for one record a line."""
    first, newline, rest = text.partition("\n")
    first, rest = first.strip(), rest.lstrip()
    if text.startswith("["):
        return "jsonl" if rest.startswith(("[", "{")) and _is_json(first) else "json"
    if not newline:
        return "json" if more and _WRAPPED.match(text) else "jsonl"
    if _is_json(first) or _is_json(first.removesuffix(",")):
        return "jsonl"
    return "json" if first.endswith(_UNFINISHED) or not rest.startswith(("{", "[")) and rest else "jsonl"


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True
