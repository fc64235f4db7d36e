"""inspect: look into a file of conversations: what it is, its first records, findings, and the block for params.yaml.

    python -m stages.commands.inspect FILE
    python -m stages.commands.inspect FILE --add NAME

FILE is a path or an address. The formats are tried on the first records; the one that reads them is declared in the
block. --add writes the block to params.yaml as data.sources.NAME, and makes it data.source. Nothing else is changed.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvc.utils.serialize import modify_yaml

from stages import params
from stages.core import files
from stages.core.cli import UserError, notice, parser, run
from stages.core.flatten import address
from stages.core.paths import RAW
from stages.core.text import printable
from stages.dataset import formats, readers
from stages.dataset.conversations import Conversation
from stages.dataset.formats import suggest
from stages.dataset.inspector import Inspector
from stages.dataset.masking import excerpt, masked
from stages.dataset.readers import workbooks
from stages.dataset.source import Tried

# Records that are shown, and that are looked through for findings.
_SHOWN, _LOOKED_AT = 5, 10_000
# Records by which a declaration is found.
_TRIED = 20
# Characters of a message that are shown, kinds of findings, and rows of each.
_MESSAGE, _KINDS, _ROWS = 200, 10, 5
# In place of a name that was not given.
_NAME = "mine"


def main() -> None:
    arguments = parser(main)
    arguments.add_argument("file", help="a path, or an address: https://..., or one with a plug-in of fsspec")
    arguments.add_argument("--add", metavar="NAME", help="write the declaration to params.yaml as data.sources.NAME")
    given = arguments.parse_args()
    data = params.load().data
    name = given.add or _NAME
    if given.add:
        _refuse_name(given.add, data)
    with _at_hand(given.file) as path:
        # What reading says of the file is said once, where its records are shown.
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                found = _declared(path, Tried(name=name), data.max_bytes)
        except UserError as error:
            raise UserError("\n".join([str(error), *said.getvalue().splitlines()[:1]])) from None
        notice(f"{printable(address(given.file))} is {_kind(path, found, data.max_bytes)}")
        _show(path, found, data.max_bytes)
    block: dict[str, Any] = {"url": _url(given.file), "sha256": None, **suggest.settings(found)}
    if given.add:
        _add(given.add, block)
        notice(f"params.yaml has it as data.sources.{name}, and uses it; check all of it with `dvc repro validate`")
    else:
        lines = ["data:", f"  source: {name}", "  sources:", f"    {name}:"]
        lines += [f"      {line}" for line in suggest.as_yaml(block)]
        notice("\n".join(["", "for params.yaml (--add NAME writes it):", "", *lines]))


def _refuse_name(name: str, data: params.Data) -> None:
    """Refuse a name that is taken.

    Raises:
        UserError: it is.
    """
    if name in data.sources:
        raise UserError(f"data.sources has a '{name}' already; choose another name, or edit it in params.yaml")


@contextlib.contextmanager
def _at_hand(file: str) -> Iterator[Path]:
    """The file's path; what is at an address is fetched as the stage download does it."""
    if "@" in file.partition("://")[2].partition("/")[0]:
        raise UserError("the address holds credentials, which do not belong into params.yaml; give them to its plug-in")
    if "://" not in file:
        path = Path(file)
        if not path.is_file():
            raise UserError(f"{printable(file)} is not a file; expected a path or an address")
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        _fetch(file, Path(folder))
        yield Path(folder, RAW)


def _fetch(url: str, folder: Path) -> None:
    values = params.read_yaml(params.PARAMS)
    values["data"] |= {"source": _NAME, "sources": {_NAME: {"url": url, "sha256": None, "format": "messages"}}}
    files.write_json(folder / params.PARAMS, values)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-m", "stages.download"], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    if done.returncode:
        raise UserError("the address could not be read; the reason is above")


def _declared(path: Path, source: Tried, limit: int) -> Tried:
    """What reads the file.

    Raises:
        UserError: nothing does, and what to do.
    """
    rows = _first(path, source, limit)
    if not rows and source.escape is None:
        return _declared(path, dataclasses.replace(source, escape="backslash"), limit)
    found = suggest.declaration(rows, source)
    if found is None and source.sheet is None and readers.container(path, source, limit) == "xlsx":
        # The first sheet is often about the others.
        tried = [dataclasses.replace(source, sheet=name) for name in workbooks.sheets(path)[1:]]
        found = next(filter(None, (suggest.declaration(_first(path, one, limit), one) for one in tried)), None)
    if found is None:
        way = suggest.way_out(rows, source)
        seen = "; ".join(excerpt(str(content)) for _, content in rows[:3])
        raise UserError(
            f"{path} holds no conversations that are known: its first records are {seen}\n"
            f"{way or 'docs/own-csv.md lists the shapes that are read; declare the columns of a table, or convert it'}"
        )
    return dataclasses.replace(found, name=source.name)


def _first(path: Path, source: Tried, limit: int) -> list[tuple[int, Any]]:
    """The first rows; none where the quotes of a CSV may be escaped otherwise."""
    try:
        return list(itertools.islice(readers.rows(path, source, limit), _TRIED))
    except UserError as error:
        if "escape: backslash" in str(error):
            return []
        raise


def _kind(path: Path, found: Tried, limit: int) -> str:
    container = readers.container(path, found, limit)
    return f"{container}, with {formats.REGISTRY[found.format].meaning} (format: {found.format})"


def _show(path: Path, found: Tried, limit: int) -> None:
    """Print the first records as conversations, and what is wrong with some."""
    inspector, seen = Inspector([]), dict[str, list[str]]()
    shown = total = invalid = 0
    for record in itertools.islice(formats.read(readers.rows(path, found, limit), found), _LOOKED_AT):
        total += 1
        if record.conversation is None:
            invalid += 1
            seen.setdefault(f"no conversation: {record.error}", []).append(f"row {record.row}, {record.snippet}")
            continue
        if shown < _SHOWN:
            shown += 1
            notice("\n".join([f"row {record.row}", *_lines(record.conversation)]))
        for name, what in _findings(record.conversation, inspector):
            seen.setdefault(name, []).append(f"row {record.row}, {what}")
    more = " (the file goes further)" if total == _LOOKED_AT else ""
    notice(f"\n{total:,} records: {total - invalid:,} valid, {invalid:,} invalid{more}")
    for name, places in itertools.islice(seen.items(), _KINDS):
        notice(f"  {name} ({len(places):,})")
        for place in places[:_ROWS]:
            notice(f"    {place}")
    if len(seen) > _KINDS:
        notice(f"  and {len(seen) - _KINDS} more kinds of findings")


def _lines(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        text = message.text if message.content is not None else f"calls {message.tool_calls}"
        shown = printable(masked(text)[:_MESSAGE])
        yield f"  {message.role}: {shown}{'...' if len(text) > _MESSAGE else ''}"


def _findings(conversation: Conversation, inspector: Inspector) -> Iterator[tuple[str, str]]:
    """What the gate would look at, as far as it needs no base model; it has more rules, and compares rows."""
    roles = [message.role for message in conversation.messages]
    if not roles or roles[-1] != "assistant":
        yield "the last message is not the assistant's", " ".join(roles) or "no messages"
    yield from inspector.faults(conversation).items()


def _url(file: str) -> str:
    return file if "://" in file else os.path.relpath(file).replace(os.sep, "/")


def _add(name: str, block: dict[str, Any]) -> None:
    """Write the source to params.yaml, whose comments stay.

    Raises:
        UserError: params.yaml would not be valid with it; nothing is written.
    """
    with files.replacing(params.PARAMS) as copy:
        copy.write_bytes(params.PARAMS.read_bytes())
        yaml_copy = copy.with_name(f"{copy.name}.yaml")
        try:
            yaml_copy.write_bytes(copy.read_bytes())
            with modify_yaml(yaml_copy) as values:
                values["data"]["sources"][name] = block
                values["data"]["source"] = name
            params.load(yaml_copy)
            copy.write_bytes(yaml_copy.read_bytes())
        except UserError as error:
            # Its first line is about the copy.
            raise UserError(f"params.yaml is as it was: {'; '.join(str(error).splitlines()[1:])}") from None
        finally:
            yaml_copy.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main, parses=True)
