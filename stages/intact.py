"""One sentence for a file that is not what its stage writes: edited, cut short, or left with conflict markers."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import yaml

from stages.command import UserError

MAKE_ANEW = "`dvc repro` there makes it anew"


@contextmanager
def intact(name: str, mend: str = MAKE_ANEW) -> Iterator[None]:
    """Name the file when the block, which takes its content apart, finds something else in it than it expects.

    Raises:
        UserError: it does.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{name} is damaged (it has no {error}); {mend}") from None
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        msgspec.MsgspecError,
        yaml.YAMLError,
        csv.Error,
    ) as error:
        raise UserError(f"{name} is damaged ({' '.join(str(error).split())}); {mend}") from None


def numbers(text: str) -> Any:
    """JSON text whose numbers are numbers: Python would also read NaN and Infinity, which JSON does not have.

    Raises:
        ValueError: it is no such text.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
