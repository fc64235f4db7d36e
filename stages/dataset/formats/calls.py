"""Tools and calls of other interfaces in OpenAI's form; what is not understood is left as it is, and refused later."""

import collections
import json
from typing import Any

import msgspec

from stages.dataset.formats.keys import Keys

# Where other interfaces keep a call's arguments, and a tool's parameters.
_ARGUMENTS = ("arguments", "args", "input", "parameters")
_PARAMETERS = ("parameters", "input_schema", "inputSchema")


class Calls:
    """The calls of one conversation: which have no answer yet."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._made = 0
        self._open = collections.deque[tuple[Any, Any]]()

    def call(self, given: Any) -> Any:
        """A call as OpenAI writes it: an id, and a function with arguments as JSON text."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        function = given.pop("function", None)
        if function is None and "name" in given:
            function = {name: given.pop(name) for name in ("name", *_ARGUMENTS) if name in given}
        if isinstance(function, dict):
            function = self._function(function)
        self._made += 1
        identity, kind = given.pop("id", None), given.pop("type", None)
        found = {
            "id": f"call_{self._made}" if identity is None else identity,
            "type": _kind(kind),
            "function": function,
        }
        self._keys.leave(given.items(), "tool_calls.")
        self._open.append((found["id"], function.get("name") if isinstance(function, dict) else None))
        return found

    def _function(self, given: dict[str, Any]) -> dict[str, Any]:
        given = dict(given)
        found = {"name": given.pop("name")} if "name" in given else {}
        key = next((name for name in _ARGUMENTS if name in given), None)
        if key is not None:
            found["arguments"] = as_text(given.pop(key))
        self._keys.leave(given.items(), "tool_calls.function.")
        return found

    def answer(self, identity: Any, name: Any) -> Any:
        """The id of the call that a tool's message answers: its own, or that of the first open one of this name."""
        match = next((one for one in self._open if _fits(one, identity, name)), None)
        if match is None:
            return identity
        self._open.remove(match)
        return match[0]

    def called(self, identity: Any, name: Any) -> bool:
        """Whether the open call of this id is of this function, so that the name says nothing more."""
        return any(one == (identity, name) for one in self._open)


def _fits(one: tuple[Any, Any], identity: Any, name: Any) -> bool:
    return one[0] == identity if identity is not None else name is None or one[1] == name


def _kind(kind: Any) -> Any:
    # Anthropic's name of a call.
    return "function" if kind in (None, "tool_use", "function_call") else kind


def as_text(value: Any) -> Any:
    """Arguments and results as JSON text; a text is one already."""
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value


def tools(given: Any) -> Any:
    """Tools as OpenAI writes them, from a list or from its JSON text; None for none."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError:
            return given
    return [_tool(one) for one in given] if isinstance(given, list) and given else given or None


def _tool(given: Any) -> Any:
    if not isinstance(given, dict) or "function" in given or "name" not in given:
        return given
    found = {name: given[name] for name in ("name", "description", "strict") if name in given}
    key = next((name for name in _PARAMETERS if name in given), None)
    return {"type": "function", "function": found | ({"parameters": given[key]} if key else {})}
