"""Turn errors in damaged artifacts into a UserError: edited, truncated, or with conflict markers."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import yaml

from stages.core.cli import UserError

MAKE_ANEW = "`dvc repro` there writes it again"


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
        msgspec.MsgspecError,
        yaml.YAMLError,
        csv.Error,
    ) as error:
        raise UserError(f"{name} is damaged ({' '.join(str(error).split())}); {fix}") from None


def numbers(text: str) -> Any:
    """JSON text whose numbers are numbers: Python would also read NaN and Infinity, which JSON does not have.

    Raises:
        ValueError: it is no such text.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number")
