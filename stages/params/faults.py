"""One line for each error in params.yaml: the key, its value, and what is allowed."""

import re
from typing import Any

from pydantic import ValidationError

from stages.core.text import printable
from stages.params import schema
from stages.params.kinds import nearest

# Where a key may be of several kinds, pydantic adds the kind that it tried; of a dict's key it says that it is one.
_LIST_TRIED = re.compile(r"list\[.*\]")
_KIND_TRIED = re.compile(r"constrained-\w+|literal\[.*\]|function-after\[.*\]|int|float|str|bool|\[key\]")
# Longest value that a line repeats.
_VALUE_LIMIT = 80


def fault_lines(error: ValidationError) -> list[str]:
    """The errors as lines, in the order of the file."""
    # A key that may be of several kinds has an error for each of them.
    return list(dict.fromkeys(printable(line(fault)) for fault in error.errors()))


def line(fault: Any) -> str:
    """The line for one of pydantic's errors."""
    place = [str(part) for part in fault["loc"] if not _LIST_TRIED.fullmatch(str(part))]
    if fault["type"] == "extra_forbidden":
        known = schema.at(".".join(place[:-1])).get("properties", {})
        return f"{'.'.join(place)}: unknown key{nearest(place[-1], known, place[:-1])}"
    while place and _KIND_TRIED.fullmatch(place[-1]):
        place.pop()
    key = ".".join(place)
    if fault["type"] == "missing":
        return f"{key}: missing; expected {schema.allowed(key)}"
    if fault["type"] == "value_error":
        said = str(fault["ctx"]["error"])
        # An error of a whole section may name its key in full.
        return said if not key or said.startswith(f"{key}.") else f"{key}: {said}"
    if fault["type"] == "invalid_key" or fault["loc"][-1:] == ("[key]",):
        return f"{key}: a key must be text; put it in quotes, or remove it"
    return f"{key}: {_shown(fault['input'])} is not allowed; expected {schema.allowed(key)}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        # As YAML has it.
        return str(value) if value is not None else "null"
    text = repr(value)
    return text if len(text) <= _VALUE_LIMIT else f"{text[:_VALUE_LIMIT]}..."
