"""Prices of OpenAI's models: dollars for a million tokens, as stages/backends/openai/models.yaml has them."""

import datetime
from types import SimpleNamespace

import pytest

from stages.backends.openai import prices
from stages.command import UserError

# A training token of it costs 8 dollars a million.
MODEL = "gpt-3.5-turbo-0125"


def estimate(tokens, epochs, limit, model=MODEL):
    prices.estimate(model, tokens, epochs, SimpleNamespace(max_cost_usd=limit))


def test_every_epoch_is_paid(capsys):
    # 250,000 tokens in 3 epochs are 750,000, at 8 dollars a million 6 dollars.
    estimate(250_000, 3, 6)
    assert "openai: 250,000 tokens x 3 epochs of gpt-3.5-turbo-0125, about $6.00 (prices of " in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"costs about \$6.00, more than openai.max_cost_usd 5.99;.*Nothing was uploaded"
    ):
        estimate(250_000, 3, 5.99)


def test_the_price_may_be_as_high_as_the_limit():
    estimate(125_000, 1, 1)
    with pytest.raises(UserError, match="more than openai.max_cost_usd 1;"):
        estimate(125_100, 1, 1)


def test_a_limit_of_zero_forbids_a_price_and_a_limit_of_null_allows_any():
    with pytest.raises(UserError, match="more than openai.max_cost_usd 0;"):
        estimate(1_000_000, 1, 0)
    estimate(10**12, 25, None)


def test_an_unknown_price_cannot_be_limited(capsys):
    with pytest.raises(
        UserError, match=r"^the price of house is not known, so openai.max_cost_usd 0 .* models.yaml in"
    ):
        estimate(10, 1, 0, "house")
    estimate(10, 2, None, "house")
    assert "openai: 10 tokens x 2 epochs of house, an unknown price" in capsys.readouterr().out


def test_the_day_of_the_prices_is_told(capsys):
    estimate(10, 1, None)
    day = prices._table()["as_of"]
    assert isinstance(day, datetime.date) and f"(prices of {day})" in capsys.readouterr().out


@pytest.mark.parametrize(
    "epochs, examples, expected",
    [
        (1, 1, 1),
        # Three epochs of 34 examples are 102, of 33 fewer than the 100 that should be seen: 100 // 33 = 3.
        ("auto", 34, 3),
        ("auto", 33, 3),
        # 100 // 25 = 4, 100 // 24 = 4, 100 // 20 = 5.
        ("auto", 25, 4),
        ("auto", 20, 5),
        # 100 // 4 = 25; fewer examples would be seen more often than 25 times.
        ("auto", 4, 25),
        ("auto", 3, 25),
        ("auto", 5, 20),
        # Three epochs of 8,333 examples are 24,999; of 8,334 they are 25,002, more than 25,000: 25,000 // 8,334 = 2.
        ("auto", 8_333, 3),
        ("auto", 8_334, 2),
        ("auto", 12_500, 2),
        ("auto", 12_501, 1),
        ("auto", 25_001, 1),
    ],
)
def test_the_epochs_of_auto_are_guessed_at_each_boundary(epochs, examples, expected):
    assert prices.guessed_epochs(epochs, examples) == expected


def test_a_price_has_four_decimals():
    # 8 dollars x 1,239 / 1,000,000 = 0.009912.
    assert prices.training(MODEL, 1_239) == 0.0099
    assert prices.training(MODEL, 0) == 0
    assert prices.training(MODEL, 1_000_000_000) == 8000


def test_prompts_and_answers_have_prices_of_their_own_for_each_model():
    # Tuned: 3 and 6 dollars a million; base: 0.5 and 1.5.
    assert prices.answers(MODEL, "tuned", 1_000_000, 500_000) == 6.0
    assert prices.answers(MODEL, "base", 500_000, 1_000_000) == 1.75
    # 3 x 0.000011 + 6 x 0.000007 = 0.000075.
    assert prices.answers(MODEL, "tuned", 11, 7) == pytest.approx(0.0001)
    assert prices.answers("house", "base", 5, 5) is None


def test_the_longest_name_that_begins_the_model_s_is_meant():
    assert prices.known("gpt-4o-mini-2024-07-18")["training"] == 3
    assert prices.known("gpt-4o-2024-08-06")["training"] == 25
    assert prices.known("my-gpt-4o") == {} == prices.known("gpt")


def test_the_last_day_of_a_model_is_known_as_far_as_it_is_announced():
    assert prices.shut_down(MODEL) == datetime.date(2026, 10, 23)
    assert prices.shut_down("house") is None
