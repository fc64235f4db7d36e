"""What a look at the machine found."""

# An older Python must be able to say that it is too old.
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """What was found; `fix` is the command that helps, and empty where all is well.

    `needed` says whether a run with the chosen parameters cannot do without it.
    """

    text: str
    fix: str = ""
    needed: bool = True
