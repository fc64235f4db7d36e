"""Files that Git holds and anybody may have changed, read with bounds; damage becomes a UserError.

They may be edited, truncated, have conflict markers, or be made to keep a reader busy.
"""

import csv
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from stages.core.cli import UserError

MAKE_ANEW = "`dvc repro` there writes it again"
# Far more than any of them has: predictions of 10,000 conversations take a tenth.
LIMIT = 200 * 2**20


@contextmanager
def intact(name: str, fix: str = MAKE_ANEW) -> Iterator[None]:
    """Name the file if the block, which parses its content, finds something unexpected.

    Raises:
        UserError: it does.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{name} is damaged (it has no {error}); {fix}") from None
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        msgspec.MsgspecError,
        yaml.YAMLError,
        csv.Error,
    ) as error:
        raise UserError(f"{name} is damaged ({' '.join(str(error).split())}); {fix}") from None


def content(path: Path, limit: int | None = None) -> bytes:
    """The file's bytes. A link to a device, a pipe or a folder is refused: reading it could take for ever.

    Raises:
        ValueError: it is no file of at most `limit` bytes, by default LIMIT.
        OSError: it is missing, a folder or cannot be read.
    """
    limit = LIMIT if limit is None else limit
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise ValueError("it is a device or a pipe")
    with path.open("rb") as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return found


def numbers(text: str) -> Any:
    """JSON text whose numbers are numbers: Python would also read NaN and Infinity, which JSON does not have.

    Raises:
        ValueError: it is no such text.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number")
