"""Marks a tuned model whose adapter was trained over a base in 4 bit."""

from pathlib import Path

from stages.core import files

_MARK = "quantization.json"


def mark(tuned: Path) -> None:
    """Write the mark into the folder of a tuned model; no program for adapters reads it."""
    files.write_json(tuned / _MARK, {"base": "nf4"})


def trained_over(tuned: Path) -> bool:
    """Whether the folder has the mark."""
    return (tuned / _MARK).exists()
