"""What differs between the data of two runs, from dvc.lock, the committed reports and what the cache still has."""

import collections
import contextlib
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pydantic

from stages import params
from stages.core import files, revisions
from stages.core.paths import CONVERSATIONS, RAW, SPLITS
from stages.core.revisions import Revision
from stages.dataset import conversations, formats, readers

# Files that hold the data, in the order of the road.
_FILES = [RAW, CONVERSATIONS, *SPLITS.values()]


@dataclass(frozen=True)
class Rows:
    """Numbers of conversations: in each run, and of those that differ. Changed: the same prompt, another response."""

    old: int
    new: int
    added: int
    removed: int
    changed: int


@dataclass(frozen=True)
class DataChanges:
    """The files that dvc.lock has another checksum for, and the rows where both runs' conversations are at hand.

    `missing` names the revisions whose conversations are not.
    """

    files: list[str]
    rows: Rows | None
    missing: list[str]


def between(old: Revision, new: Revision) -> DataChanges:
    """Compare the data of the runs that two revisions record."""
    checksums = [revision.checksums() for revision in (old, new)]
    names = [path.as_posix() for path in _FILES]
    differing = [name for name in names if checksums[0].get(name) != checksums[1].get(name)]
    whole = CONVERSATIONS.as_posix()
    if whole not in differing and whole in checksums[0]:
        return DataChanges(differing, None, [])
    with tempfile.TemporaryDirectory() as folder:
        found = {one.name: _conversations(one, Path(folder, str(n))) for n, one in enumerate((old, new))}
        paths = [path for path in found.values() if path is not None]
        missing = [name for name, path in found.items() if path is None]
        return DataChanges(differing, None if missing else _rows(*paths), missing)


def _conversations(revision: Revision, folder: Path) -> Path | None:
    """The run's conversations as JSONL: from DVC's cache, or parsed again from a source that lies in Git."""
    checksums = revision.checksums()
    wanted = checksums.get(CONVERSATIONS.as_posix())
    if wanted is None or (cached := revisions.cached(wanted)) is not None:
        return cached if wanted else None
    data = _data(revision)
    content = revision.content(Path(data.chosen.url)) if data else None
    if data is None or content is None or hashlib.md5(content).hexdigest() != checksums.get(RAW.as_posix()):
        return None
    folder.mkdir()
    raw, path = folder / RAW.name, folder / CONVERSATIONS.name
    raw.write_bytes(content)
    # What reading says about the file belongs on the terminal, not into the review.
    with contextlib.redirect_stdout(sys.stderr):
        records = formats.read(readers.rows(raw, data.chosen, data.max_bytes), data.chosen)
        conversations.write_jsonl(path, (one.conversation for one in records if one.conversation is not None))
    # Another version of the code may have parsed otherwise: only what that run had counts.
    return path if files.md5(path) == wanted else None


def _data(revision: Revision) -> params.Data | None:
    """The revision's section `data`; None where today's code does not know its form."""
    try:
        return params.Data.model_validate(params.parse_yaml(revision.text(params.PARAMS) or "{}").get("data"))
    except pydantic.ValidationError:
        return None


def _rows(old: Path, new: Path) -> Rows:
    """Compare line by line; the order of lines does not matter."""
    counts = [_counted(path) for path in (old, new)]
    removed, added = counts[0] - counts[1], counts[1] - counts[0]
    before, after = _prompts(old, removed), _prompts(new, added)
    changed = (before & after).total()
    return Rows(
        old=counts[0].total(),
        new=counts[1].total(),
        added=added.total() - changed,
        removed=removed.total() - changed,
        changed=changed,
    )


def _counted(path: Path) -> collections.Counter[str]:
    with path.open("rb") as file:
        return collections.Counter(conversations.identity(line.rstrip(b"\n")) for line in file)


def _prompts(path: Path, chosen: collections.Counter[str]) -> collections.Counter[bytes]:
    """How often each prompt occurs in the chosen lines of the file."""
    left, found = chosen.copy(), collections.Counter[bytes]()
    with path.open("rb") as file:
        for line in file:
            name = conversations.identity(line.rstrip(b"\n"))
            if left[name] > 0:
                left[name] -= 1
                found[msgspec.json.encode(conversations.decode(line).prompt)] += 1
    return found
