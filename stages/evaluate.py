"""evaluate: base and tuned model on the test split, measured and compared, with confidence intervals.

`reports/metrics.json` is for `dvc metrics diff`, `reports/slices.json` has the same for each label of the data, and
`reports/eval/predictions.jsonl` has every answer with its scores, and the number of tokens of its reference.
`reports/eval/run.json` holds what varies by nature.
"""

import json
import time
from typing import Any

import msgspec
import numpy as np

from stages import backends, params
from stages.backends.protocol import Likelihoods
from stages.core import files
from stages.core.cli import notice, run
from stages.core.paths import EVAL_RUN, METRICS, PREDICTIONS, SLICES, SPLIT_REPORT, SPLITS, TEST_LABELS, TRAIN_METRICS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation
from stages.metrics import registry
from stages.metrics.intervals import Bootstrap, Mean

# The slice of conversations whose record has no label.
_UNLABELLED = "(no label)"

Measures = dict[str, Mean]


def main() -> None:
    begin = time.perf_counter()
    knobs = params.load()
    test = list(conversations.read_jsonl(SPLITS["test"]))
    pair = backends.inference(knobs).pair(knobs)
    answers, measures, epsilon = {}, {}, knobs.evaluate.epsilon
    for name, tuned in (("base", False), ("tuned", True)):
        answers[name], cut = pair.answers(test, tuned, knobs.evaluate.max_new_tokens)
        if cut:
            notice(f"{name}: {cut} of {len(test)} answers were cut at evaluate.max_new_tokens")
        measures[name] = _measures(test, answers[name], pair.likelihoods(test, tuned))
        if epsilon is not None and (perturbed := pair.perturbed(test, tuned, epsilon)) is not None:
            measures[name] |= registry.of_likelihoods(perturbed, perturbed=True)
    results = compare(measures["base"], measures["tuned"], knobs)
    _write_predictions(test, answers, measures)
    _write_metrics(results, measures["base"].get("loss"))
    labels = json.loads(TEST_LABELS.read_text(encoding="utf-8"))
    files.write_json(SLICES, slices(labels, measures["base"], measures["tuned"], knobs))
    files.write_json(EVAL_RUN, {"seconds": round(time.perf_counter() - begin, 1), **pair.facts()})
    name, gain = next(iter(results["gain"].items()))
    notice(f"evaluated {len(test)} conversations: {name} gain {gain['value']} ({gain['low']} to {gain['high']})")


def _measures(test: list[Conversation], answers: list[str], likelihoods: Likelihoods | None) -> Measures:
    """All available metrics; without likelihoods, those that need them are absent."""
    found = registry.of_answers(answers, [conversation.response for conversation in test])
    return found if likelihoods is None else registry.of_likelihoods(likelihoods) | found


def compare(base: Measures, tuned: Measures, knobs: params.Params) -> dict[str, dict[str, Any]]:
    """Each measure of the base model, of the tuned one, and tuned minus base, with intervals."""
    bootstrap = Bootstrap(knobs.seed, knobs.evaluate.resamples, knobs.evaluate.confidence)
    return {
        "base": {name: bootstrap.interval(mean, registry.REGISTRY[name].digits) for name, mean in base.items()},
        "tuned": {name: bootstrap.interval(mean, registry.REGISTRY[name].digits) for name, mean in tuned.items()},
        "gain": {name: bootstrap.gain(base[name], tuned[name], registry.REGISTRY[name].digits) for name in base},
    }


def slices(labels: list[str], base: Measures, tuned: Measures, knobs: params.Params) -> dict[str, dict[str, Any]]:
    """What `compare` returns for the conversations of each label, and their number; empty without labels."""
    found = {}
    unlabelled = _UNLABELLED
    while unlabelled in labels:
        unlabelled = f"({unlabelled})"
    for label in sorted(set(labels)):
        chosen = np.array([one == label for one in labels])
        results = compare(_among(base, chosen), _among(tuned, chosen), knobs)
        found[label or unlabelled] = {"conversations": int(chosen.sum()), **results}
    return found


def _among(measures: Measures, chosen: np.ndarray) -> Measures:
    return {name: mean.among(chosen) for name, mean in measures.items()}


def _write_metrics(results: dict[str, Any], loss: Mean | None) -> None:
    splits = json.loads(SPLIT_REPORT.read_text(encoding="utf-8"))
    counts = {name: splits[name]["conversations"] for name in SPLITS}
    if loss is not None:
        counts["test_tokens"] = int(loss.weights.sum())
    files.write_json(
        METRICS,
        {
            "test": results,
            "train": json.loads(TRAIN_METRICS.read_text(encoding="utf-8")),
            "counts": counts,
        },
    )


def _write_predictions(test: list[Conversation], answers: dict[str, list[str]], measures: dict[str, Measures]) -> None:
    with files.replacing(PREDICTIONS) as path, path.open("w", encoding="utf-8", newline="\n") as out:
        for row, conversation in enumerate(test):
            line: dict[str, Any] = {
                "prompt": [msgspec.to_builtins(message) for message in conversation.prompt],
                "reference": conversation.response,
                "base": answers["base"][row],
                "tuned": answers["tuned"][row],
                "scores": {name: _scores(found, row) for name, found in measures.items()},
            }
            # Weights of the loss: with them a later review takes the mean again, over the same conversations.
            if "loss" in measures["tuned"]:
                line["tokens"] = int(measures["tuned"]["loss"].weights[row])
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _scores(measures: Measures, row: int) -> dict[str, float]:
    return {
        name: round(float(mean.of(mean.totals[[row]], mean.weights[[row]])), registry.REGISTRY[name].digits)
        for name, mean in measures.items()
    }


if __name__ == "__main__":
    run(main)
