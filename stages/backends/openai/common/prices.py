"""Cost of training and inference, from the prices in models.yaml."""

from stages.backends.openai.base.models import TABLE, known, table
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


def training(model: str, tokens: int) -> float | None:
    """Price in dollars of training on `tokens`, summed over all epochs; None if unknown."""
    price = known(model).get("training")
    return None if price is None else round(price * tokens / _MILLION, 4)


def answers(model: str, kind: str, prompt_tokens: int, answer_tokens: int) -> float | None:
    """Price in dollars of answers by the `base` or `tuned` model; None if unknown."""
    price = known(model).get(kind)
    return price and round((price["input"] * prompt_tokens + price["output"] * answer_tokens) / _MILLION, 4)


def estimate(model: str, tokens: int, epochs: int, knobs: OpenAI) -> None:
    """Print the estimated cost of training, and reject it if it exceeds the limit.

    Raises:
        UserError: the price exceeds `openai.max_cost_usd`, or there is a limit and the price is unknown.
    """
    price, limit = training(model, tokens * epochs), knobs.max_cost_usd
    if price is None and limit is not None:
        raise UserError(
            f"openai.max_cost_usd: {limit:g} cannot be enforced, because the price of {model} is unknown; add it to"
            f" stages/backends/openai/base/{TABLE.name}, or set openai.max_cost_usd to null"
        )
    shown = "price unknown" if price is None else f"about ${price:.2f} (prices as of {table()['as_of']})"
    notice(f"openai: {tokens:,} tokens x {epochs} epochs with {model}, {shown}")
    if price is not None and limit is not None and price > limit:
        raise UserError(
            f"openai.max_cost_usd: training costs about ${price:.2f}, above the limit of {limit:g}; raise it, or use"
            " fewer epochs or conversations. Nothing was uploaded"
        )
