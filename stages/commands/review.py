"""review: what a change did to the model, as Markdown for a pull request.

    python -m stages.commands.review                 # the workspace against where it left the main branch
    python -m stages.commands.review main            # against main
    python -m stages.commands.review HEAD slower     # an experiment against the last commit

Compares two Git revisions or DVC experiments by their committed reports: nothing is trained, pulled or sent. It ends
with an error when a metric got worse by more than `review.regressions` in params.yaml allows.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import params
from stages.commands import comparison, data_changes
from stages.commands.comparison import Change, Shared
from stages.core import cli, revisions, templates
from stages.core.artifacts import intact, numbers
from stages.core.cli import UserError, run
from stages.core.flatten import flat, plain, without_credentials
from stages.core.paths import GENERAL, MEASURES, PREDICTIONS, SPLIT_REPORT, SUITE, VALIDATION
from stages.core.revisions import Revision
from stages.core.text import harmless
from stages.metrics import registry, verdict
from stages.metrics.intervals import Bootstrap
from stages.metrics.registry import REGISTRY, TOO_FEW
from stages.metrics.verdict import Evidence
from stages.reporting import predictions

# A comment on GitHub holds 65,536 characters; some are left for what is posted with the review.
_LIMIT = 60_000
# Longest text of a cell and rows of a table, tried in this order until the review is short enough.
_SIZES = ((600, 200), (300, 200), (150, 100), (75, 50), (40, 25))
_ANSWERS = 10
_FORCE = "--allow-different-tests"


def main() -> None:
    asked = _arguments()
    knobs = params.load()
    old = revisions.resolve(asked.old) if asked.old else revisions.branching_point()
    before, after = _finished(old), _finished(revisions.resolve(asked.new))
    shared = Shared(comparison.pairs(before.lines, after.lines), comparison.pairs(before.general, after.general))
    warning = _different_tests(before, after, len(shared.test))
    if warning and not asked.allow_different_tests:
        raise UserError(f"{warning}\nadd {_FORCE} to compare anyway, on the conversations that both have")
    bootstrap = Bootstrap(knobs.seed, knobs.evaluate.resamples, knobs.evaluate.confidence)
    changes = comparison.changes(shared, before.tuned, after.tuned, bootstrap, _obstacles(before, after))
    allowed = knobs.review.regressions
    facts = {
        "warning": warning,
        "old": before.name,
        "new": after.name,
        "conversations": len(shared.test),
        "verdict": _verdict(changes, shared, before.name, knobs).sentence,
        "runs": [(run.name, run.verdict) for run in (before, after)],
        "confidence": f"{100 * knobs.evaluate.confidence:g}%",
        "verdicts": _verdicts(changes),
        "rows": [_row(change) for change in changes],
        "gate": _gate(changes, allowed),
        "params": _differing(before.params, after.params),
        "data": data_changes.between(before.revision, after.revision),
        "sizes": _differing(before.sizes, after.sizes),
        "numbers": _differing(before.numbers, after.numbers),
        "answers": [_answer(*pair) for pair in comparison.most_changed(shared.test, _ANSWERS)],
        "differing": sum(one["tuned"] != other["tuned"] for one, other in shared.test),
    }
    print(harmless(_markdown(facts)), end="", flush=True)
    _stop_at_regressions(changes, allowed)


def _arguments() -> argparse.Namespace:
    parser = cli.parser(main)
    parser.add_argument("old", nargs="?", help="revision or experiment; else where the work left the main branch")
    parser.add_argument("new", nargs="?", default=revisions.WORKSPACE.name, help="the same; else the workspace")
    parser.add_argument(_FORCE, action="store_true", help="compare on the conversations that both tests have")
    return parser.parse_args()


@dataclass(frozen=True)
class Finished:
    """What a finished run left: its predictions, the tuned model's metrics, and all else with a key for each value."""

    revision: Revision
    lines: list[comparison.Line]
    general: list[comparison.Line]
    verdict: str
    tuned: dict[str, float]
    params: dict[str, str]
    sizes: dict[str, str]
    numbers: dict[str, str]

    @property
    def name(self) -> str:
        return self.revision.name


def _finished(revision: Revision) -> Finished:
    """Read a revision's reports.

    Raises:
        UserError: one is missing there, or is not what its stage writes.
    """
    with intact(f"{MEASURES} of {revision.name}"):
        measures = numbers(_text(revision, MEASURES))
        found = measures["test"]["tuned"].items()
        tuned = {name: float(one["value"]) for name, one in found if one["value"] is not None}
        sentence = predictions.clean(str(measures["verdict"]["sentence"]))
        others = _numbers(measures)
    return Finished(
        revision,
        lines=predictions.read(_text(revision, PREDICTIONS), f"{PREDICTIONS} of {revision.name}"),
        general=predictions.read_general(_text(revision, GENERAL), f"{GENERAL} of {revision.name}"),
        verdict=sentence,
        tuned=tuned,
        params=_parameters(revision),
        sizes=_sizes(revision),
        numbers=others,
    )


def _text(revision: Revision, path: Path) -> str:
    with intact(f"{path} of {revision.name}"):
        text = revision.text(path)
    if text is None:
        raise UserError(f"{revision.name} has no {path}; expected a finished run: `dvc repro` there, then commit")
    return text


def _sizes(revision: Revision) -> dict[str, str]:
    """Rows and splits in numbers; the gate's findings, each with its rows."""
    with intact(f"{SPLIT_REPORT} of {revision.name}"):
        splits = flat({"splits": numbers(_text(revision, SPLIT_REPORT))}, templates.number)
    with intact(f"{VALIDATION} of {revision.name}"):
        gate = numbers(_text(revision, VALIDATION))
        findings = {one["rule"]: one["rows"] for one in gate["findings"]}
        return splits | flat({"gate": {**gate, "findings": findings}}, templates.number)


def _numbers(measures: dict[str, Any]) -> dict[str, str]:
    """What measures.json has besides the tuned model's measures."""
    base = _values(measures["test"]["base"])
    baselines = {name: _values(one["measures"]) for name, one in measures["baselines"].items()}
    others = {"base": base, "baselines": baselines, "train": measures["train"], "counts": measures["counts"]}
    return flat(others, templates.number)


def _values(measures: dict[str, Any]) -> dict[str, Any]:
    return {name: found["value"] for name, found in measures.items()}


def _parameters(revision: Revision) -> dict[str, str]:
    """All of params.yaml, and the gate's rules under the name that `dvc exp run -S` has for them."""
    with intact(f"{params.PARAMS} of {revision.name}", "fix it"):
        values = flat(params.parse_yaml(_text(revision, params.PARAMS)), plain)
    with intact(f"{SUITE} of {revision.name}", "fix it"):
        return values | flat(params.parse_yaml(revision.text(SUITE) or "{}"), plain, f"{SUITE}:")


def _obstacles(before: Finished, after: Finished) -> dict[str, str]:
    """Measures that the two runs took in different ways, with the way."""
    epsilon = "evaluate.epsilon"
    same = before.params.get(epsilon) == after.params.get(epsilon)
    return {} if same else {"perturbed_loss": f"measured with another {epsilon}"}


def _different_tests(before: Finished, after: Finished, shared: int) -> str:
    """The sentence that the tests differ; empty where they do not."""
    if len(before.lines) == len(after.lines) == shared:
        return ""
    counts = f"{before.name} has {len(before.lines)} conversations, {after.name} {len(after.lines)}"
    return f"the test sets differ: {counts}, {shared} are in both"


def _verdict(changes: list[Change], shared: Shared, old: str, knobs: params.Params) -> verdict.Verdict:
    """The verdict on the change, by the rules for a fine-tuning; the old run has the base's place."""
    compared = [change for change in changes if change.difference]
    return verdict.judge(
        Evidence(
            against=old,
            conversations=len(shared.test),
            with_facts=sum(bool(line["weights"]["tuned"].get("facts_right")) for _, line in shared.test),
            gain={change.name: change.difference for change in compared if change.difference},
            tuned={change.name: change.new for change in compared},
            allowed=knobs.verdict.retention,
        )
    )


def _verdicts(changes: list[Change]) -> dict[str, str]:
    """The measures for each word, in the order of the words' weight."""
    words = ("worse", "better", "within noise", TOO_FEW, "not comparable")
    found = {word: ", ".join(REGISTRY[one.name].label for one in changes if one.word == word) for word in words}
    return {word: names for word, names in found.items() if names}


def _row(change: Change) -> dict[str, str]:
    difference = change.difference or {"value": None, "low": None, "high": None}
    places = registry.places(change.old, difference)
    shown = registry.measure(difference, places)
    return {
        "label": f"{REGISTRY[change.name].label} ({REGISTRY[change.name].arrow})",
        "old": registry.fixed(change.old, places),
        "new": registry.fixed(change.new, places),
        "difference": shown.value + (f" ({shown.interval})" if shown.interval else ""),
        "word": change.word + (f": {change.obstacle}" if change.obstacle else ""),
    }


def _gate(changes: list[Change], allowed: dict[str, float]) -> list[dict[str, str]]:
    """Each metric that has a tolerance: passed, failed or not judged."""
    found = {change.name: change for change in changes}
    return [
        {"label": REGISTRY[name].label, "allowed": f"{tolerance:g}", "outcome": _outcome(found.get(name), tolerance)}
        for name, tolerance in allowed.items()
    ]


def _outcome(change: Change | None, tolerance: float) -> str:
    if change is None:
        return "not judged: neither run has it"
    if change.worsening is None:
        return f"not judged: {change.obstacle}"
    if change.exceeds(tolerance):
        return f"failed: worse by {change.worsening:.4g}"
    return "passed, within noise" if change.worsening > tolerance else "passed"


def _differing(old: dict[str, str], new: dict[str, str]) -> list[tuple[str, str, str]]:
    """Keys whose values differ, with both values; what one of them lacks is absent."""
    shown = [without_credentials(values) for values in (old, new)]
    return [
        (key, shown[0].get(key, "absent"), shown[1].get(key, "absent"))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _answer(old: comparison.Line, new: comparison.Line) -> dict[str, str]:
    scores = [line["scores"]["tuned"]["chrf"] for line in (old, new)]
    return {
        "question": predictions.question(new["prompt"]),
        "reference": predictions.clean(new["reference"]),
        "old": predictions.clean(old["tuned"]),
        "new": predictions.clean(new["tuned"]),
        "chrf": " → ".join(registry.fixed(score, 1) for score in scores),
    }


def _markdown(facts: dict[str, Any]) -> str:
    """The review; cells are clipped and tables shortened as far as it takes to fit into one comment."""
    sizes = ({"limit": limit, "most": most} for limit, most in _SIZES)
    return templates.fitted(
        templates.environment(Path(__file__).parent).get_template("review.md.jinja"), facts, sizes, _LIMIT
    )


def _stop_at_regressions(changes: list[Change], allowed: dict[str, float]) -> None:
    worse = [
        f"{REGISTRY[change.name].label} by {change.worsening:.4g}, allowed is {allowed[change.name]:g}"
        for change in changes
        if change.name in allowed and change.exceeds(allowed[change.name])
    ]
    if worse:
        count = "1 metric" if len(worse) == 1 else f"{len(worse)} metrics"
        what = f"{count} got worse by more than review.regressions in params.yaml allows"
        raise UserError("\n".join([f"{what}; fix the change, or raise what is allowed and say why", *worse]))


if __name__ == "__main__":
    run(main, parses=True)
