"""Tool conversations: ids, answers, arguments and names, each right once and wrong in one way."""

import json
import time

import pytest

from stages.dataset import tool_calls
from stages.dataset.conversations import Conversation, Message

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASK, SAY = Message("user", "Weather in Oslo?"), Message("assistant", "4 degrees.")


def tool(name="weather", parameters=CITY):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(identifier="c1", name="weather", arguments='{"city": "Oslo"}'):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made):
    return Message("assistant", tool_calls=list(made))


def result(identifier="c1", name=None):
    return Message("tool", "4 C", tool_call_id=identifier, name=name)


WEATHER = (tool(),)


def faults(*messages, tools=WEATHER):
    found = tool_calls.find(Conversation(tuple(messages), tools=list(tools) or None))
    return [(name, number) for name, number, *_ in found]


def why(arguments, parameters):
    found = list(
        tool_calls.find(Conversation((ASK, calls(call(arguments=arguments))), tools=[tool(parameters=parameters)]))
    )
    return [(name, reason) for name, _, _, reason in found]


@pytest.mark.parametrize(
    "messages",
    [
        (ASK, SAY),
        (ASK, calls(call()), result(), SAY),
        (ASK, calls(call()), result(), ASK, SAY),
        (ASK, calls(call())),  # the response is a call
        (ASK, calls(call("a"), call("b")), result("b"), result("a"), SAY),
        (ASK, calls(call()), result(), calls(call()), result(), SAY),  # the id is used again once it is answered
        (ASK, calls(call()), result(None), SAY),
        (ASK, calls(call()), result(None, "weather"), SAY),
        (ASK, calls(call("a"), call("b")), result(None), result(None), SAY),
    ],
)
def test_calls_that_are_answered_have_no_faults(messages):
    assert faults(*messages) == []


@pytest.mark.parametrize(
    "messages, expected",
    [
        ((ASK, calls(call()), result("zzz"), SAY), [("unmatched_result", 3), ("unanswered_call", 2)]),
        ((ASK, calls(call()), result(), result(), SAY), [("unmatched_result", 4)]),
        ((ASK, calls(call()), ASK, SAY), [("unanswered_call", 2)]),
        ((ASK, calls(call("a"), call("b")), result("a"), SAY), [("unanswered_call", 2)]),
        ((ASK, calls(call()), ASK, result(), SAY), [("unanswered_call", 2), ("unmatched_result", 4)]),
        ((ASK, calls(call()), result(None, "clock"), SAY), [("unmatched_result", 3), ("unanswered_call", 2)]),
        ((ASK, calls(call(), call()), result(), SAY), [("unmatched_result", 2)]),
        ((ASK, result(), SAY), [("unmatched_result", 2)]),
        ((ASK, calls(call("None")), result(None, "x")), [("unmatched_result", 3), ("unanswered_call", 2)]),
        ((ASK, calls(call(name="wether")), result(), SAY), [("unknown_tool", 2)]),
        ((ASK, calls(call(arguments="city=Oslo")), result(), SAY), [("invalid_arguments", 2)]),
        ((ASK, calls(call(arguments='["Oslo"]')), result(), SAY), [("invalid_arguments", 2)]),
        ((ASK, calls(call(arguments="{}")), result(), SAY), [("invalid_arguments", 2)]),
        ((ASK, calls(call(arguments='{"city": 7}')), result(), SAY), [("invalid_arguments", 2)]),
    ],
)
def test_each_fault_names_its_message(messages, expected):
    assert faults(*messages) == expected


def test_without_tools_names_and_schemas_are_not_compared():
    assert faults(ASK, calls(call(name="clock", arguments="{}")), result(), SAY, tools=()) == []
    assert faults(ASK, calls(call(arguments="x")), result(), SAY, tools=()) == [("invalid_arguments", 2)]


def test_what_is_wrong_is_said_with_its_place():
    assert why('{"city": 7}', CITY) == [("invalid_arguments", "city: 7 is not of type 'string'")]
    assert why("{}", CITY) == [("invalid_arguments", "'city' is a required property")]
    assert why('{"city": "' + "x" * 99 + '"}', {"properties": {"city": {"enum": ["Oslo"]}}}) == [
        ("invalid_arguments", "city: enum is not met")
    ]


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"properties": {"pattern": {"type": "string"}}}])
def test_a_tool_may_take_anything(parameters):
    assert why('{"city": "Oslo", "pattern": "a"}', parameters) == []


def test_a_parameter_of_the_name_of_a_keyword_is_compared():
    assert why('{"pattern": 5}', {"properties": {"pattern": {"type": "string"}}})[0][0] == "invalid_arguments"


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": 5},
        "text",
        {"properties": 7},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"properties": {"city": {"$ref": "file:///etc/passwd"}}},
    ],
)
def test_what_is_no_schema_is_a_fault_and_reads_nothing(parameters):
    assert [name for name, _ in why('{"city": "Oslo"}', parameters)] == ["invalid_arguments"]


def test_schemas_refer_to_their_own_definitions():
    parameters = {"properties": {"city": {"$ref": "#/$defs/City"}}, "$defs": {"City": {"type": "string"}}}
    assert why('{"city": "Oslo"}', parameters) == []
    assert why('{"city": 1}', parameters) == [("invalid_arguments", "city: 1 is not of type 'string'")]


@pytest.mark.parametrize(
    "parameters, arguments",
    [
        ({"properties": {"city": {"pattern": "(a+)+$"}}}, {"city": "a" * 40 + "!"}),
        ({"patternProperties": {"(a+)+$": {}}, "additionalProperties": False}, {"a" * 40 + "!": 1}),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"city": {"pattern": "(a+)+$"}}},
            {"city": "a" * 40 + "!"},
        ),
        ({"properties": {"city": {"uniqueItems": True}}}, {"city": [{"a": n} for n in range(4000)]}),
        (
            {
                "$ref": "#/$defs/0",
                "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(30)} | {"30": {}},
            },
            {},
        ),
        ({"$ref": "#"}, {}),
        (
            {"items": {"allOf": [{}] * 5000}, "properties": {"city": {"items": {"allOf": [{}] * 5000}}}},
            {"city": [1] * 5000},
        ),
    ],
)
def test_a_schema_cannot_make_the_gate_wait(parameters, arguments):
    begin = time.process_time()
    why(json.dumps(arguments), parameters)
    assert time.process_time() - begin < 5
