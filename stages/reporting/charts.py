"""Charts as inline SVG for the report's page, in the page's colours, each with a text alternative."""

import html
import io
import re
from typing import Any

from stages.metrics.intervals import Interval

Point = dict[str, Any]

_BINS = 30
_SHADES = 25

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
    """The learning rate that each step used; empty if the backend does not report it."""
    points = _points(history, "step", "lr")
    if not points:
        return ""
    peak = max(points, key=lambda point: point[1])
    first, last = points[0][1], points[-1][1]
    label = f"Learning rate by step: from {first:.2g}, highest {peak[1]:.2g} at step {peak[0]:g}, to {last:.2g}"
    return _curves([("learning rate", _ACCENT, "-", points)], "step", "learning rate", label)


def compared(panels: dict[str, dict[str, Interval]]) -> str:
    """A panel for each measure, with a dot and its interval for every model and baseline, one below the other."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure, columns = _figure(height=0.9 + 0.3 * len(names), columns=len(panels))
    for axes, (title, panel) in zip(columns, panels.items(), strict=True):
        for place, name in enumerate(names):
            found = panel.get(name)
            if found is None or found["value"] is None:
                continue
            colour = _ACCENT if name == "tuned" else _PLAIN
            if found["low"] is not None and found["high"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2.4, alpha=0.6)
            axes.plot([found["value"]], [place], "o", color=colour, markersize=7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names if axes is columns[0] else [""] * len(names))
        axes.set_xlabel(title, color=_INK)
        axes.set_xlim(left=0)
    summary = "; ".join(f"{title}: {_in_words(panel)}" for title, panel in panels.items())
    return _inline(figure, f"The tuned model against its base and the baselines. {summary}")


def _in_words(panel: dict[str, Interval]) -> str:
    values = {name: found["value"] for name, found in panel.items()}
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items() if value is not None)


def lengths(texts: dict[str, list[int]]) -> str:
    """A histogram for each kind of text, one above the other over the same lengths in characters; a line is the median.

    The heights of each are its own: shapes compare, and there are equally many texts of each kind.
    """
    import numpy as np

    figure, rows = _figure(height=0.7 + 0.75 * len(texts), rows=len(texts))
    edges = np.linspace(0, max(1, *(max(values) for values in texts.values())), _BINS + 1)
    medians = {name: float(np.median(values)) for name, values in texts.items()}
    for axes, (name, values) in zip(rows, texts.items(), strict=True):
        axes.stairs(np.histogram(values, edges)[0], edges, fill=True, color=_PLAIN)
        axes.axvline(medians[name], color=_ACCENT, linewidth=1.8)
        axes.set_yticks([])
        axes.set_ylabel(name, color=_INK, rotation=0, ha="right", va="center")
        axes.tick_params(labelbottom=axes is rows[-1])
    rows[-1].set_xlabel("characters", color=_INK)
    summary = "; ".join(f"{name} {median:,.0f}" for name, median in medians.items())
    return _inline(figure, f"Lengths in characters, medians: {summary}")


def movement(modules: list[str], layers: list[int], changes: list[list[float | None]]) -> str:
    """A grid of how far weights moved: a row for each module, a column for each layer, stronger is further."""
    import numpy as np
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    values = np.array([[np.nan if one is None else one for one in row] for row in changes], float)
    most = float(np.nanmax(values)) or 1.0
    figure, (axes,) = _figure(height=0.9 + 0.28 * len(modules))
    # One colour, its opacity the value: the page's accent works on its light and on its dark paper. Cells of a shade
    # are one path, which keeps the page small.
    shades = np.ceil(_SHADES * (values / most))
    for shade in np.unique(shades[np.isfinite(shades)]):
        cells = Path.make_compound_path(*(_cell(row, column) for row, column in np.argwhere(shades == shade)))
        axes.add_patch(PathPatch(cells, color=_ACCENT, alpha=shade / _SHADES, linewidth=0, clip_on=False))
    axes.set(xlim=(0, len(layers)), ylim=(len(modules), 0))
    step = max(1, len(layers) // 6)
    axes.set_xticks([at + 0.5 for at in range(0, len(layers), step)], [str(layer) for layer in layers[::step]])
    axes.set_yticks([at + 0.5 for at in range(len(modules))], modules)
    axes.set_xlabel("layer", color=_INK)
    return _inline(figure, f"How far each layer's weights moved; the strongest cell is {most:.2%} of the base's norm")


def _cell(row: int, column: int) -> Any:
    from matplotlib.path import Path

    corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1), (column, row)]
    return Path(corners, closed=True)


def _points(history: list[Point], across: str, column: str) -> list[tuple[float, float]]:
    return [(point[across], point[column]) for point in history if {across, column} <= set(point)]


def _curves(lines: list[tuple[str, str, str, list[tuple[float, float]]]], across: str, up: str, label: str) -> str:
    figure, (axes,) = _figure(height=3)
    for name, colour, style, points in lines:
        axes.plot(*zip(*points, strict=True), style, color=colour, label=name, linewidth=1.8, markersize=5)
    axes.set_xlabel(across, color=_INK)
    axes.set_ylabel(up, color=_INK)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    return _inline(figure, label)


def _figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of this height in inches, and its axes: `rows` below each other over the same x, or `columns`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 if columns == 1 else 7, height), layout="constrained")
    plots = figure.subplots(rows, columns, sharex="col", squeeze=False).ravel()
    for axes in plots:
        axes.tick_params(colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
    return figure, plots


def _inline(figure: Any, label: str) -> str:
    """matplotlib's SVG file as an element of the page: its own head, size, fonts, colours and spare bytes removed."""
    import matplotlib

    buffer = io.StringIO()
    # The salt goes into the ids, which no two charts of a page may share.
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "none", "font.size": 11}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {box[0] if box else ""}>'
    svg = re.sub(r"<[^>]+>", lambda tag: _slim(tag[0]), svg)
    return re.sub(r"^<svg[^>]*>", lambda _: head, re.sub(r">\s+<", "><", svg)).strip()


def _slim(tag: str) -> str:
    """A tag with two decimals, on one line, and without the ids of groups, which nothing refers to."""
    tag = re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", tag)
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    return re.sub(r"\s+", " ", tag)
