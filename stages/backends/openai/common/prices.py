"""Cost of training and answers: from openai.prices, or for OpenAI's own address from the table in models.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stages.backends.openai.base.client import is_here
from stages.backends.openai.base.models import known, table
from stages.core.cli import UserError, notice
from stages.params import Auto, OpenAI

_MILLION = 1_000_000
# How OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning") estimates the epochs of `auto`:
# three, but with 100 to 25,000 examples seen in total, and 1 to 25 epochs.
_EPOCHS, _FEWEST_SEEN, _MOST_SEEN, _MOST_EPOCHS = 3, 100, 25_000, 25


def estimated_epochs(epochs: int | Auto, examples: int) -> int:
    """Return the number of epochs, estimated if the service chooses it."""
    if epochs != "auto":
        return epochs
    if _EPOCHS * examples < _FEWEST_SEEN:
        return min(_MOST_EPOCHS, max(1, _FEWEST_SEEN // examples))
    if _EPOCHS * examples > _MOST_SEEN:
        return max(1, _MOST_SEEN // examples)
    return _EPOCHS


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars per million tokens, None where unknown; `source` says where they are from."""

    source: str
    training: float | None = None
    base_input: float | None = None
    base_output: float | None = None
    tuned_input: float | None = None
    tuned_output: float | None = None

    @classmethod
    def of(cls, url: str, knobs: OpenAI) -> "Prices":
        """Prices of `openai.model`: those in the parameters, the others from the table if it is OpenAI's address.

        A service on this machine is free unless the parameters say otherwise.
        """
        given = {name: price for name, price in knobs.prices.model_dump().items() if price is not None}
        entry = known(knobs.model, url)
        listed = {"training": entry["training"]} if entry else {}
        for kind in ("base", "tuned") if entry else ():
            listed |= {f"{kind}_{part}": entry[kind][part] for part in ("input", "output")}
        if given:
            return cls("openai.prices", **(listed | given))
        if entry:
            return cls(f"OpenAI's prices as of {table()['as_of']}", **listed)
        if is_here(url):
            free = dict.fromkeys((*_ANSWERS, "training"), 0.0)
            return cls("a service on this machine is free unless openai.prices says otherwise", **free)
        return cls("unknown prices")

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Prices":
        """Read what `vars` of an earlier one holds."""
        return cls(**record)

    def of_training(self, tokens: float) -> float | None:
        """Price in dollars of training on `tokens`, summed over all epochs; None if unknown."""
        return None if self.training is None else round(self.training * tokens / _MILLION, 4)

    def of_answers(self, kind: Literal["base", "tuned"], prompt_tokens: int, answer_tokens: int) -> float | None:
        """Price in dollars of answers by the `base` or `tuned` model; None if unknown."""
        paid, given = getattr(self, f"{kind}_input"), getattr(self, f"{kind}_output")
        if paid is None or given is None:
            return None
        return round((paid * prompt_tokens + given * answer_tokens) / _MILLION, 4)

    def missing(self, base: bool) -> list[str]:
        """The names of the prices that a training and its evaluation, with or without the base, need and lack."""
        names = ("training", *(name for name in _ANSWERS if base or not name.startswith("base")))
        return [f"openai.prices.{name}" for name in names if getattr(self, name) is None]


_ANSWERS = ("base_input", "base_output", "tuned_input", "tuned_output")


@dataclass(frozen=True)
class Plan:
    """What is about to be paid: tokens of the train split, epochs, and an evaluation's prompts and answers in tokens.

    Prompts and answers are those of one model; `base` says whether the base answers too.
    """

    tokens: int
    epochs: int
    prompts: int
    answers: int
    base: bool


def check(plan: Plan, prices: Prices, url: str, knobs: OpenAI) -> None:
    """Print the estimated cost of training and evaluation, and reject it if it exceeds the limit.

    Raises:
        UserError: the sum exceeds `openai.max_cost_usd`, or there is a limit and a price is unknown.
    """
    limit, lacking = knobs.max_cost_usd, prices.missing(plan.base)
    if lacking and limit is not None:
        raise UserError(
            f"openai.max_cost_usd: {limit:g} cannot be enforced, because prices of {knobs.model} at {url} are unknown:"
            f" set {', '.join(lacking)} (US dollars per million tokens), or openai.max_cost_usd to null"
        )
    training = prices.of_training(plan.tokens * plan.epochs)
    kinds: tuple[Literal["base", "tuned"], ...] = ("base", "tuned") if plan.base else ("tuned",)
    parts = [prices.of_answers(kind, plan.prompts, plan.answers) for kind in kinds]
    known_parts = [part for part in parts if part is not None]
    evaluation = sum(known_parts) if len(known_parts) == len(parts) else None
    notice(
        f"openai: {plan.tokens:,} tokens x {plan.epochs} epochs with {knobs.model}, {_dollars(training)}; evaluation"
        f" {_dollars(evaluation)} ({prices.source})"
    )
    if limit is not None and training is not None and evaluation is not None and training + evaluation > limit:
        raise UserError(
            f"openai.max_cost_usd: training costs about ${training:.2f} and evaluation ${evaluation:.2f}, together"
            f" above the limit of {limit:g}; raise it, or use fewer epochs or conversations. Nothing was uploaded"
        )


def _dollars(price: float | None) -> str:
    return "of unknown price" if price is None else f"about ${price:.2f}"
