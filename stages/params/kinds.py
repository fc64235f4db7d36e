"""Kinds of values, and how a parameter is declared: its meaning, and who reads it, in one place."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined

Backend = Literal["unsloth", "openai"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
# What a parameter decides: the stage's result, or only its time and memory (the result differs by rounding at most), or
# neither, as a time limit does.
Effect = Literal["result", "cost", "nothing"]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Text = Annotated[str, Field(strict=True, min_length=1)]
Auto = Literal["auto"]
Flag = Annotated[bool, Field(strict=True)]


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"'{text}' is not a regular expression: {error}") from None
    return text


Pattern = Annotated[Text, AfterValidator(_regular_expression)]

# The key of a field's JSON schema that holds its ReadBy.
READ_BY = "x-read-by"


class Section(BaseModel):
    """A group of keys of which none may be unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ReadBy:
    """The stages that read a parameter, the backends with which they do, and what it decides there.

    Every stage checks the whole file, and report shows all of it; neither is meant.
    """

    stages: tuple[str, ...] = ()
    backends: tuple[Backend, ...] = BACKENDS
    decides: Effect = "result"


def knob(description: str, read_by: ReadBy | None = None, default: Any = PydanticUndefined, **field: Any) -> Any:
    """A parameter, or a section of them: its meaning and cost, and who reads it, which else is as for its section."""
    schema: dict[str, Any] = {} if read_by is None else {READ_BY: asdict(read_by)}
    schema |= field.pop("json_schema_extra", {})
    return Field(default, description=description, json_schema_extra=schema, **field)


def nearest(name: str, names: Iterable[str], prefix: Iterable[str] = ()) -> str:
    """A hint at the known name that is most like an unknown one, or at all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    # A long word for a short name (rank for r) or the reverse is nobody's close match: list what there is.
    hint = f"did you mean '{'.'.join([*prefix, near[0]])}'?" if near else f"known: {', '.join(known) or 'none'}"
    return f"; {hint}"
