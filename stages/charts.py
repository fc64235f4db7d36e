"""Charts as inline SVG for the report's page, in the page's colours, each with a description for who cannot see it."""

import html
import io
import re
from typing import Any

Point = dict[str, Any]

# Colours that the SVG is drawn with, and the page's variables that take their place.
_INK, _PLAIN, _ACCENT = "#010203", "#040506", "#070809"
_VARIABLES = {_INK: "var(--soft)", _PLAIN: "var(--plain)", _ACCENT: "var(--accent)"}


def losses(history: list[Point], validation: list[Point]) -> str:
    """Training and validation loss over the steps or epochs; empty when nothing was logged."""
    across = "epoch" if all("epoch" in point for point in history + validation) else "step"
    lines = [
        ("training", _PLAIN, "-", _points(history, across, "train_loss")),
        ("validation", _ACCENT, "o-", _points(validation, across, "validation_loss")),
    ]
    lines = [line for line in lines if line[-1]]
    if not lines:
        return ""
    summary = "; ".join(f"{name} from {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, _, _, points in lines)
    return _curves(lines, across, "loss", f"Loss by {across}: {summary}")


def learning_rate(history: list[Point]) -> str:
    """The learning rate that each step used; empty where the backend does not tell."""
    points = _points(history, "step", "lr")
    if not points:
        return ""
    peak = max(points, key=lambda point: point[1])
    first, last = points[0][1], points[-1][1]
    label = f"Learning rate by step: from {first:.2g}, highest {peak[1]:.2g} at step {peak[0]:g}, to {last:.2g}"
    return _curves([("learning rate", _ACCENT, "-", points)], "step", "learning rate", label)


def movement(modules: list[str], layers: list[int], changes: list[list[float | None]]) -> str:
    """A grid of how far weights moved: a row for each module, a column for each layer, darker is further."""
    import matplotlib
    import numpy as np

    values = np.array([[np.nan if one is None else one for one in row] for row in changes], float)
    most = float(np.nanmax(values)) or 1.0
    figure, axes = _figure(height=0.9 + 0.28 * len(modules))
    # One colour, its opacity the value: the page's accent works on its light and on its dark paper.
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            cell = matplotlib.patches.Rectangle((column, row), 1, 1, color=_ACCENT, alpha=value / most, linewidth=0)
            axes.add_patch(cell)
    axes.set(xlim=(0, len(layers)), ylim=(len(modules), 0))
    step = max(1, len(layers) // 6)
    axes.set_xticks([at + 0.5 for at in range(0, len(layers), step)], [str(layer) for layer in layers[::step]])
    axes.set_yticks([at + 0.5 for at in range(len(modules))], modules)
    axes.set_xlabel("layer", color=_INK)
    return _inline(figure, f"How far each layer's weights moved; the darkest cell is {most:.2%} of the base's norm")


def _points(history: list[Point], across: str, column: str) -> list[tuple[float, float]]:
    return [(point[across], point[column]) for point in history if {across, column} <= set(point)]


def _curves(lines: list[tuple[str, str, str, list[tuple[float, float]]]], across: str, up: str, label: str) -> str:
    figure, axes = _figure(height=3)
    for name, colour, style, points in lines:
        axes.plot(*zip(*points, strict=True), style, color=colour, label=name, linewidth=1.8, markersize=5)
    axes.set_xlabel(across, color=_INK)
    axes.set_ylabel(up, color=_INK)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    return _inline(figure, label)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    return figure, axes


def _inline(figure: Any, label: str) -> str:
    """matplotlib's SVG file as an element of the page: its own head, size, fonts and colours removed."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none", "font.size": 11}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {box[0] if box else ""}>'
    return re.sub(r"^<svg[^>]*>", lambda _: head, svg).strip()
