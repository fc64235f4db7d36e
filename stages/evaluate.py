"""evaluate: base, tuned model and cheap baselines on the test split, compared with confidence intervals; the verdict.

`reports/metrics.json` has the few numbers that `dvc exp show` lists, `reports/eval/measures.json` all measures with
their intervals, and `reports/slices.json` the same for each label of the data. `reports/eval/predictions.jsonl` has
every answer with its scores, `reports/eval/general.jsonl` what the base answers to general prompts and its loss before
and after, and `reports/eval/run.json` what varies by nature. `reports/eval/answers.jsonl` keeps the answers of hosted
models, from which the evaluation is repeated when these are gone.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stages import backends, params
from stages.backends.protocol import ModelPair, UnavailableError
from stages.core import files
from stages.core.cli import notice, run
from stages.core.paths import (
    ANSWERS,
    EVAL_RUN,
    GENERAL,
    MEASURES,
    METRICS,
    PREDICTIONS,
    SLICES,
    SPLIT_REPORT,
    SPLITS,
    TEST_LABELS,
    TRAIN_METRICS,
)
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.metrics import choices, general_prompts, registry, verdict
from stages.metrics.baselines import LookUp
from stages.metrics.intervals import Bootstrap, Interval, Mean
from stages.metrics.registry import REGISTRY
from stages.metrics.scoring import Expected
from stages.metrics.verdict import Evidence, Verdict

# The slice of conversations whose record has no label.
_UNLABELLED = "(no label)"
# The tuned model's measures in metrics.json, which `dvc exp show` has room for.
_SHOWN = ("facts_right", "fact_recall", "fact_precision", "chrf", "loss", "retention")

Measures = dict[str, Mean]
Intervals = dict[str, Interval]


@dataclass(frozen=True)
class Answered:
    """One way to answer the test split, a model's or a baseline's: its answers, and its measures."""

    answers: list[str]
    measures: Measures


def main() -> None:
    begin = time.perf_counter()
    knobs = params.load()
    test = list(conversations.read_jsonl(SPLITS["test"]))
    wanted = expected(test)
    altered = choices.altered(wanted, knobs.seed)
    pair = backends.inference(knobs).pair(knobs)
    models = _models(pair, test, wanted, altered, knobs)
    spread = {}
    if pair.varies:
        again = _answers("base", pair, test, False, knobs)
        spread = changed(models["base"].measures, registry.of_answers(again, wanted))
    general, kept = _general(pair)
    baselines = _baselines(pair, test, wanted, knobs)
    results = compare(models, kept, baselines, spread, knobs)
    found = judge(results, len(test), models["tuned"].measures["facts_right"].count, knobs)
    _write_predictions(test, models, baselines)
    _write_general(general, kept)
    _write_measures(found, results, models["tuned"].measures)
    labels = json.loads(TEST_LABELS.read_text(encoding="utf-8"))
    files.write_json(SLICES, slices(labels, models["base"].measures, models["tuned"].measures, spread, knobs))
    seconds = round(time.perf_counter() - begin, 1)
    run_facts = {"date": time.strftime("%Y-%m-%d"), "seconds": seconds, "spread": spread, **pair.facts()}
    files.write_json(EVAL_RUN, run_facts)
    _write_lines(ANSWERS, pair.kept)
    notice(f"evaluated {len(test)} conversations. {found.sentence}")


def expected(test: Sequence[Conversation]) -> list[Expected]:
    """What the answers are compared with."""
    return [Expected(one.response, tuple(message.text for message in one.prompt)) for one in test]


def _models(
    pair: ModelPair,
    test: list[Conversation],
    wanted: Sequence[Expected],
    altered: Sequence[list[str]],
    knobs: params.Params,
) -> dict[str, Answered]:
    """Both models; a base that cannot be asked has no answers, and measures in which no conversation counts."""
    try:
        base = _model("base", pair, test, wanted, altered, knobs)
    except UnavailableError as error:
        notice(f"base: left out, because {error}")
        base = None
    tuned = _model("tuned", pair, test, wanted, altered, knobs)
    return {"base": base or _unanswered(tuned), "tuned": tuned}


def _unanswered(tuned: Answered) -> Answered:
    nothing = np.zeros(len(tuned.answers))
    return Answered(
        [""] * len(tuned.answers),
        {name: Mean(nothing, nothing, mean.finish) for name, mean in tuned.measures.items()},
    )


def _model(
    name: str,
    pair: ModelPair,
    test: list[Conversation],
    wanted: Sequence[Expected],
    altered: Sequence[list[str]],
    knobs: params.Params,
) -> Answered:
    """A model's answers and all measures that the backend has; without likelihoods, those that need them are absent."""
    tuned, epsilon = name == "tuned", knobs.evaluate.epsilon
    answers = _answers(name, pair, test, tuned, knobs)
    measures = registry.of_answers(answers, wanted)
    if (likelihoods := pair.likelihoods(test, tuned)) is not None:
        measures |= registry.of_likelihoods(likelihoods, "references")
        if choice := _choice(pair, test, altered, likelihoods.nll, tuned):
            measures["fact_choice"] = choice
    if epsilon is not None and (perturbed := pair.perturbed(test, tuned, epsilon)) is not None:
        measures |= registry.of_likelihoods(perturbed, "perturbed")
    return Answered(answers, {name: measures[name] for name in REGISTRY if name in measures})


def _answers(name: str, pair: ModelPair, test: list[Conversation], tuned: bool, knobs: params.Params) -> list[str]:
    answers, cut = pair.answers(test, tuned, knobs.evaluate.max_new_tokens)
    if cut:
        notice(f"{name}: {cut} of {len(test)} answers were cut at evaluate.max_new_tokens")
    return answers


def changed(first: Measures, again: Measures) -> dict[str, float]:
    """How far each measure of the same model moved when its answers were repeated; without those that did not move."""
    moved = {name: abs(_value(mean) - _value(first[name])) for name, mean in again.items() if mean.count}
    return {name: difference for name, difference in moved.items() if difference > 0}


def _value(mean: Mean) -> float:
    return float(mean.of(mean.totals, mean.weights))


def _choice(
    pair: ModelPair, test: list[Conversation], altered: Sequence[list[str]], nll: np.ndarray, tuned: bool
) -> Mean | None:
    """How often the reference is likelier than its altered copies; None where no reference has a fact to alter."""
    copies = [_answering(one, text) for one, texts in zip(test, altered, strict=True) for text in texts]
    likelihoods = pair.likelihoods(copies, tuned) if copies else None
    if likelihoods is None:
        return None
    found = np.full((len(test), 1 + choices.ALTERED), np.nan)
    found[:, 0] = nll
    rows = [row for row, texts in enumerate(altered) if texts]
    found[rows, 1:] = likelihoods.nll.reshape(-1, choices.ALTERED)
    return choices.chosen(found)


def _answering(conversation: Conversation, text: str) -> Conversation:
    """The conversation with another response."""
    return msgspec.structs.replace(conversation, messages=(*conversation.prompt, Message("assistant", text)))


def _general(pair: ModelPair) -> tuple[list[Conversation], dict[str, Measures]]:
    """General prompts with the base's own answers, and each model's loss on these; nothing without likelihoods."""
    asked = [Conversation((Message("user", text), Message("assistant", "."))) for text in general_prompts.PROMPTS]
    if pair.likelihoods(asked[:1], False) is None:
        return [], {"base": {}, "tuned": {}}
    answers, _ = pair.answers(asked, False, general_prompts.TOKENS)
    general = [_answering(one, general_prompts.whole(answer)) for one, answer in zip(asked, answers, strict=True)]
    kept = {}
    for name in ("base", "tuned"):
        likelihoods = pair.likelihoods(general, name == "tuned")
        assert likelihoods is not None
        kept[name] = registry.of_likelihoods(likelihoods, "general")
    return general, kept


def _baselines(
    pair: ModelPair, test: list[Conversation], wanted: Sequence[Expected], knobs: params.Params
) -> dict[str, Answered]:
    """The baselines of `evaluate.baselines`; those that cost more than is allowed are left out."""
    if not knobs.evaluate.baselines:
        return {}
    look_up = LookUp.of(conversations.read_jsonl(SPLITS["train"]))
    answers: dict[str, list[str]] = {}
    for name in knobs.evaluate.baselines:
        if name == "nearest":
            answers[name] = look_up.nearest(test)
        elif name == "constant":
            answers[name] = look_up.constant(test)
        else:
            prompts, tuned = look_up.with_examples(test), name == "tuned_few_shot"
            try:
                if _affordable(name, pair, prompts, tuned, knobs):
                    answers[name] = _answers(name, pair, prompts, tuned, knobs)
            except UnavailableError as error:
                notice(f"{name}: left out, because {error}")
    return {name: Answered(found, registry.of_answers(found, wanted)) for name, found in answers.items()}


def _affordable(name: str, pair: ModelPair, prompts: list[Conversation], tuned: bool, knobs: params.Params) -> bool:
    limit, price = knobs.evaluate.max_cost_usd, pair.price(prompts, tuned, knobs.evaluate.max_new_tokens)
    if limit is None or (price is not None and price <= limit):
        return True
    cost = "an unknown amount" if price is None else f"about ${price:.2f}"
    notice(f"{name}: left out, because it would cost {cost}, and evaluate.max_cost_usd allows ${limit:g}")
    return False


def compare(
    models: Mapping[str, Answered],
    kept: Mapping[str, Measures],
    baselines: Mapping[str, Answered],
    spread: Mapping[str, float],
    knobs: params.Params,
) -> dict[str, Any]:
    """Each measure of base and tuned model, and tuned minus base, with intervals; for each baseline the same.

    The intervals hold the `spread` of repeated answers. `test` has base, tuned and gain; `baselines` has for each its
    measures, and tuned minus it as gain.
    """
    bootstrap = _bootstrap(knobs)
    base, tuned = (models[name].measures | kept[name] for name in ("base", "tuned"))
    return {
        "test": _compared(base, tuned, bootstrap, spread),
        "baselines": {
            name: {
                "measures": _intervals(one.measures, bootstrap, spread),
                "gain": _gains(one.measures, tuned, bootstrap, spread),
            }
            for name, one in baselines.items()
        },
    }


def _bootstrap(knobs: params.Params) -> Bootstrap:
    return Bootstrap(knobs.seed, knobs.evaluate.resamples, knobs.evaluate.confidence)


def _compared(
    base: Measures, tuned: Measures, bootstrap: Bootstrap, spread: Mapping[str, float]
) -> dict[str, Intervals]:
    return {
        "base": _intervals(base, bootstrap, spread),
        "tuned": _intervals(tuned, bootstrap, spread),
        "gain": _gains(base, tuned, bootstrap, spread),
    }


def _intervals(measures: Measures, bootstrap: Bootstrap, spread: Mapping[str, float]) -> Intervals:
    return {
        name: bootstrap.interval(mean, REGISTRY[name].digits, spread.get(name, 0.0)) for name, mean in measures.items()
    }


def _gains(old: Measures, new: Measures, bootstrap: Bootstrap, spread: Mapping[str, float]) -> Intervals:
    return {
        name: bootstrap.gain(mean, new[name], REGISTRY[name].digits, spread.get(name, 0.0))
        for name, mean in old.items()
    }


def judge(results: dict[str, Any], count: int, with_facts: int, knobs: params.Params) -> Verdict:
    """The verdict on the results of `compare`, over so many conversations, of which so many have facts."""
    return verdict.judge(
        Evidence(
            against="the base",
            conversations=count,
            with_facts=with_facts,
            gain=results["test"]["gain"],
            tuned=_values(results["test"]["tuned"]),
            allowed=knobs.verdict.retention,
            over={name: one["gain"] for name, one in results["baselines"].items()},
            baselines={name: _values(one["measures"]) for name, one in results["baselines"].items()},
        )
    )


def _values(found: Mapping[str, Interval]) -> dict[str, float | None]:
    return {name: one["value"] for name, one in found.items()}


def slices(
    labels: list[str], base: Measures, tuned: Measures, spread: Mapping[str, float], knobs: params.Params
) -> dict[str, dict[str, Any]]:
    """Base, tuned and gain for the conversations of each label, and their number; empty without labels."""
    found = {}
    unlabelled = _UNLABELLED
    while unlabelled in labels:
        unlabelled = f"({unlabelled})"
    for label in sorted(set(labels)):
        chosen = np.array([one == label for one in labels])
        results = _compared(_among(base, chosen), _among(tuned, chosen), _bootstrap(knobs), spread)
        found[label or unlabelled] = {"conversations": int(chosen.sum()), **results}
    return found


def _among(measures: Measures, chosen: np.ndarray) -> Measures:
    return {name: mean.among(chosen) for name, mean in measures.items()}


def _write_measures(found: Verdict, results: dict[str, Any], tuned: Measures) -> None:
    splits = json.loads(SPLIT_REPORT.read_text(encoding="utf-8"))
    counts = {name: splits[name]["conversations"] for name in SPLITS} | {"with_facts": tuned["facts_right"].count}
    if "loss" in tuned:
        counts["test_tokens"] = int(tuned["loss"].weights.sum())
    train = json.loads(TRAIN_METRICS.read_text(encoding="utf-8"))
    outcome = {"word": found.word, "sentence": found.sentence}
    files.write_json(MEASURES, {"verdict": outcome, **results, "train": train, "counts": counts})
    values = _values(results["test"]["tuned"])
    shown = {name: values.get(name) for name in _SHOWN} | {"validation_loss": train.get("validation_loss")}
    few = {name: value for name, value in shown.items() if value is not None}
    files.write_json(METRICS, {"verdict": found.word, **few})


def _write_predictions(
    test: list[Conversation], models: Mapping[str, Answered], baselines: Mapping[str, Answered]
) -> None:
    def line(row: int, conversation: Conversation) -> dict[str, Any]:
        answers = {name: one.answers[row] for name, one in models.items()}
        found = _line(conversation, answers, {name: one.measures for name, one in models.items()}, row)
        return found | {"baselines": {name: one.answers[row] for name, one in baselines.items()}}

    _write_lines(PREDICTIONS, [line(row, conversation) for row, conversation in enumerate(test)])


def _write_general(general: Sequence[Conversation], kept: Mapping[str, Measures]) -> None:
    _write_lines(GENERAL, [_line(conversation, {}, kept, row) for row, conversation in enumerate(general)])


def _line(
    conversation: Conversation, answers: dict[str, str], measures: Mapping[str, Measures], row: int
) -> dict[str, Any]:
    """A conversation with its answers, scores, and the weights of these in the means that are not 1.

    With the weights a later review takes the means again, over the conversations that two runs share.
    """
    return {
        "prompt": [msgspec.to_builtins(message) for message in conversation.prompt],
        "reference": conversation.response,
        **answers,
        "scores": {part: _scores(found, row) for part, found in measures.items()},
        "weights": {part: _weights(found, row) for part, found in measures.items()},
    }


def _scores(measures: Measures, row: int) -> dict[str, float | None]:
    """Each measure of one conversation; None where it does not count."""
    return {
        name: round(float(mean.of(mean.totals[[row]], mean.weights[[row]])), REGISTRY[name].digits)
        if mean.weights[row]
        else None
        for name, mean in measures.items()
    }


def _weights(measures: Measures, row: int) -> dict[str, int]:
    return {name: int(mean.weights[row]) for name, mean in measures.items() if not REGISTRY[name].score}


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    run(main)
