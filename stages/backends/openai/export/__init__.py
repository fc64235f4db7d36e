"""A hosted model cannot be exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core.cli import notice
from stages.params import Params


def check(knobs: Params) -> None:
    """Nothing is written."""


def write(knobs: Params, folder: Path, write_card: Callable[[Path], Any]) -> list[str]:
    """Write nothing: there are no local weights."""
    notice("export: nothing to write, because a hosted model cannot leave its service")
    return []
