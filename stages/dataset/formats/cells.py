"""What a role's text is made of: a column, several, or a template with {column} in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

_COLUMN = re.compile(r"\{([^{}\n]+)\}")


@dataclass(frozen=True)
class Part:
    """A column and the words before it. An `optional` one may lack a value, a `loose` one may be missing as such."""

    before: str
    name: str
    optional: bool = False
    loose: bool = False


@dataclass(frozen=True)
class Cells:
    """The columns of one role, in order, and the words after them."""

    parts: tuple[Part, ...]
    after: str = ""

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [part.name for part in self.parts]

    def text(self, fields: Mapping[str, Any]) -> str:
        """The text of a row. An empty cell takes the words before it along.

        Raises:
            msgspec.ValidationError: a cell is no text.
        """
        if len(self.parts) == 1 and not self.after and not self.parts[0].before:
            return _cell(fields, self.parts[0])
        found, left_out = [], False
        for part in self.parts:
            cell = _cell(fields, part)
            left_out = left_out or not cell.strip()
            if cell.strip():
                found += [part.before, cell]
        if not found:
            return ""
        text = "".join([*found, self.after])
        return text.strip() if left_out else text


def cells(spec: str | Sequence[str]) -> Cells:
    """A role's declaration: a column's name, a list of them, or a template. A name that ends in ? may be missing."""
    if isinstance(spec, str):
        found = list(_COLUMN.finditer(spec))
        if not found:
            return Cells((Part("", spec),))
        ends = [0, *(one.end() for one in found)]
        optional = len(found) > 1
        parts = [Part(spec[end : one.start()], one[1], optional) for end, one in zip(ends, found, strict=False)]
        return Cells(tuple(parts), spec[ends[-1] :])
    several = len(spec) > 1
    return Cells(
        tuple(
            Part("\n\n" if number else "", name.removesuffix("?"), name.endswith("?") or several, name.endswith("?"))
            for number, name in enumerate(spec)
        )
    )


def _cell(fields: Mapping[str, Any], part: Part) -> str:
    value = fields.get(part.name)
    if isinstance(value, str):
        return value
    if value is None and part.optional:
        return ""
    kind = "missing" if value is None else type(value).__name__
    raise msgspec.ValidationError(f"Expected text in field `{part.name}`, got {kind}")
