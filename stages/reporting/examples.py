"""The test conversations as a report shows them: scores, invented facts, good and bad answers, lengths of texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.metrics import facts
from stages.metrics.facts import Fact
from stages.metrics.registry import REGISTRY, Metric, fixed
from stages.reporting.predictions import clean, question, said


@dataclass(frozen=True)
class Turn:
    """A message of a prompt, as text."""

    role: str
    content: str


@dataclass(frozen=True)
class Score:
    """One measure of both answers as text; `word` is better, worse or empty, `mark` its sign."""

    label: str
    base: str
    tuned: str
    word: str
    mark: str


@dataclass(frozen=True)
class Answer:
    """A model's answer, and the facts in it that are invented, as they are written there."""

    text: str
    invented: tuple[Fact, ...]


@dataclass(frozen=True)
class Answered:
    """A line of predictions.jsonl, by its number from 1, with the tuned answer's chrF (0 to 100).

    `right` is False where a fact of the tuned answer is missing or invented.
    """

    line: int
    title: str
    prompt: tuple[Turn, ...]
    reference: str
    base: Answer
    tuned: Answer
    scores: tuple[Score, ...]
    chrf: float
    right: bool


@dataclass(frozen=True)
class Ranking:
    """Conversations by the tuned answer: a good, a typical and the worst one, and the rest, worst first."""

    shown: list[tuple[str, Answered]]
    others: list[Answered]


@dataclass(frozen=True)
class Cut:
    """The part of a text that is shown, and how many characters are not."""

    text: str
    left: int


@dataclass(frozen=True)
class Prompt:
    """The part of a prompt that is shown: how many earlier messages are not, then roles and texts."""

    omitted: int
    messages: list[tuple[str, Cut]]


def answered(line: int, prediction: dict[str, Any]) -> Answered:
    """A conversation from a line of predictions.jsonl, cleaned of what cannot be shown."""
    scores = {part: prediction["scores"][part] for part in ("base", "tuned")}
    reference = clean(prediction["reference"])
    given = [str(message.get("content") or "") for message in prediction["prompt"]]
    found = {part: facts.compare(clean(prediction[part]), reference, given) for part in ("base", "tuned")}
    return Answered(
        line=line,
        title=question(prediction["prompt"]),
        prompt=tuple(Turn(one["role"], said(one)) for one in prediction["prompt"]),
        reference=reference,
        base=Answer(clean(prediction["base"]), found["base"].invented),
        tuned=Answer(clean(prediction["tuned"]), found["tuned"].invented),
        scores=tuple(_score(one, scores) for one in REGISTRY.values() if one.chip and one.name in scores["tuned"]),
        chrf=scores["tuned"]["chrf"],
        right=found["tuned"].recalled == found["tuned"].wanted and not found["tuned"].invented,
    )


def _score(metric: Metric, scores: dict[str, dict[str, float | None]]) -> Score:
    base, tuned = scores["base"][metric.name], scores["tuned"][metric.name]
    word = mark = ""
    if base is not None and tuned is not None and base != tuned:
        word, mark = ("better", "✓") if (tuned - base) * metric.sign > 0 else ("worse", "✗")
    return Score(metric.label, fixed(base, metric.places), fixed(tuned, metric.places), word, mark)


def shared_system(conversations: list[Answered]) -> tuple[str, list[Answered]]:
    """The system prompt that all conversations open with, taken out of them to be shown once; else an empty text."""
    openings = {one.prompt[:1] for one in conversations}
    opening = next(iter(openings)) if len(conversations) > 1 and len(openings) == 1 else ()
    if not opening or opening[0].role != "system":
        return "", conversations
    return opening[0].content, [replace(one, prompt=one.prompt[1:]) for one in conversations]


def ranking(conversations: Iterable[Answered]) -> Ranking:
    """The conversations from the worst to the best, by facts first and then by chrF; equal ones in the file's order."""
    ordered = sorted(conversations, key=lambda one: (one.right, one.chrf))
    # The best of one or two conversations is also the typical one; each is shown once.
    places = {"A good answer": len(ordered) - 1, "A typical answer": (len(ordered) - 1) // 2, "The worst answer": 0}
    shown = {place: name for name, place in reversed(places.items())}
    featured = [(name, ordered[place]) for name, place in places.items() if shown[place] == name]
    return Ranking(featured, [one for place, one in enumerate(ordered) if place not in shown])


def cut(text: str, limit: int) -> Cut:
    """The text's first `limit` characters."""
    return Cut(text[:limit], max(0, len(text) - limit))


def parts(answer: Answer, limit: int) -> tuple[list[tuple[str, bool]], int]:
    """The answer's first `limit` characters in parts, each with whether it is invented; and how many are not shown."""
    found, end = [], 0
    for fact in answer.invented:
        if end <= fact.start and fact.end <= limit:
            found += [(answer.text[end : fact.start], False), (answer.text[fact.start : fact.end], True)]
            end = fact.end
    found.append((answer.text[end:limit], False))
    return [(text, invented) for text, invented in found if text], max(0, len(answer.text) - limit)


def cut_prompt(prompt: Sequence[Turn], limit: int) -> Prompt:
    """A prompt's last messages, as many as `limit` characters hold; the last is there in any case."""
    shown: list[tuple[str, Cut]] = []
    room = limit
    for message in reversed(prompt):
        if shown and room <= 0:
            break
        shown.append((message.role, cut(message.content, room)))
        room -= len(message.content)
    return Prompt(len(prompt) - len(shown), shown[::-1])


def lengths(conversations: list[Answered]) -> dict[str, list[int]]:
    """Characters of each conversation's prompt (all messages), reference and answers."""
    return {
        "prompt": [sum(len(message.content) for message in one.prompt) for one in conversations],
        "reference": [len(one.reference) for one in conversations],
        "base": [len(one.base.text) for one in conversations],
        "tuned": [len(one.tuned.text) for one in conversations],
    }


def quantiles(values: list[int]) -> list[int]:
    """The shortest, the median, what 90% do not exceed, and the longest; a quantile between two lengths is rounded."""
    return [round(float(one)) for one in np.percentile(values, (0, 50, 90, 100))]
