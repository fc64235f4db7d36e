"""Two runs on the same test conversations: each measure's paired difference, and the answers that changed most.

A run is its lines of predictions.jsonl and of general.jsonl; what is compared is its tuned model.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.metrics.intervals import Bootstrap, Interval, Mean
from stages.metrics.registry import REGISTRY

Line = dict[str, Any]
LinePairs = list[tuple[Line, Line]]
# A run's own value of each measure.
Own = Mapping[str, float]

_NOTHING_SHARED = "the tests have no conversation in common"
_NOT_COMPARABLE = "not comparable"
_NO_OBSTACLES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Change:
    """A measure before and after. Without a difference, `obstacle` says why there is none."""

    name: str
    old: float | None
    new: float | None
    difference: Interval | None = None
    obstacle: str = ""

    @property
    def word(self) -> str:
        """The verdict: better, worse, within noise, no interval or not comparable."""
        if self.difference is None:
            return _NOT_COMPARABLE
        return REGISTRY[self.name].word(self.difference["low"], self.difference["high"])

    @property
    def worsening(self) -> float | None:
        """By how much it got worse; negative where it got better."""
        value = None if self.difference is None else self.difference["value"]
        return None if value is None else -REGISTRY[self.name].sign * value

    def exceeds(self, tolerance: float) -> bool:
        """Whether it got worse by more than `tolerance`, and noise alone does not explain it.

        Where there is no interval, nothing speaks for noise.
        """
        worsening = self.worsening
        return worsening is not None and worsening > tolerance and self.word != "within noise"


def pairs(old: Sequence[Line], new: Sequence[Line]) -> LinePairs:
    """The conversations that both runs have, in the new run's order."""
    before = _by_conversation(old)
    return [(before[key], line) for key, line in _by_conversation(new).items() if key in before]


def _by_conversation(lines: Sequence[Line]) -> dict[tuple[str, int], Line]:
    """Each line by its prompt and reference; repeated ones are numbered."""
    seen: collections.Counter[str] = collections.Counter()
    found = {}
    for line in lines:
        text = json.dumps([line["prompt"], line["reference"]], sort_keys=True)
        found[text, seen[text]] = line
        seen[text] += 1
    return found


@dataclass(frozen=True)
class Shared:
    """The test conversations and the general prompts that both runs have."""

    test: LinePairs
    general: LinePairs

    def of(self, name: str) -> LinePairs:
        """Those that a metric is measured on."""
        return self.general if REGISTRY[name].of == "general" else self.test


def changes(
    shared: Shared, old: Own, new: Own, bootstrap: Bootstrap, obstacles: Mapping[str, str] = _NO_OBSTACLES
) -> list[Change]:
    """A change for each measure that one of the runs has.

    Values are means over the shared conversations; those of a measure that cannot be compared are the runs' own, from
    `old` and `new`, the tuned model's values in their measures.json. `obstacles` says of measures why they cannot be
    compared, whatever the conversations.
    """
    return [
        _incomparable(name, old, new, obstacle)
        if (obstacle := _obstacle(name, shared.of(name)) or obstacles.get(name, ""))
        else _change(name, shared.of(name), bootstrap)
        for name in REGISTRY
        if name in old or name in new
    ]


def _incomparable(name: str, old: Own, new: Own, obstacle: str) -> Change:
    return Change(name, old.get(name), new.get(name), obstacle=obstacle)


def _change(name: str, shared: LinePairs, bootstrap: Bootstrap) -> Change:
    before, after = (_mean(name, [pair[side] for pair in shared]) for side in (0, 1))
    with np.errstate(over="ignore"):
        values = [round(float(mean.of(mean.totals, mean.weights)), REGISTRY[name].digits) for mean in (before, after)]
    if not np.isfinite(values).all():
        return Change(name, values[0], values[1], obstacle="it is larger than a number can be")
    return Change(name, values[0], values[1], bootstrap.gain(before, after, REGISTRY[name].digits))


def _obstacle(name: str, shared: LinePairs) -> str:
    """Why a measure cannot be compared; empty where it can."""
    if not shared:
        return _NOTHING_SHARED
    for side, run in enumerate(("old", "new")):
        lines = [pair[side] for pair in shared]
        if not all(name in line["scores"]["tuned"] for line in lines):
            return f"the {run} run did not measure it"
        if not all(_weighed(name, line) for line in lines):
            return f"the {run} run kept no weights of it"
        if not any(_weight(name, line) for line in lines):
            return f"the {run} run has nothing to measure it on"
    # A loss for each token says little about a model that cuts the same text into other tokens.
    if REGISTRY[name].per_token and any(_weight(name, old) != _weight(name, new) for old, new in shared):
        return "the two models count tokens differently"
    return ""


def _weighed(name: str, line: Line) -> bool:
    """Whether a line says how much its score counts, and has one if it counts."""
    if REGISTRY[name].score:
        return line["scores"]["tuned"][name] is not None
    weight = line["weights"]["tuned"].get(name)
    return weight is not None and (weight == 0 or line["scores"]["tuned"][REGISTRY[name].mean_of or name] is not None)


def _weight(name: str, line: Line) -> int:
    return 1 if REGISTRY[name].score else int(line["weights"]["tuned"][name])


def _mean(name: str, lines: Sequence[Line]) -> Mean:
    metric = REGISTRY[name]
    weights = np.array([_weight(name, line) for line in lines], float)
    scores = [line["scores"]["tuned"][metric.mean_of or name] if _weight(name, line) else 0 for line in lines]
    return Mean(weights * np.array(scores, float), weights, metric.finish)


def most_changed(shared: LinePairs, count: int) -> LinePairs:
    """The conversations that are answered differently, those first whose chrF moved most."""
    differing = [(old, new) for old, new in shared if old["tuned"] != new["tuned"]]
    return sorted(differing, key=lambda pair: -abs(_chrf(pair[1]) - _chrf(pair[0])))[:count]


def _chrf(line: Line) -> float:
    return float(line["scores"]["tuned"]["chrf"])
