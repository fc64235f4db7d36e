"""Whether the tool calls of a conversation fit its tools, and its results the calls."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, exceptions, validators
from referencing import Registry

from stages.dataset.conversations import Conversation, Message

# Signal of each fault.
NAMES = ("unknown_tool", "invalid_arguments", "unmatched_result", "unanswered_call")
# Whoever writes the data writes the schemas too: nothing is compared beyond this product of lengths, and no more
# references are followed.
_MOST_WORK, _MOST_REFERENCES = 10_000_000, 1000
# To match a pattern or to compare all items could take for ever; another version of JSON Schema would bring them back.
_NOT_COMPARED = {"pattern", "patternProperties", "uniqueItems", "$schema"}
_OF_PATTERNS = {"additionalProperties", "unevaluatedProperties"}
# Under these keys names are the data's own, and under those all is.
_NAMED, _DATA = {"properties", "$defs", "definitions", "dependentSchemas"}, {"enum", "const", "default", "examples"}
_SHOWN = 60
# Name of the fault, number of the message from 1, its text and what is wrong.
Fault = tuple[str, int, str, str]


def find(conversation: Conversation) -> Iterator[Fault]:
    """Faults in order: the signal's name, the number of the message, the part that is wrong, and why it is.

    A call's results follow it before anyone else speaks; one without an id answers the first open call, of its name
    where it has one. Calls of the last message need no result. Names and arguments are compared with the conversation's
    tools where it has some.
    """
    if not any(message.tool_calls or message.role == "tool" for message in conversation.messages):
        return
    tools = _parameters(conversation)
    waiting: dict[str, tuple[int, str]] = {}
    for number, message in enumerate(conversation.messages, 1):
        if message.role == "tool":
            if fault := _answer(number, message, waiting):
                yield fault
            continue
        yield from _unanswered(waiting)
        waiting = {}
        for call in message.tool_calls or ():
            name, identifier = _name(call), str(call.get("id"))
            if identifier in waiting:
                yield "unmatched_result", number, identifier, "two calls of one message have this id"
            waiting[identifier] = number, name
            yield from _called(number, call, tools)
    if conversation.messages[-1].role == "tool":
        yield from _unanswered(waiting)


def _unanswered(waiting: dict[str, tuple[int, str]]) -> Iterator[Fault]:
    for identifier, (number, _) in waiting.items():
        yield "unanswered_call", number, identifier, "no tool message answers this call before the next turn"


def _answer(number: int, message: Message, waiting: dict[str, tuple[int, str]]) -> Fault | None:
    """Take the call that a result answers from those that wait for one; the fault if there is none."""
    identifier = message.tool_call_id
    if identifier is None:
        named = (one for one, (_, name) in waiting.items() if message.name in (None, name))
        identifier = next(named, None)
    if identifier is not None and waiting.pop(identifier, (0, ""))[0]:
        return None
    return "unmatched_result", number, message.tool_call_id or message.name or "", "it answers no call that is open"


def _called(number: int, call: dict[str, Any], tools: dict[str, Any] | None) -> Iterator[Fault]:
    name, text = _name(call), _function(call).get("arguments")
    text = text if isinstance(text, str) else msgspec.json.encode(text).decode()
    if tools is not None and name not in tools:
        yield "unknown_tool", number, name, f"the conversation's tools are {_listed(tools)}"
    try:
        arguments = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        yield "invalid_arguments", number, text, "the arguments are no JSON"
        return
    if not isinstance(arguments, dict):
        yield "invalid_arguments", number, text, "the arguments are no JSON object"
    elif tools is not None and name in tools and (why := _against(tools[name], arguments, text)):
        yield "invalid_arguments", number, text, why


def _parameters(conversation: Conversation) -> dict[str, Any] | None:
    """The schema of each tool's parameters by name; None where the conversation has no tools."""
    if not conversation.tools:
        return None
    functions = [_function(tool) or tool for tool in conversation.tools]
    return {str(one.get("name")): one.get("parameters") for one in functions}


def _function(holder: dict[str, Any]) -> dict[str, Any]:
    function = holder.get("function")
    return function if isinstance(function, dict) else {}


def _name(call: dict[str, Any]) -> str:
    return str(_function(call).get("name", ""))


def _listed(tools: dict[str, Any]) -> str:
    names = ", ".join(list(tools)[:5])
    return names if len(tools) <= 5 else f"{names} and {len(tools) - 5} more"


def _against(parameters: Any, arguments: dict[str, Any], text: str) -> str | None:
    """Why the arguments do not fit the schema; None where they do, or where it is too large to compare."""
    schema = b"{}" if parameters is None else msgspec.json.encode(parameters)
    if len(schema) * len(text) > _MOST_WORK:
        return None
    validator = _validator(schema)
    if validator is None:
        return "the tool's parameters are no JSON schema"
    _followed.clear()
    try:
        error = next(validator.iter_errors(arguments), None)
    except _TooFarError:
        return None
    # A schema can be valid in itself and still refer to what is not there, or to itself without an end.
    except Exception:
        return "the tool's parameters are no JSON schema that can be followed"
    return _why(error) if error else None


def _why(error: Any) -> str:
    place = ".".join(map(str, error.absolute_path))
    message = error.message if len(error.message) <= _SHOWN else f"{error.validator} is not met"
    return f"{place}: {message}" if place else message


class _TooFarError(Exception):
    """So many references are no tool's."""


_followed: list[None] = []


def _counting(follow: Any) -> Any:
    def counted(*given: Any) -> Any:
        _followed.append(None)
        if len(_followed) > _MOST_REFERENCES:
            raise _TooFarError
        return follow(*given)

    return counted


_REFERENCES = {key: _counting(Draft202012Validator.VALIDATORS[key]) for key in ("$ref", "$dynamicRef")}
_Bounded = validators.extend(Draft202012Validator, _REFERENCES)


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    """The validator of a schema (JSON Schema 2020-12), which reads nothing from a network; None where it is none."""
    try:
        parameters = _bounded(msgspec.json.decode(schema))
        _Bounded.check_schema(parameters)
    except (exceptions.SchemaError, RecursionError, re.error):
        return None
    return _Bounded(parameters, registry=Registry())


def _bounded(schema: Any, names: bool = False) -> Any:
    """The schema without what could take for ever; with `names`, its keys are names and no words of JSON Schema."""
    if isinstance(schema, list):
        return [_bounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    left = set() if names else _NOT_COMPARED | (_OF_PATTERNS if "patternProperties" in schema else set())
    kept = {key: value for key, value in schema.items() if key not in left}
    return {
        key: value if not names and key in _DATA else _bounded(value, not names and key in _NAMED)
        for key, value in kept.items()
    }
