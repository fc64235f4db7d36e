"""The verdict on a fine-tuning, in one word and one sentence: answers before loss, facts before style.

`RULES` is the table of verdicts, of which the first that applies decides; docs/verdict.md is written from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stages.metrics.intervals import FEWEST, Interval
from stages.metrics.registry import REGISTRY

# By these a baseline is beaten or not; and by chrF alone where the references have too few facts.
_JUDGED = ("facts_right", "fact_recall", "chrf")
_ANSWERS = tuple(metric.name for metric in REGISTRY.values() if metric.of == "answers")

Gains = Mapping[str, Interval]
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Evidence:
    """What a verdict weighs: `gain` is the difference of the tuned model's measures to those of `against`.

    `over` are its differences to each baseline, and `baselines` their own values; None where baselines are not in
    question. `with_facts` counts the references that have facts; `allowed` is how much `retention` may rise.
    """

    against: str
    conversations: int
    with_facts: int
    gain: Gains
    tuned: Values
    allowed: float
    over: Mapping[str, Gains] | None = None
    baselines: Mapping[str, Values] | None = None

    def named(self, word: str) -> list[str]:
        """The measures of answers whose change has this word, such as better."""
        return [name for name in _ANSWERS if name in self.gain and _word(name, self.gain) == word]

    @property
    def has_facts(self) -> bool:
        """Whether enough references have facts to judge by."""
        return self.with_facts >= FEWEST

    @property
    def is_compared(self) -> bool:
        """Whether any measure of answers has a difference: a hosted base may answer no more."""
        return any(self.gain[name]["value"] is not None for name in _ANSWERS if name in self.gain)

    @property
    def forgets(self) -> bool:
        """Whether the loss on general prompts rose by more than is allowed, and not within noise."""
        rise = self.gain.get("retention", {}).get("value")
        return rise is not None and rise > self.allowed and _word("retention", self.gain) == "worse"

    @property
    def unbeaten(self) -> list[str]:
        """The baselines that are not beaten, the best first: a judged measure must be better, and none worse."""
        judged = _JUDGED if self.has_facts else ("chrf",)
        found = []
        for name, gains in (self.over or {}).items():
            words = {_word(one, gains) for one in judged if one in gains}
            if "better" not in words or "worse" in words:
                found.append(name)
        return sorted(found, key=self._strength, reverse=True)

    @property
    def best_baseline(self) -> str | None:
        """The baseline with most answers right, and of equal ones that with the best chrF."""
        return max(self.baselines or {}, key=self._strength, default=None)

    def _strength(self, baseline: str) -> tuple[float, float]:
        values = (self.baselines or {})[baseline]
        return values.get("facts_right") or 0.0, values.get("chrf") or 0.0

    def facts(self, values: Values) -> str:
        """`3 of 26`: answers with all facts right, of those that should have some."""
        return f"{round((values.get('facts_right') or 0.0) * self.with_facts)} of {self.with_facts}"


def _word(name: str, gains: Gains) -> str:
    return REGISTRY[name].word(gains[name]["low"], gains[name]["high"])


@dataclass(frozen=True)
class Rule:
    """A line of the table: the verdict's word, when it applies in words and in code, and its sentence."""

    word: str
    when: str
    applies: Callable[[Evidence], bool]
    says: Callable[[Evidence], str]


@dataclass(frozen=True)
class Verdict:
    """One word for tables, and one sentence."""

    word: str
    sentence: str


def judge(evidence: Evidence) -> Verdict:
    """The verdict of the first rule that applies."""
    rule = next(rule for rule in RULES if rule.applies(evidence))
    return Verdict(rule.word, rule.says(evidence))


def _labels(names: list[str]) -> str:
    return ", ".join(REGISTRY[name].label for name in names)


def _figures(evidence: Evidence) -> str:
    """What speaks for the tuned model, in numbers."""
    found = [f"facts right in {evidence.facts(evidence.tuned)}"] if evidence.has_facts else []
    return ", ".join([*found, f"chrF {evidence.tuned['chrf']:.1f}"])


def _look_up(evidence: Evidence) -> str:
    name = evidence.unbeaten[0]
    values = (evidence.baselines or {})[name]
    facts = f" (facts right in {evidence.facts(values)})" if evidence.has_facts else ""
    return f"A look-up does as well: the baseline {name}{facts} is not beaten; fine-tuning has {_figures(evidence)}."


def _better(evidence: Evidence) -> str:
    best = evidence.best_baseline
    than = f"{evidence.against} and than every baseline" if best else evidence.against
    beside = ""
    if best and evidence.has_facts:
        beside = f"; the best baseline, {best}, has {evidence.facts((evidence.baselines or {})[best])}"
    kept = "" if "retention" in evidence.gain else ". What it lost was not measured"
    return f"Better than {than}: {_figures(evidence)}{beside}{kept}."


RULES = (
    Rule(
        "too few",
        f"Fewer than {FEWEST} test conversations.",
        lambda evidence: evidence.conversations < FEWEST,
        lambda evidence: f"Too few test conversations to judge: {evidence.conversations}, where {FEWEST} are needed.",
    ),
    Rule(
        "unproven",
        "The base could not be asked, as a hosted one that was shut down.",
        lambda evidence: not evidence.is_compared,
        lambda evidence: f"Unproven: {evidence.against} was not measured. Fine-tuning has {_figures(evidence)}.",
    ),
    Rule(
        "worse",
        "A measure of answers is worse than the base's, and none is better.",
        lambda evidence: bool(evidence.named("worse")) and not evidence.named("better"),
        lambda evidence: f"Worse than {evidence.against}: {_labels(evidence.named('worse'))}.",
    ),
    Rule(
        "no change",
        "No measure of answers is better or worse than the base's, beyond noise.",
        lambda evidence: not evidence.named("better"),
        lambda evidence: f"No change of the answers beyond noise against {evidence.against}.",
    ),
    Rule(
        "mixed",
        "Some measures of answers are better, some worse.",
        lambda evidence: bool(evidence.named("worse")),
        lambda evidence: (
            f"Mixed: better than {evidence.against} in {_labels(evidence.named('better'))},"
            f" worse in {_labels(evidence.named('worse'))}."
        ),
    ),
    Rule(
        "style only",
        f"At least {FEWEST} references have facts, and the answers with all facts right are not more than the base's.",
        lambda evidence: evidence.has_facts and "facts_right" not in evidence.named("better"),
        lambda evidence: (
            f"Style only: facts right in {evidence.facts(evidence.tuned)}, no more than {evidence.against} beyond"
            f" noise; better in {_labels(evidence.named('better'))}."
        ),
    ),
    Rule(
        "look-up",
        "A baseline is not beaten: facts right, fact recall and chrF (chrF alone where fewer than"
        f" {FEWEST} references have facts) must not be worse than the baseline's, and one of them better.",
        lambda evidence: bool(evidence.unbeaten),
        _look_up,
    ),
    Rule(
        "mixed",
        "Answers are better, but the loss on general prompts rose by more than `verdict.retention`, beyond noise.",
        lambda evidence: evidence.forgets,
        lambda evidence: (
            f"Mixed: better answers ({_figures(evidence)}), but the loss on general prompts rose by"
            f" {evidence.gain['retention']['value']:.2f}, and verdict.retention allows {evidence.allowed:g}."
        ),
    ),
    Rule(
        "unproven",
        "Better than the base, but `evaluate.baselines` is empty.",
        lambda evidence: evidence.over is not None and not evidence.over,
        lambda evidence: (
            f"Better than {evidence.against}: {_figures(evidence)}; but no baseline was measured, so that a look-up may"
            " do as well."
        ),
    ),
    Rule(
        "better",
        "None of the above: answers are better, facts are not worse, little is lost, and every baseline is beaten.",
        lambda evidence: True,
        _better,
    ),
)
