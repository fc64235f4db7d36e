"""Prices of OpenAI's models, in dollars per million tokens, from stages/backends/openai/base/models.yaml."""

import datetime
from types import SimpleNamespace

import pytest

from stages.backends.openai.base import models
from stages.backends.openai.common import prices
from stages.core.cli import UserError

# Training costs 8 dollars per million tokens.
MODEL = "gpt-3.5-turbo-0125"


def estimate(tokens, epochs, limit, model=MODEL):
    prices.estimate(model, tokens, epochs, SimpleNamespace(max_cost_usd=limit))


def test_every_epoch_is_paid(capsys):
    # 250,000 tokens in 3 epochs are 750,000; at 8 dollars per million, 6 dollars.
    estimate(250_000, 3, 6)
    assert (
        "openai: 250,000 tokens x 3 epochs with gpt-3.5-turbo-0125, about $6.00 (prices as of "
        in capsys.readouterr().out
    )
    with pytest.raises(
        UserError,
        match=r"openai.max_cost_usd: training costs about \$6.00, above the limit of 5.99;.*Nothing was uploaded",
    ):
        estimate(250_000, 3, 5.99)


def test_the_price_may_equal_the_limit():
    estimate(125_000, 1, 1)
    with pytest.raises(UserError, match="above the limit of 1;"):
        estimate(125_100, 1, 1)


def test_a_limit_of_zero_rejects_any_price_and_null_allows_any():
    with pytest.raises(UserError, match="above the limit of 0;"):
        estimate(1_000_000, 1, 0)
    estimate(10**12, 25, None)


def test_an_unknown_price_is_rejected_if_there_is_a_limit(capsys):
    with pytest.raises(
        UserError, match=r"^openai.max_cost_usd: 0 cannot be enforced.* price of house is unknown; .*models.yaml, or"
    ):
        estimate(10, 1, 0, "house")
    estimate(10, 2, None, "house")
    assert "openai: 10 tokens x 2 epochs with house, price unknown" in capsys.readouterr().out


def test_the_date_of_the_prices_is_shown(capsys):
    estimate(10, 1, None)
    day = models.table()["as_of"]
    assert isinstance(day, datetime.date) and f"(prices as of {day})" in capsys.readouterr().out


@pytest.mark.parametrize(
    "epochs, examples, expected",
    [
        (1, 1, 1),
        # Three epochs of 34 examples are 102 seen, of 33 fewer than the minimum of 100: 100 // 33 = 3.
        ("auto", 34, 3),
        ("auto", 33, 3),
        # 100 // 25 = 4, 100 // 24 = 4, 100 // 20 = 5.
        ("auto", 25, 4),
        ("auto", 20, 5),
        # 100 // 4 = 25; with fewer examples, the maximum of 25 epochs applies.
        ("auto", 4, 25),
        ("auto", 3, 25),
        ("auto", 5, 20),
        # Three epochs of 8,333 examples are 24,999; of 8,334, 25,002, above the maximum of 25,000: 25,000 // 8,334 = 2.
        ("auto", 8_333, 3),
        ("auto", 8_334, 2),
        ("auto", 12_500, 2),
        ("auto", 12_501, 1),
        ("auto", 25_001, 1),
    ],
)
def test_the_estimated_epochs_of_auto_at_each_boundary(epochs, examples, expected):
    assert prices.estimated_epochs(epochs, examples) == expected


def test_prices_are_rounded_to_four_decimals():
    # 8 dollars x 1,239 / 1,000,000 = 0.009912.
    assert prices.training(MODEL, 1_239) == 0.0099
    assert prices.training(MODEL, 0) == 0
    assert prices.training(MODEL, 1_000_000_000) == 8000


def test_prompts_and_answers_have_separate_prices_for_each_model():
    # Dollars per million: tuned 3 and 6; base 0.5 and 1.5.
    assert prices.answers(MODEL, "tuned", 1_000_000, 500_000) == 6.0
    assert prices.answers(MODEL, "base", 500_000, 1_000_000) == 1.75
    # 3 x 0.000011 + 6 x 0.000007 = 0.000075.
    assert prices.answers(MODEL, "tuned", 11, 7) == pytest.approx(0.0001)
    assert prices.answers("house", "base", 5, 5) is None


def test_the_longest_matching_prefix_of_the_name_is_used():
    assert models.known("gpt-4o-mini-2024-07-18")["training"] == 3
    assert models.known("gpt-4o-2024-08-06")["training"] == 25
    assert models.known("my-gpt-4o") == {} == models.known("gpt")


def test_the_shut_down_date_of_a_model_is_known_if_announced():
    assert models.shut_down(MODEL) == datetime.date(2026, 10, 23)
    assert models.shut_down("house") is None
