"""Facts of texts: worked out by hand, and measured on answers that were labelled by hand."""

import json
from collections import Counter

import pytest

from stages.metrics import facts
from stages.metrics.facts import Fact, Found
from tests.conftest import ROOT

LABELLED = [json.loads(line) for line in (ROOT / "tests/metrics/fact_answers.jsonl").read_text("utf-8").splitlines()]


def found(text):
    return [(fact.kind, fact.value) for fact in facts.facts(text)]


@pytest.mark.parametrize(
    "text, values",
    [
        ("It opens at 6 pm.", ["18:00"]),
        ("It opens at 18:00.", ["18:00"]),
        ("from 7 to 10:30 am", ["07:00", "10:30"]),
        ("hot from 2 to 9 pm", ["14:00", "21:00"]),
        # The start is before the end, so it cannot be in the evening.
        ("from 9 to 5 pm", ["09:00", "17:00"]),
        ("from 11 am to 11 pm", ["11:00", "23:00"]),
        ("at 12 am and 12 pm", ["00:00", "12:00"]),
        ("from noon to midnight", ["12:00", "00:00"]),
        ("at half past seven", ["07:30?"]),
        ("a quarter to nine", ["08:45?"]),
        ("at six in the evening", ["18:00"]),
        ("um 18 Uhr", ["18:00"]),
        ("à 18h30", ["18:30"]),
        ("a las seis de la tarde", ["18:00"]),
    ],
)
def test_times_are_those_of_a_clock_of_24_hours(text, values):
    assert found(text) == [("time", value) for value in values]


@pytest.mark.parametrize(
    "text, value",
    [
        ("€2.50", "2.5 EUR"),
        ("2,50 €", "2.5 EUR"),
        ("EUR 2.50", "2.5 EUR"),
        ("$1,200", "1200 USD"),
        ("1.200 Euro", "1200 EUR"),
        ("£1,234.56", "1234.56 GBP"),
        ("twelve dollars", "12 USD"),
        ("CHF 45", "45 CHF"),
    ],
)
def test_prices_have_an_amount_and_a_currency(text, value):
    assert found(text) == [("price", value)]


@pytest.mark.parametrize(
    "text, fact",
    [
        ("within twenty minutes", ("quantity", "20 minute")),
        ("in twenty-five minutes", ("quantity", "25 minute")),
        ("fünfundzwanzig Minuten", ("quantity", "25 minute")),
        ("28 degrees", ("quantity", "28 celsius")),
        ("on the fifth floor", ("quantity", "5 floor")),
        ("on the 5th floor", ("quantity", "5 floor")),
        ("the ground floor", ("quantity", "0 floor")),
        ("25% off", ("quantity", "25 percent")),
        ("on 3 May 2026", ("date", "2026-05-03")),
        ("on May 3, 2026", ("date", "2026-05-03")),
        ("am 3. Mai 2026", ("date", "2026-05-03")),
        ("closed on Mondays", ("date", "monday")),
        ("code 7315", ("code", "7315")),
        ("password lowtide77", ("code", "lowtide77")),
        ("call +44 20 7946 0958", ("phone", "+442079460958")),
        ("write to Desk@Hotel.example", ("email", "desk@hotel.example")),
        ("see https://www.hotel.example/a/.", ("url", "hotel.example/a")),
        ("it is in the Gull Room", ("name", "gull room")),
        ("leaves from Pier 2", ("name", "pier 2")),
        ("it is on Cooper's Lane", ("name", "cooper's lane")),
        ("two at most", ("number", "2")),
    ],
)
def test_other_facts_have_one_form(text, fact):
    assert found(text) == [fact]


@pytest.mark.parametrize(
    "text", ["The lantern desk is always lit for you.", "Gladly! Of course.", "I'm so sorry. Wi-Fi is free, OK?", ""]
)
def test_some_texts_have_no_facts(text):
    assert found(text) == []


def test_german_nouns_are_no_names():
    assert found("Das Frühstück ist im Saal und der Wein steht auf dem Tisch.") == []


def test_a_fact_has_its_place_and_is_equal_wherever_it_is():
    text = "Pay €4, then €4."
    first, second = facts.facts(text)
    assert (text[first.start : first.end], text[second.start : second.end]) == ("€4", "€4")
    assert first == second == Fact("price", "4 EUR", 0, 0) != Fact("price", "5 EUR", 0, 0)


REFERENCE = "Breakfast is from 7 to 10:30 am in the Gull Room, for €12."


@pytest.mark.parametrize(
    "answer, recalled, right, stated, invented",
    [
        (REFERENCE, 4, 4, 4, []),
        ("From 7 am until 10:30 in the gull room; it is 12 euros.", 4, 3, 3, []),
        ("Breakfast is until 11 am.", 0, 0, 1, ["11:00"]),
        ("It is in the Gull Room, for €14.", 1, 1, 2, ["14 EUR"]),
        ("", 0, 0, 0, []),
        # Said twice is said once.
        ("€12, just €12, not €13 or €13.", 1, 1, 2, ["13 EUR"]),
    ],
)
def test_an_answer_is_compared_with_its_reference(answer, recalled, right, stated, invented):
    result = facts.compare(answer, REFERENCE, [])
    assert (result.recalled, result.wanted, result.right, result.stated) == (recalled, 4, right, stated)
    assert [fact.value for fact in result.invented] == invented


def test_facts_of_the_prompt_are_neither_wanted_nor_invented():
    given = ["You are at the Gull Inn.", "Please wake me at six in room 212."]
    result = facts.compare("The Gull Inn wakes room 212 at 6 am.", "Your call is noted for 6 am.", given)
    assert result == Found(0, 0, 0, 0, ())


@pytest.mark.parametrize(
    "answer, reference, same",
    [
        ("at 6 o'clock", "at 18:00", True),
        ("at 7 am", "at 7 pm", False),
        ("on May 3", "on May 3, 2026", True),
        ("on May 3, 2025", "on May 3, 2026", False),
        ("it takes 20", "it takes 20 minutes", True),
        ("it takes 20 hours", "it takes 20 minutes", False),
        ("room 103", "rooms 101 to 103", True),
    ],
)
def test_what_a_human_would_take_for_the_same_is_the_same(answer, reference, same):
    assert (facts.compare(answer, reference, []).invented == ()) is same


def scores(held_out):
    """Precision and recall on the labelled answers."""
    counts = Counter()
    for one in LABELLED:
        if one["held_out"] == held_out:
            wanted, seen = {tuple(fact) for fact in one["facts"]}, set(found(one["text"]))
            counts += Counter(right=len(wanted & seen), wanted=len(wanted), found=len(seen))
    return counts["right"] / counts["found"], counts["right"] / counts["wanted"]


@pytest.mark.parametrize("held_out, precision, recall", [(False, 0.93, 0.94), (True, 0.89, 0.92)])
def test_labelled_answers_have_the_facts_that_a_human_finds(held_out, precision, recall):
    measured = scores(held_out)
    assert len(LABELLED) >= 150 and measured[0] >= precision and measured[1] >= recall


@pytest.mark.parametrize("text", ["1" * 100_000, "A " * 50_000, "1:1" * 30_000, "a1-" * 30_000, "9 to " * 20_000])
def test_a_hostile_text_is_read_to_a_limit(text):
    assert all(fact.end <= 20_000 for fact in facts.facts(text))
