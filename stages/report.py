"""report: what fine-tuning changed, as one self-contained page and as Markdown for a pull request.

Everything shown is read from reports/, params.yaml and the checksums in dvc.lock, and the same inputs give the same
bytes. Facts of the run that vary between equal runs (seconds, memory) are in the page alone.

No file can name the commit that holds it. The page names the Markdown by its Git object instead, and the command that
finds the commits which hold that object.
"""

import csv
import hashlib
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from stages import params
from stages.core import files, revisions, templates
from stages.core.artifacts import intact, numbers
from stages.core.cli import UserError, notice, run
from stages.core.flatten import flat, without_credentials
from stages.core.paths import (
    BASE,
    EVAL_RUN,
    GROUPS,
    HISTORY,
    HTML,
    MARKDOWN,
    METRICS,
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
from stages.metrics.registry import REGISTRY, Measure, measure
from stages.reporting import charts, examples, predictions

# What is shown of each slice, of how many, and of how long a label; reports/slices.json has all.
_SLICES = 50
_LABEL = 100
# A mixture of experts has hundreds of modules in a layer.
_MODULES = 40
_MEND = "run `dvc repro` to write it again"
_PAGE_BYTES = 1_000_000
# Worst and best answers, of each so many.
_FEATURED = 5
# Characters of each of their texts that are shown however full the page is.
_FEATURED_TEXT = 2000
# Longest question in the line that opens a conversation, and conversations that open together.
_TITLE = 160
_GROUP = 50
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
    metrics, splits, validation, slices = (_json(path) for path in (METRICS, SPLIT_REPORT, VALIDATION, SLICES))
    lines = predictions.read(_text(PREDICTIONS), str(PREDICTIONS), _MEND)
    conversations = [examples.answered(number, line) for number, line in enumerate(lines, 1)]
    lengths = examples.lengths(conversations)
    system, talks = examples.shared_system(conversations)
    confidence = f"{100 * knobs.evaluate.confidence:g}%"
    history, validation_history = _history(HISTORY, "train_loss"), _history(VALIDATION_HISTORY, "validation_loss")
    with intact(str(METRICS), _MEND):
        results = {
            "verdict": verdict(metrics, confidence),
            "rows": [_row(name, metrics["test"]) for name in REGISTRY if name in metrics["test"]["gain"]],
            "train": flat(metrics["train"], number),
            "counts": flat(metrics["counts"], number),
        }
    with intact(str(WEIGHTS), _MEND):
        movement = _movement(_rows(_text(WEIGHTS)))
    with intact(str(SLICES), _MEND):
        largest = _largest(slices)
    return {
        **results,
        "confidence": confidence,
        "slices": largest,
        "slices_left": len(slices) - len(largest),
        "history": validation_history,
        "chart": charts.losses(history, validation_history),
        "rate_chart": charts.learning_rate(history),
        "groups": _rows(_text(GROUPS)),
        "movement": movement,
        "splits": splits,
        "split_names": list(SPLITS),
        "validation": validation,
        "params": _parameters(knobs),
        "run": flat({"training": _json(RUN), "evaluation": _json(EVAL_RUN)}, number),
        "lengths": {part: examples.quantiles(values) for part, values in lengths.items()},
        "length_chart": charts.lengths({part: lengths[part] for part in ("reference", "base", "tuned")}),
        "system": system,
        "count": len(talks),
        "longest": max(length for values in lengths.values() for length in values),
        "answers": examples.ranking(talks, _FEATURED),
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


def verdict(metrics: dict[str, Any], confidence: str) -> str:
    """One sentence on whether fine-tuning helped, judged on the test conversations by the loss, or else by chrF."""
    name = next(name for name in ("loss", "chrf") if name in metrics["test"]["gain"])
    row = _row(name, metrics["test"])
    count = metrics["counts"]["test"]
    where = f"on {count} held-out conversation{'s' if count != 1 else ''}"
    fell = metrics["test"]["gain"][name]["value"] < 0
    moved = f"the {row.label} {'fell' if fell else 'rose'} from {row.base.value} to {row.tuned.value}"
    interval = f"{confidence} interval {row.gain.interval}"
    if row.word == "better":
        return f"Fine-tuning helped: {where} {moved} (gain {row.gain.value}, {interval})."
    if row.word == "worse":
        return f"Fine-tuning hurt: {where} {moved} (gain {row.gain.value}, {interval})."
    moved = f"the {row.label} went from {row.base.value} to {row.tuned.value}"
    if row.word == "within noise":
        return (
            f"Fine-tuning made no difference beyond noise: {where} {moved} "
            f"(gain {row.gain.value}, {interval} includes zero)."
        )
    return f"Too little test data to judge: {where} {moved} (gain {row.gain.value}), which gives no interval."


@dataclass(frozen=True)
class Row:
    """One metric: base, tuned and gain as text, the word for it, and the whisker's ends and dot from -1 to 1.

    In the plot right is better, whatever the metric's direction, and each row has its own scale.
    """

    label: str
    arrow: str
    base: Measure
    tuned: Measure
    gain: Measure
    word: str
    dot: float | None
    ends: tuple[float, float] | None


def _row(name: str, test: dict[str, Any]) -> Row:
    base, tuned, gain = (test[part][name] for part in ("base", "tuned", "gain"))
    places = registry.places(base["value"], gain)
    low, high, value = gain["low"], gain["high"], gain["value"]
    metric = REGISTRY[name]
    scale = max((abs(one) for one in (low, high, value) if one is not None), default=0) or 1
    return Row(
        label=metric.label,
        arrow=metric.arrow,
        base=measure(base, places),
        tuned=measure(tuned, places),
        gain=measure(gain, places),
        word=metric.word(low, high),
        dot=None if value is None else metric.sign * value / scale,
        ends=None if low is None or high is None else (metric.sign * low / scale, metric.sign * high / scale),
    )


def _largest(slices: dict[str, Any]) -> list[dict[str, Any]]:
    """The labels with most conversations, in the file's order."""
    most = set(sorted(slices, key=lambda label: -slices[label]["conversations"])[:_SLICES])
    return [_slice(label, found) for label, found in slices.items() if label in most]


def _slice(label: str, found: dict[str, Any]) -> dict[str, Any]:
    rows = [_row(name, found) for name, metric in REGISTRY.items() if metric.sliced and name in found["gain"]]
    return {"label": templates.clip(label, _LABEL), "conversations": found["conversations"], "rows": rows}


def _parameters(knobs: params.Params) -> dict[str, str]:
    return without_credentials(flat(knobs.model_dump(by_alias=True), str))


def _history(path: Path, loss: str) -> list[dict[str, float]]:
    """The rows of a table of history, without the cells that are empty because a service does not report them."""
    with intact(str(path), _MEND):
        rows = _rows(_text(path))
        if rows and loss not in rows[0]:
            raise KeyError(loss)
        found = [{name: float(cell) for name, cell in row.items() if cell != ""} for row in rows]
        return [row for row in found if loss in row]


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


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
        "title_limit": _TITLE,
        "featured_limit": _FEATURED_TEXT,
        "group_size": _GROUP,
    }
    environment.filters |= {
        "cut": examples.cut,
        "cut_prompt": examples.cut_prompt,
        "from_reports": lambda path: path.relative_to(HTML.parent).as_posix(),
    }
    return environment


def _text(path: Path) -> str:
    try:
        with intact(str(path), _MEND):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro`, which writes it and then this report") from None


def _json(path: Path) -> dict[str, Any]:
    with intact(str(path), _MEND):
        value = numbers(_text(path))
        if not isinstance(value, dict):
            raise TypeError("it is not a JSON object")
        return value


if __name__ == "__main__":
    run(main)
