"""What the report reads, by schema: whoever wrote these files, anything else in them is damage."""

import csv
import io
from collections.abc import Iterable
from typing import Any, TypedDict, TypeVar

import msgspec

from stages.core.artifacts import numbers
from stages.metrics.intervals import Interval

Kind = TypeVar("Kind")
Scalar = str | int | float | bool | None


class Compared(TypedDict):
    """Base, tuned model and the difference, by measure."""

    base: dict[str, Interval]
    tuned: dict[str, Interval]
    gain: dict[str, Interval]


class Slice(Compared):
    """The conversations with one label."""

    conversations: int


class Baseline(TypedDict):
    """A baseline's measures, and the tuned model's minus them."""

    measures: dict[str, Interval]
    gain: dict[str, Interval]


class Outcome(TypedDict):
    """The verdict."""

    word: str
    sentence: str


class Measures(TypedDict):
    """reports/eval/measures.json."""

    verdict: Outcome
    test: Compared
    baselines: dict[str, Baseline]
    train: dict[str, Scalar]
    counts: dict[str, int]


class Split(TypedDict):
    """One split's size."""

    conversations: int
    tokens: int


class Nearest(TypedDict):
    """Quantiles of the similarity of test prompts to the nearest train prompt."""

    median: float
    p90: float
    max: float


class Splits(TypedDict):
    """reports/splits.json."""

    train: Split
    validation: Split
    test: Split
    overlap: int
    nearest: Nearest
    changed_split: int | None


class Finding(TypedDict):
    """A rule of the gate that some rows break."""

    rule: str
    severity: str
    advice: str
    rows: int


class Validation(TypedDict):
    """reports/validation.json."""

    rows: int
    rules: int
    quarantined: int
    findings: list[Finding]


def parse(text: str, kind: type[Kind]) -> Kind:
    """JSON text of this schema.

    Raises:
        ValueError, RecursionError, msgspec.ValidationError: it is none.
    """
    return msgspec.convert(numbers(text), kind)


def table(text: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV that has these columns; every cell is there.

    Raises:
        ValueError, csv.Error: a column or a cell is missing, or a row has more of them.
    """
    reader = csv.DictReader(io.StringIO(text), strict=True)
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"the column {missing[0]} is missing")
    rows: list[dict[Any, Any]] = []
    for number, row in enumerate(reader, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not as many cells as there are columns")
        rows.append(row)
    return rows
