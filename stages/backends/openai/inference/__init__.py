"""Answers of the base model and the tuned model at the endpoint where it was trained."""

import json

from stages.backends.openai.base import endpoint_of
from stages.backends.openai.base.client import connect
from stages.backends.openai.common.prices import Prices
from stages.backends.openai.inference.hosted import Budget, HostedPair
from stages.backends.protocol import ModelPair
from stages.core.cli import UserError
from stages.core.paths import TUNED
from stages.params import Params

_TUNED_RECORD = TUNED / "model.json"


def pair(knobs: Params) -> ModelPair:
    """Connect to the base model and the tuned model.

    Raises:
        UserError: there is no hosted model, or the endpoint has changed since.
    """
    if not _TUNED_RECORD.exists():
        raise UserError(
            f"{_TUNED_RECORD} is missing: {TUNED} has no hosted model, but backend is openai; set it back, or run"
            " `dvc repro`"
        )
    url = endpoint_of(_TUNED_RECORD, knobs)
    record = json.loads(_TUNED_RECORD.read_text(encoding="utf-8"))
    # Records of older versions have no prices.
    prices = Prices.read(record.get("prices", {"source": "unknown prices"}))
    budget = Budget(prices, knobs.openai.max_cost_usd, record.get("price_usd") or 0.0)
    models = record["base"], record["model"]
    return HostedPair(lambda: connect(url), url, *models, knobs.evaluate.batch_size, knobs.seed, budget)
