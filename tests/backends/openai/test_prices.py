"""Prices in dollars per million tokens: from the parameters, or for OpenAI's own address from models.yaml."""

import datetime
from types import SimpleNamespace

import pytest

from stages import params
from stages.backends.openai.base import models
from stages.backends.openai.common import prices
from stages.backends.openai.common.prices import Plan, Prices
from stages.core.cli import UserError
from tests.conftest import set_params

# Training costs 8 dollars per million tokens.
MODEL = "gpt-3.5-turbo-0125"
OPENAI, OTHER, HERE = "https://api.openai.com/v1", "https://api.example.org/v1", "http://127.0.0.1:8000/v1"
LISTED = Prices("list", 8.0, 0.5, 1.5, 3.0, 6.0)


def check(tokens, epochs, limit, paid=LISTED, prompts=0, answers=0, base=True):
    knobs = SimpleNamespace(max_cost_usd=limit, model="house")
    prices.check(Plan(tokens, epochs, prompts, answers, base), paid, OTHER, knobs)


def of(url, **changed):
    if changed:
        set_params(**{f"openai__{name}": value for name, value in changed.items()})
    return Prices.of(url, params.load().openai)


@pytest.mark.parametrize("url", [OPENAI, "https://eu.api.openai.com/v1", "https://api.openai.com/v1?api-version=v1"])
def test_openai_s_prices_are_known_at_its_own_addresses(project, url):
    assert vars(of(url)) == vars(LISTED) | {"source": f"OpenAI's prices as of {models.table()['as_of']}"}
    assert isinstance(models.table()["as_of"], datetime.date)


@pytest.mark.parametrize(
    "url",
    [OTHER, "https://api.openai.com.example.org/v1", "https://notapi.openai.com.evil.org/v1", "https://10.0.0.7/v1"],
)
def test_openai_s_prices_are_not_taken_for_others_who_serve_a_model_of_that_name(project, url):
    assert vars(of(url)) == vars(Prices("unknown prices"))


@pytest.mark.parametrize("url", [HERE, "http://localhost:4000/v1", "http://[::1]:8000/v1"])
def test_a_service_on_this_machine_is_free_unless_prices_are_set(project, url):
    assert [of(url).training, of(url).tuned_output] == [0, 0] and "free" in of(url).source
    assert of(url, prices__training=3.0).missing(base=False) == [
        "openai.prices.tuned_input",
        "openai.prices.tuned_output",
    ]


def test_prices_of_the_parameters_come_before_the_table(project):
    found = of(OPENAI, prices__training=25.0)
    assert (found.source, found.training, found.tuned_output) == ("openai.prices", 25, 6)


def test_the_longest_matching_name_at_openai_counts(project):
    assert of(OPENAI, model="gpt-4o-mini-2024-07-18").training == 3
    assert of(OPENAI, model="gpt-4o-2024-08-06").training == 25
    assert of(OPENAI, model="my-gpt-4o").training is None


def test_every_epoch_is_paid(capsys):
    # 250,000 tokens in 3 epochs are 750,000; at 8 dollars per million, 6 dollars.
    check(250_000, 3, 6)
    shown = "openai: 250,000 tokens x 3 epochs with house, about $6.00; evaluation about $0.00 (list)"
    assert shown in capsys.readouterr().out
    with pytest.raises(UserError, match=r"training costs about \$6.00 and .*the limit of 5.99;.*Nothing was uploaded"):
        check(250_000, 3, 5.99)


def test_the_limit_is_on_the_sum_of_training_and_evaluation(capsys):
    # Prompts of 100,000 and answers of 50,000 tokens: base 0.05 + 0.075, tuned 0.3 + 0.3, both 0.725; training 6.
    check(250_000, 3, 6.73, prompts=100_000, answers=50_000)
    assert "about $6.00; evaluation about $0.72" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"evaluation \$0.72, together above the limit of 6.72;"):
        check(250_000, 3, 6.72, prompts=100_000, answers=50_000)
    # Without the base 0.6.
    check(250_000, 3, 6.61, prompts=100_000, answers=50_000, base=False)


def test_the_price_may_equal_the_limit():
    check(125_000, 1, 1)
    with pytest.raises(UserError, match="above the limit of 1;"):
        check(125_100, 1, 1)


def test_a_limit_of_zero_rejects_any_price_and_null_allows_any():
    with pytest.raises(UserError, match="above the limit of 0;"):
        check(1_000_000, 1, 0)
    check(10**12, 25, None)


@pytest.mark.parametrize(
    "paid, base, asked",
    [
        (
            Prices("x"),
            True,
            "training, openai.prices.base_input, openai.prices.base_output, openai.prices.tuned_input,",
        ),
        (Prices("x"), False, "training, openai.prices.tuned_input, openai.prices.tuned_output"),
        (Prices("x", training=1, tuned_input=1), False, "tuned_output"),
    ],
)
def test_unknown_prices_are_asked_for_in_one_line_if_there_is_a_limit(capsys, paid, base, asked):
    with pytest.raises(UserError) as error:
        check(10, 1, 5, paid, base=base)
    assert f"of house at {OTHER} are unknown: set openai.prices.{asked}" in str(error.value)
    assert "\n" not in str(error.value) and ".yaml" not in str(error.value)
    check(10, 2, None, paid, base=base)
    assert "10 tokens x 2 epochs with house, " in capsys.readouterr().out


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
    assert LISTED.of_training(1_239) == 0.0099
    assert LISTED.of_training(0) == 0
    assert LISTED.of_training(1_000_000_000) == 8000
    assert Prices("x").of_training(5) is None


def test_prompts_and_answers_have_separate_prices_for_each_model():
    # Dollars per million: tuned 3 and 6; base 0.5 and 1.5.
    assert LISTED.of_answers("tuned", 1_000_000, 500_000) == 6.0
    assert LISTED.of_answers("base", 500_000, 1_000_000) == 1.75
    # 3 x 0.000011 + 6 x 0.000007 = 0.000075.
    assert LISTED.of_answers("tuned", 11, 7) == pytest.approx(0.0001)
    assert Prices("x", base_input=1.0).of_answers("base", 5, 5) is None


def test_prices_survive_the_record_of_the_tuned_model():
    assert Prices.read(vars(LISTED)) == LISTED


@pytest.mark.parametrize(
    "described, date",
    [
        ({}, datetime.date(2026, 10, 23)),
        ({"shutdown_date": None}, datetime.date(2026, 10, 23)),
        ({"shutdown_date": "2027-05-01"}, datetime.date(2027, 5, 1)),
        ({"shutdown_date": "2027-05-01T12:00:00+00:00"}, datetime.date(2027, 5, 1)),
        # 2027-01-15 00:00 UTC.
        ({"shutdown_date": 1_799_971_200}, datetime.date(2027, 1, 15)),
        ({"shutdown_date": "soon"}, datetime.date(2026, 10, 23)),
        ({"shutdown_date": 1e300}, datetime.date(2026, 10, 23)),
    ],
)
def test_the_shut_down_date_is_the_service_s_and_else_that_of_openai_s_table(described, date):
    assert models.shut_down(MODEL, OPENAI, described) == date


def test_the_table_does_not_speak_for_other_services():
    assert models.shut_down(MODEL, OTHER) is None and models.shut_down("house", OPENAI) is None
    assert models.shut_down(MODEL, OTHER, {"shutdown_date": "2027-05-01"}) == datetime.date(2027, 5, 1)
