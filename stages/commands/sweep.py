"""sweep: plot one parameter of all experiments against one metric, with a line for each combination of the others.

    python -m stages.commands.sweep                          # lr against validation_loss
    python -m stages.commands.sweep lora.r chrf

Draws reports/sweep.svg from what `dvc exp show` knows, and prints the same numbers as Markdown.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.commands import experiments
from stages.commands.experiments import Row
from stages.core import cli, files
from stages.core.cli import UserError, notice, run
from stages.core.text import harmless

PICTURE = Path("reports/sweep.svg")
# Wider apart than this factor, values are drawn on a logarithmic axis: rates are tried in powers of ten.
_LOGARITHMIC = 10

Lines = dict[str, list[tuple[float, float]]]


def main() -> None:
    asked = _arguments()
    parameter, metric = asked.parameter, asked.metric
    lines = read(experiments.rows(), experiments.parameters(), parameter, metric)
    draw(lines, parameter, metric)
    print(harmless(table(lines, parameter, metric)))
    notice(f"wrote {PICTURE}")


def _arguments() -> argparse.Namespace:
    parser = cli.parser(main)
    parser.add_argument("parameter", nargs="?", default="lr", help="parameter on the x axis, lr by default")
    parser.add_argument(
        "metric",
        nargs="?",
        default="validation_loss",
        help="metric on the y axis, validation_loss by default",
    )
    return parser.parse_args()


def read(rows: Sequence[Row], names: Sequence[str], parameter: str, metric: str) -> Lines:
    """The experiments' points in order of the parameter, by what else differs between them (`lora.r=8`, or empty).

    `rows` are those of `dvc exp show`, `names` all parameters.

    Raises:
        UserError: fewer than two experiments have both, or the parameter is not a number.
    """
    if parameter not in names:
        raise UserError(f"'{parameter}' is not a parameter; choose one of params.yaml, such as lr or lora.r")
    found = [row for row in rows if _number(row.get(parameter)) is not None and _number(row.get(metric)) is not None]
    if len({row[parameter] for row in found}) < 2:
        raise UserError(
            f"fewer than two finished experiments differ in {parameter} and have the metric {metric}; run some first,"
            f" such as dvc exp run --queue -S '{parameter}=1e-4,1e-3' and dvc queue start"
        )
    others = [name for name in names if name != parameter and len({str(row.get(name)) for row in found}) > 1]
    lines: dict[str, dict[float, float]] = defaultdict(dict)
    for row in found:
        which = ", ".join(f"{name}={_short(row.get(name))}" for name in others)
        lines[which][float(row[parameter])] = float(row[metric])
    return {which: sorted(points.items()) for which, points in sorted(lines.items())}


def table(lines: Lines, parameter: str, metric: str) -> str:
    """The points as a Markdown table, a row for each value of the parameter."""
    values = sorted({value for points in lines.values() for value, _ in points})
    head = [parameter, *(f"{metric} {which}".strip() for which in lines)]
    rows = [[_short(value), *(_short(dict(points).get(value)) for points in lines.values())] for value in values]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def draw(lines: Lines, parameter: str, metric: str) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for which, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", label=which or None)
    values = [value for points in lines.values() for value, _ in points]
    if min(values) > 0 and max(values) >= _LOGARITHMIC * min(values):
        axes.set_xscale("log")
    axes.set(xlabel=parameter, ylabel=metric)
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend()
    with files.replacing(PICTURE) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _short(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    run(main, parses=True)
