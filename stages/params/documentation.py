"""Documentation of the parameters from the typed models: a page, a JSON schema for editors, params.yaml's comments."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from stages.params import schema
from stages.params.kinds import BACKENDS
from stages.params.schema import ANY, Knob

PAGE, SCHEMA = "docs/params.md", "docs/params.schema.json"
_WIDTH = 120
_KEY = re.compile(r"( *)(\w+):(?: |$)")
_NAME = "NAME"
_TOP = f"""<!-- Written by `make docs` from stages/params; edit there. -->
# Parameters

All keys of `params.yaml`. Change one there, or for one experiment with `dvc exp run -S lr=2e-4`. Unknown keys and
impossible values are refused before any work starts. [knobs.md](knobs.md) shows what the parameters of training did on
the sample. Editors with the YAML language server complete keys by [params.schema.json](params.schema.json).

The last columns name the stages that read a parameter, and the backends with which it has an effect; the others ignore
it. The report shows all parameters. `{_NAME}` is a name of your choice.
"""
_HEADER = """| parameter | shipped | allowed | meaning and cost | stages | backends |
| --- | --- | --- | --- | --- | --- |"""


def page(values: dict[str, Any]) -> str:
    """The page of all parameters in Markdown; `values` are those of params.yaml."""
    lines = [_TOP, "## General", "", _HEADER]
    for knob in schema.knobs():
        if knob.is_section and "." not in knob.name:
            lines += ["", f"## {knob.name}", "", knob.description, "", _HEADER]
        elif not knob.is_section:
            lines.append(_row(knob, values))
    return "\n".join(lines) + "\n"


def _row(knob: Knob, values: dict[str, Any]) -> str:
    backends = "all" if set(knob.read_by.backends) == set(BACKENDS) else ", ".join(knob.read_by.backends)
    stages = ", ".join(knob.read_by.stages) or "none"
    cells = [
        f"`{knob.name.replace(ANY, _NAME)}`",
        _shipped(knob, values),
        knob.allowed,
        knob.description,
        stages,
        backends if knob.read_by.stages else "",
    ]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _shipped(knob: Knob, values: dict[str, Any]) -> str:
    if ANY in knob.name:
        return "required" if knob.required else "`null`"
    value: Any = values
    for part in knob.name.split("."):
        value = value[part]
    return f"`{_as_yaml(value)}`"


def _as_yaml(value: Any) -> str:
    """A value as params.yaml has it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def json_schema() -> str:
    """The schema by which editors complete and check params.yaml."""
    return json.dumps(schema.whole(), indent=2) + "\n"


def commented(text: str) -> str:
    """The text of params.yaml with each parameter's meaning as the comment above it; nothing else changes."""
    return "\n".join(_with_comments(text.split("\n")))


def _with_comments(lines: list[str]) -> Iterator[str]:
    meanings = {knob.name: knob.description for knob in schema.knobs()}
    above: list[str] = []
    sections: list[str] = []
    for line in lines:
        if line.lstrip().startswith("#"):
            above.append(line)
            continue
        if match := _KEY.match(line):
            indent, key = match.groups()
            sections = [*sections[: len(indent) // 2], key]
            if meaning := meanings.get(".".join(sections)):
                above = textwrap.wrap(
                    meaning,
                    _WIDTH,
                    initial_indent=f"{indent}# ",
                    subsequent_indent=f"{indent}# ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        yield from above
        yield line
        above = []
    yield from above
