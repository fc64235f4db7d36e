"""compare: all experiments in a table of at most 100 columns: name, what changed, loss, chrF, facts right, verdict.

    python -m stages.commands.compare

`dvc exp show` has every parameter and metric. What changed is said against the commit that an experiment started from.
"""

from collections.abc import Sequence
from typing import Any

from stages.commands import experiments
from stages.commands.experiments import Row
from stages.core.cli import UserError, run
from stages.core.flatten import plain, without_credentials
from stages.core.templates import clip
from stages.core.text import harmless, printable
from stages.metrics import registry
from stages.metrics.registry import REGISTRY

_WIDTH = 100
# The metrics' columns, and the widest text of a name and of a verdict.
_METRICS = ("loss", "chrf", "facts_right")
_NAME, _VERDICT = 24, 10
_GAP = "  "


def main() -> None:
    found = rows(experiments.rows(), experiments.parameters())
    if len(found) < 2:
        raise UserError("there are no experiments to compare; run some, such as dvc exp run -S lr=2e-4 -n slower")
    print(harmless(table(found)))


def rows(shown: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """The cells of each experiment, as `dvc exp show` lists them; `names` are those of all parameters."""
    found = []
    start: Row = {}
    for row in shown:
        if not row.get("Experiment"):
            # Those that follow started here.
            start = row
        name = row.get("Experiment") or row.get("rev") or ""
        changed = _changed(start, row, names) if row.get("Experiment") else ""
        state = str(row.get("State") or "")
        verdict = str(row.get("verdict") or (state if state not in ("", "Success") else ""))
        found.append([str(name), changed, *(_number(metric, row.get(metric)) for metric in _METRICS), verdict])
    return found


def _changed(start: Row, row: Row, names: Sequence[str]) -> str:
    """The parameters that differ from those of the commit, with the experiment's values."""
    differing = {name: _value(row.get(name)) for name in names if _value(row.get(name)) != _value(start.get(name))}
    return ", ".join(f"{name}={value}" for name, value in without_credentials(differing).items())


def _value(value: Any) -> str:
    return "none" if value is None else plain(value)


def _number(name: str, value: Any) -> str:
    return registry.fixed(float(value), REGISTRY[name].places) if isinstance(value, int | float) else ""


def table(found: Sequence[Sequence[str]]) -> str:
    """The rows under a header, in aligned columns; names and changes are cut to fit."""
    head = ["experiment", "changed", *(REGISTRY[name].label for name in _METRICS), "verdict"]
    cells = [[printable(cell) for cell in row] for row in [head, *found]]
    limits = [_NAME, _WIDTH, *(_WIDTH for _ in _METRICS), _VERDICT]
    widths = [min(limit, max(map(len, column))) for limit, column in zip(limits, zip(*cells, strict=True), strict=True)]
    # What is left is for what changed.
    widths[1] = min(widths[1], _WIDTH - sum(widths) + widths[1] - len(_GAP) * (len(widths) - 1))
    return "\n".join(_line(row, widths) for row in cells)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cut = [clip(cell, width - 1) if len(cell) > width else cell for cell, width in zip(row, widths, strict=True)]
    # Numbers are aligned by their ends.
    shown = [
        cell.rjust(width) if 2 <= place < 2 + len(_METRICS) else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cut, widths, strict=True))
    ]
    return _GAP.join(shown).rstrip()


if __name__ == "__main__":
    run(main)
