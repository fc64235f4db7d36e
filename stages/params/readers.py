"""Which stages and backends read which parameters, from what the typed models declare."""

from collections.abc import Collection, Iterable
from typing import Any

from stages.params.kinds import BACKENDS, Backend, Effect
from stages.params.models import Params
from stages.params.schema import ANY, Knob, knobs


def names() -> list[str]:
    """The full names of all parameters, such as `lora.r`, in the order of the file; `*` is the name of any source."""
    return [knob.name for knob in _parameters()]


def read_by(
    stage: str, backend: Backend | None = None, decides: Collection[Effect] = ("result", "cost", "nothing")
) -> list[str]:
    """The names of the parameters that a stage reads, with one backend or with any of them.

    `decides` leaves out those that decide something else.
    """
    if stage == "report":
        return [knob.name for knob in _parameters() if knob.read_by.decides in decides]
    return [knob.name for knob in _parameters() if knob.read_in(stage, backend) and knob.read_by.decides in decides]


def ignored_by(stage: str, backend: Backend) -> list[str]:
    """The names of the parameters that a stage reads with another backend only; other backends' own are left out."""
    others = tuple(f"{other}." for other in BACKENDS if other != backend)
    read = set(read_by(stage, backend))
    return [name for name in read_by(stage) if name not in read and not name.startswith(others)]


def grouped(some: Iterable[str]) -> list[str]:
    """The names, with a section's name in place of all of its parameters."""
    wanted, found = set(some), dict[str, None]()
    for name in filter(wanted.__contains__, names()):
        section = name.partition(".")[0]
        whole = all(other in wanted for other in names() if other.partition(".")[0] == section)
        found[section if whole else name] = None
    return list(found)


def select(params: Params, some: Iterable[str]) -> dict[str, Any]:
    """The values of the parameters of these names, nested as in the file."""
    return _pruned(params.model_dump(by_alias=True), [name.split(".") for name in some])


def _pruned(values: dict[str, Any], paths: list[list[str]]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        rest = [path[1:] for path in paths if path[0] in (key, ANY)]
        if rest:
            kept[key] = value if [] in rest or not isinstance(value, dict) else _pruned(value, rest)
    return kept


def _parameters() -> list[Knob]:
    return [knob for knob in knobs() if not knob.is_section]
