"""report: what fine-tuning changed, as one self-contained page and as Markdown for a pull request.

Everything shown is read from reports/, params.yaml and the checksums in dvc.lock, and the same inputs give the same
bytes. Facts of the run that vary between equal runs (seconds, memory) are in the page alone.

No file can name the commit that holds it. The page names the Markdown by its Git object instead, and the command that
finds the commits which hold that object.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment

from stages import params
from stages.core import artifacts, files, revisions, templates
from stages.core.artifacts import intact
from stages.core.cli import UserError, notice, run
from stages.core.flatten import address, flat, plain, without_credentials
from stages.core.paths import (
    BASE,
    EVAL_RUN,
    GROUPS,
    HISTORY,
    HTML,
    MARKDOWN,
    MEASURES,
    PREDICTIONS,
    RAW,
    RUN,
    SLICES,
    SPLIT_REPORT,
    SPLITS,
    TUNED,
    VALIDATION,
    VALIDATION_HISTORY,
    VALIDATION_PAGE,
    WEIGHTS,
)
from stages.core.templates import number
from stages.metrics import registry
from stages.metrics.intervals import FEWEST
from stages.metrics.registry import REGISTRY, Measure, measure
from stages.reporting import charts, examples, inputs, predictions

# Titles of the groups of metrics, and the metrics that the chart compares.
_GROUPS_OF_ROWS = {"facts": "Facts", "answers": "Answers", "kept": "What was kept", "loss": "Loss of the references"}
_CHARTED = ("facts_right", "chrf")
# What is shown of each slice, of how many, and of how long a label; reports/slices.json has all.
_SLICES = 50
_LABEL = 100
# A mixture of experts has hundreds of modules in a layer.
_MODULES = 40
_ANEW = "run `dvc repro` to write it again"
_PAGE_BYTES = 1_000_000
# Characters of each text of the three answers on top that are shown however full the page is.
_FEATURED_TEXT = 2000
# Longest question in the line that opens a conversation, and conversations that open together.
_TITLE = 160
_GROUP = 50
_GROUP_COLUMNS = ("lr", "multiplier", "weight_decay", "layers", "tensors", "parameters", "example")

Kind = TypeVar("Kind")
# The page's other conversations (how many) and their longest text, tried in this order until the page is small enough.
_SIZES = [(1000, limit) for limit in (100_000, 4000, 2000, 1000, 500, 250, 150, 100, 60)] + [(100, 60), (0, 60)]
# A comment on GitHub holds 65,536 characters. Longest text of a cell, tried in this order until the Markdown fits.
_MARKDOWN_SIZE = 65_000
_MARKDOWN_CLIPS = (600, 300, 150, 75, 40)
# Validation losses that are shown; their chart and their file have all.
_MEASUREMENTS = 50


def main() -> None:
    knobs = params.load()
    facts = read_facts(knobs)
    markdown = summary(facts)
    files.write_text(MARKDOWN, markdown)
    files.write_text(HTML, page({**facts, "object": git_object(markdown)}))
    notice(facts["verdict"])
    notice(f"wrote {HTML} and {MARKDOWN}")


def read_facts(knobs: params.Params) -> dict[str, Any]:
    """All that the templates show, from the files of the stages before.

    Raises:
        UserError: a file is missing or is not what its stage writes.
    """
    measures, splits = _json(MEASURES, inputs.Measures), _json(SPLIT_REPORT, inputs.Splits)
    validation, slices = _json(VALIDATION, inputs.Validation), _json(SLICES, dict[str, inputs.Slice])
    lines = predictions.read(_text(PREDICTIONS), str(PREDICTIONS), _ANEW)
    conversations = [examples.answered(number, line) for number, line in enumerate(lines, 1)]
    lengths = examples.lengths(conversations)
    run_facts = _run_facts()
    system, talks = examples.shared_system(conversations)
    confidence = f"{100 * knobs.evaluate.confidence:g}%"
    history, validation_history = _history(HISTORY, "train_loss"), _history(VALIDATION_HISTORY, "validation_loss")
    with intact(str(MEASURES), _ANEW):
        results = {
            "verdict": predictions.clean(str(measures["verdict"]["sentence"])),
            "groups_of_rows": _grouped(measures),
            "baselines": list(measures["baselines"]),
            "comparison_chart": charts.compared(_panels(measures)),
            "train": flat(measures["train"], number),
            "counts": flat(measures["counts"], number),
        }
    with intact(str(WEIGHTS), _ANEW):
        movement = _movement(inputs.table(_text(WEIGHTS), ("layer", "module", "change")))
    with intact(str(GROUPS), _ANEW):
        groups = inputs.table(_text(GROUPS), _GROUP_COLUMNS)
    with intact(str(SLICES), _ANEW):
        largest = _largest(slices)
    return {
        **results,
        "confidence": confidence,
        "slices": largest,
        "slices_left": len(slices) - len(largest),
        "history": validation_history,
        "chart": charts.losses(history, validation_history),
        "rate_chart": charts.learning_rate(history),
        "groups": groups,
        "movement": movement,
        "splits": splits,
        "split_names": list(SPLITS),
        "validation": validation,
        **_parameters(knobs),
        "model": _base_model(knobs),
        "source": knobs.data.source,
        "date": str(run_facts.get("evaluation.date", "")),
        "run": run_facts,
        "lengths": {part: examples.quantiles(values) for part, values in lengths.items()},
        "length_chart": charts.lengths({part: lengths[part] for part in ("reference", "base", "tuned")}),
        "system": system,
        "count": len(talks),
        "longest": max(length for values in lengths.values() for length in values),
        "answers": examples.ranking(talks),
        "checksums": revisions.WORKSPACE.checksums(),
        "paths": {
            "page": HTML,
            "markdown": MARKDOWN,
            "predictions": PREDICTIONS,
            "gate": VALIDATION_PAGE,
            "weights": WEIGHTS,
            "slices": SLICES,
            "validation_history": VALIDATION_HISTORY,
            "raw": RAW,
            "base": BASE,
            "tuned": TUNED,
        },
    }


def summary(facts: dict[str, Any]) -> str:
    """The Markdown; texts are cut as far as it takes to fit into one comment on GitHub."""
    sizes = ({"limit": limit, "most": _MEASUREMENTS} for limit in _MARKDOWN_CLIPS)
    return templates.fitted(_environment().get_template("report.md.jinja"), facts, sizes, _MARKDOWN_SIZE)


def page(facts: dict[str, Any], size: int = _PAGE_BYTES) -> str:
    """The HTML page; texts of conversations are cut, and then left out, as far as it takes to stay under `size` bytes.

    The page says what is cut or left out, and where to find all of it.
    """
    template = _environment().get_template("report.html.jinja")
    text = ""
    for shown, limit in _SIZES:
        text = template.render(facts, shown=shown, limit=limit)
        if len(text.encode()) < size:
            break
    return text


def git_object(text: str) -> str:
    """The name that Git gives to a file with this text: SHA-1, in 40 hexadecimal digits."""
    content = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Row:
    """One metric: base, baselines, tuned and gain as text, and the word for the gain."""

    label: str
    arrow: str
    base: Measure
    baselines: list[Measure | None]
    tuned: Measure
    gain: Measure
    word: str


def _grouped(measures: inputs.Measures) -> list[tuple[str, list[Row]]]:
    """The rows of the metrics that were measured, by what people read together."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for name, metric in REGISTRY.items():
        if name in measures["test"]["gain"]:
            rows[_GROUPS_OF_ROWS[metric.group]].append(_row(name, measures["test"], measures["baselines"]))
    return list(rows.items())


def _row(name: str, test: inputs.Compared, baselines: dict[str, inputs.Baseline]) -> Row:
    base, tuned, gain = (test[part][name] for part in ("base", "tuned", "gain"))
    places = registry.places(base["value"], gain)
    found = (one["measures"].get(name) for one in baselines.values())
    return Row(
        label=REGISTRY[name].label,
        arrow=REGISTRY[name].arrow,
        base=measure(base, places),
        baselines=[None if one is None else measure(one, places) for one in found],
        tuned=measure(tuned, places),
        gain=measure(gain, places),
        word=REGISTRY[name].word(gain["low"], gain["high"]),
    )


def _panels(measures: inputs.Measures) -> dict[str, dict[str, Any]]:
    """What the chart compares: the measures that decide, of base, baselines and tuned model."""
    sides = {"base": measures["test"]["base"]}
    sides |= {name: one["measures"] for name, one in measures["baselines"].items()}
    sides["tuned"] = measures["test"]["tuned"]
    panels = {REGISTRY[name].label: {side: found[name] for side, found in sides.items()} for name in _CHARTED}
    return {title: panel for title, panel in panels.items() if panel["tuned"]["value"] is not None}


def _largest(slices: dict[str, inputs.Slice]) -> list[dict[str, Any]]:
    """The labels with most conversations, in the file's order."""
    most = set(sorted(slices, key=lambda label: -slices[label]["conversations"])[:_SLICES])
    return [_slice(label, found) for label, found in slices.items() if label in most]


def _slice(label: str, found: inputs.Slice) -> dict[str, Any]:
    rows = [_row(name, found, {}) for name, metric in REGISTRY.items() if metric.sliced and name in found["gain"]]
    return {"label": templates.clip(label, _LABEL), "conversations": found["conversations"], "rows": rows}


def _parameters(knobs: params.Params) -> dict[str, dict[str, str]]:
    """The parameters that differ from those shipped, and the rest; without other sources and other backends."""
    values = knobs.model_dump(by_alias=True)
    values["data"]["sources"] = {knobs.data.source: values["data"]["sources"][knobs.data.source]}
    for backend in params.BACKENDS:
        if backend != knobs.backend:
            del values[backend]
    found = without_credentials(flat(values, plain))
    shipped = flat(params.DEFAULTS, plain)
    changed = {name: value for name, value in found.items() if value != shipped.get(name)}
    return {"changed": changed, "unchanged": {name: value for name, value in found.items() if name not in changed}}


def _base_model(knobs: params.Params) -> str:
    return address(knobs.openai.model if knobs.backend == "openai" else knobs.unsloth.model)


def _history(path: Path, loss: str) -> list[dict[str, float]]:
    """The rows of a table of history, without the cells that are empty because a service does not report them."""
    with intact(str(path), _ANEW):
        rows = inputs.table(_text(path), ("step", "epoch", loss))
        found = [{name: float(cell) for name, cell in row.items() if cell != ""} for row in rows]
        return [row for row in found if loss in row]


def _run_facts() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in (("training", RUN), ("evaluation", EVAL_RUN)):
        facts = _json(path, dict[str, Any])
        with intact(str(path), _ANEW):
            found |= flat({name: facts}, number)
    return found


def _movement(rows: list[dict[str, str]]) -> dict[str, Any]:
    """How far the weights moved: for each module its layers' mean and largest change; and a chart over the layers.

    Only the modules that moved most are shown, in the file's order; `left` is how many are not.
    """
    changed: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        changed[row["module"]][row["layer"]] = float(row["change"])
    most = sorted(changed, key=lambda module: -max(changed[module].values()))[:_MODULES]
    found = {module: changed[module] for module in changed if module in most}
    table = [
        {
            "module": module,
            "tensors": len(by_layer),
            "mean": f"{sum(by_layer.values()) / len(by_layer):.2%}",
            "most": f"{max(by_layer.values()):.2%}",
            "where": max(by_layer, key=lambda layer: by_layer[layer]),
        }
        for module, by_layer in found.items()
    ]
    layers = sorted({int(row["layer"]) for row in rows if row["layer"]})
    layered = {module: by_layer for module, by_layer in found.items() if "" not in by_layer}
    changes = [[by_layer.get(str(layer)) for layer in layers] for by_layer in layered.values()]
    return {
        "table": table,
        "chart": charts.movement(list(layered), layers, changes) if layered else "",
        "left": len(changed) - len(found),
    }


def _environment() -> Environment:
    environment = templates.environment(Path(examples.__file__).parent)
    environment.globals |= {
        "fewest": FEWEST,
        "title_limit": _TITLE,
        "featured_limit": _FEATURED_TEXT,
        "group_size": _GROUP,
    }
    environment.filters |= {
        "cut": examples.cut,
        "parts": examples.parts,
        "cut_prompt": examples.cut_prompt,
        "from_reports": lambda path: path.relative_to(HTML.parent).as_posix(),
    }
    return environment


def _text(path: Path) -> str:
    try:
        with intact(str(path), _ANEW):
            return artifacts.content(path).decode()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro`, which writes it and then this report") from None


def _json(path: Path, kind: type[Kind]) -> Kind:
    with intact(str(path), _ANEW):
        return inputs.parse(_text(path), kind)


if __name__ == "__main__":
    run(main)
