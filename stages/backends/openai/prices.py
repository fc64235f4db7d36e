"""Prices and shut-down dates from models.yaml, and what a training will cost by them."""

import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.command import UserError, notice
from stages.params import Auto, OpenAI

_TABLE = Path(__file__).with_name("models.yaml")
_MILLION = 1_000_000
# How OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning") guesses the epochs of `auto`:
# three, but no fewer than 100 and no more than 25,000 examples seen, and from 1 to 25 epochs.
_EPOCHS, _FEWEST_SEEN, _MOST_SEEN, _MOST_EPOCHS = 3, 100, 25_000, 25


@cache
def _table() -> dict[str, Any]:
    return dict(yaml.safe_load(_TABLE.read_text(encoding="utf-8")))


def known(model: str) -> dict[str, Any]:
    """What the table says of a model; nothing where it does not know it."""
    names = [name for name in _table()["models"] if model.startswith(name)]
    return dict(_table()["models"][max(names, key=len)]) if names else {}


def shut_down(model: str) -> datetime.date | None:
    """The day on which OpenAI ends the model, as far as it is announced."""
    return known(model).get("shut_down")


def guessed_epochs(epochs: int | Auto, examples: int) -> int:
    """The epochs to reckon with, where the service chooses them too."""
    if epochs != "auto":
        return epochs
    if _EPOCHS * examples < _FEWEST_SEEN:
        return min(_MOST_EPOCHS, max(1, _FEWEST_SEEN // examples))
    if _EPOCHS * examples > _MOST_SEEN:
        return max(1, _MOST_SEEN // examples)
    return _EPOCHS


def training(model: str, tokens: int) -> float | None:
    """Price in dollars of training on so many tokens, all epochs counted; None where it is not known."""
    price = known(model).get("training")
    return None if price is None else round(price * tokens / _MILLION, 4)


def answers(model: str, kind: str, prompt_tokens: int, answer_tokens: int) -> float | None:
    """Price in dollars of answers by the `base` or the `tuned` model; None where it is not known."""
    price = known(model).get(kind)
    return price and round((price["input"] * prompt_tokens + price["output"] * answer_tokens) / _MILLION, 4)


def estimate(model: str, tokens: int, epochs: int, knobs: OpenAI) -> None:
    """Print what a training will cost, and stop where that is more than allowed.

    Raises:
        UserError: the price is above `openai.max_cost_usd`, or it is limited and not known.
    """
    price, limit = training(model, tokens * epochs), knobs.max_cost_usd
    if price is None and limit is not None:
        raise UserError(
            f"the price of {model} is not known, so openai.max_cost_usd {limit:g} cannot be kept; add the model to"
            f" {_TABLE.name} in stages/backends/openai, or set openai.max_cost_usd to null"
        )
    shown = "an unknown price" if price is None else f"about ${price:.2f} (prices of {_table()['as_of']})"
    notice(f"openai: {tokens:,} tokens x {epochs} epochs of {model}, {shown}")
    if price is not None and limit is not None and price > limit:
        raise UserError(
            f"training costs about ${price:.2f}, more than openai.max_cost_usd {limit:g}; raise it, or use fewer"
            " epochs or conversations. Nothing was uploaded."
        )
