"""The JSON schema of params.yaml, and what it says of single parameters: what each allows, in words."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from stages.params.kinds import READ_BY, Backend, ReadBy
from stages.params.models import Params

_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a section",
}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
# In a parameter's name: any name that the user gives.
ANY = "*"
Schema = dict[str, Any]


class _WithoutTitles(GenerateJsonSchema):
    """A key's name made into a title would only repeat it."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def whole() -> Schema:
    """The JSON schema of the whole file."""
    return Params.model_json_schema(schema_generator=_WithoutTitles)


@dataclass(frozen=True)
class Knob:
    """A parameter, or a section of them: `name` has a `*` for a name that the user gives, as of a source."""

    name: str
    description: str
    allowed: str
    read_by: ReadBy
    required: bool
    is_section: bool

    def read_in(self, stage: str, backend: Backend | None = None) -> bool:
        """Whether the stage reads it, with this backend or with any."""
        return stage in self.read_by.stages and (backend is None or backend in self.read_by.backends)


@cache
def knobs() -> tuple[Knob, ...]:
    """All sections and parameters, in the order of the file; a section comes before what it holds."""
    return tuple(_walk(whole(), "", ReadBy()))


def _walk(section: Schema, prefix: str, above: ReadBy) -> list[Knob]:
    found = []
    for key, schema in section["properties"].items():
        name = f"{prefix}{key}"
        given = schema.get(READ_BY)
        read_by = ReadBy(tuple(given["stages"]), tuple(given["backends"]), given["decides"]) if given else above
        inner, named = _one_kind(schema), ""
        if "properties" not in inner and (each := _one_kind(inner.get("additionalProperties") or {})):
            inner, named = each, f"{ANY}."
        within = _walk(inner, f"{name}.{named}", read_by) if "properties" in inner else []
        required = key in section.get("required", [])
        found += [Knob(name, schema["description"], allowed(name), read_by, required, bool(within)), *within]
    return found


def _one_kind(schema: Schema) -> Schema:
    """The schema without `null` and behind its reference, where it is of one kind."""
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    schema = options[0] if len(options) == 1 else schema
    return dict(whole()["$defs"][schema["$ref"].rsplit("/", 1)[1]]) if "$ref" in schema else schema


def at(name: str) -> Schema:
    """The schema of the parameter or section of this name, and {} where there is none."""
    schema: Schema = whole()
    for part in name.split(".") if name else []:
        # Of several kinds only a list holds something.
        schema = next((option for option in schema.get("anyOf", []) if "items" in option), schema)
        if "items" in schema:
            schema = schema["items"]
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        else:
            schema = schema.get("additionalProperties") or {}
        schema = _one_kind(schema)
    return schema


def allowed(name: str) -> str:
    """What the parameter of this name takes, in words: `a number > 0 and <= 1`, `one of stop, drop`."""
    above, _, key = name.rpartition(".")
    schema = at(above).get("properties", {}).get(key) or at(name)
    if "$ref" in schema:
        schema = at(name)
    return " or ".join(_in_words(option) for option in schema.get("anyOf", [schema]))


def _in_words(schema: Schema) -> str:
    if schema.get("type") == "null":
        return "null"
    if "$ref" in schema:
        schema = _one_kind(schema)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema.get("pattern", "").endswith("{64}$"):
        return "64 hexadecimal digits"
    if schema.get("type") == "array" and "enum" in (items := schema.get("items", {})):
        return f"a list of any of {', '.join(items['enum'])}"
    if (each := schema.get("additionalProperties") or {}).get("type") == "number":
        return f"a section with {_in_words(each)} for each name"
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join(filter(None, [_KINDS.get(schema.get("type", ""), "a value"), " and ".join(bounds)]))
