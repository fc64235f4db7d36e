"""Facts by kind with values worked out by hand, their comparison, and precision and recall on the labelled answers."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stages.metrics.facts import Fact, compare, facts

ROOT = Path(__file__).parents[2]
KINDS = ("price", "quantity", "time", "date", "code", "phone", "email", "url", "name", "number")
LABELLED = [
    json.loads(line) for line in Path(__file__).with_name("fact_answers.jsonl").read_text(encoding="utf-8").splitlines()
]


def found(text: str, *kinds: str) -> list[str]:
    return [fact.value for fact in facts(text) if fact.kind in kinds]


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("Breakfast is from 7 to 10:30 am.", ["07:00", "10:30"]),
        ("Hot from 2 to 9 pm.", ["14:00", "21:00"]),
        ("We serve lunch from 11 to 2 pm.", ["11:00", "14:00"]),
        ("Open from 10 to 2 am.", ["22:00", "02:00"]),
        ("Locked from midnight to 6 am.", ["00:00", "06:00"]),
        ("It opens at 12 pm and shuts at 12 am.", ["12:00", "00:00"]),
        ("At 6 o'clock in the evening.", ["18:00"]),
        ("At half past seven, or at a quarter to nine.", ["07:30", "08:45"]),
        ("Lunch is at one.", ["01:00"]),
        ("We like this one.", []),
        ("It is every hour on the hour from 7 am.", ["07:00"]),
        ("Served until 10:30 am, from 7 onwards.", ["10:30", "07:00"]),
        ("Von 8 bis 12 und 14 bis 18 Uhr ist die Kasse geöffnet.", ["08:00", "12:00", "14:00", "18:00"]),
        ("Wir beginnen um halb acht.", ["07:30"]),
        ("Le bar est ouvert de 18h30 à minuit.", ["18:30", "00:00"]),
        ("Cierra a las seis de la tarde.", ["18:00"]),
        ("Empieza a las siete y media.", ["07:30"]),
    ],
)
def test_times_are_given_on_the_clock_of_24_hours(text: str, times: list[str]) -> None:
    assert found(text, "time") == times


@pytest.mark.parametrize("text", ["It costs €2.50.", "It costs 2,50 €.", "It costs EUR 2.50.", "It costs 2.50 euros."])
def test_a_price_is_the_same_in_every_way_to_write_it(text: str) -> None:
    assert found(text, "price") == ["2.5 EUR"]


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("That is €18 a bag.", ["18 EUR"]),
        ("Between $10 and 15 for all.", ["10 USD", "15 USD"]),
        ("It was $1,299.00 then.", ["1299 USD"]),
        ("Das kostet 1.250,50 Euro für alle.", ["1250.5 EUR"]),
        ("Le virement est de 1 500 euros.", ["1500 EUR"]),
        ("It is about £1.2 million.", ["1200000 GBP"]),
        ("The fee is one hundred and fifty dollars.", ["150 USD"]),
        ("There is a 15-euro fee.", ["15 EUR"]),
    ],
)
def test_prices_have_an_amount_and_a_currency(text: str, prices: list[str]) -> None:
    assert found(text, "price") == prices


@pytest.mark.parametrize(
    ("text", "quantities"),
    [
        ("They come within twenty minutes.", ["20 minute"]),
        ("Warmed to 28 degrees.", ["28 degree"]),
        ("It is 28 °C warm.", ["28 degree"]),
        ("On the fifth floor.", ["5 floor"]),
        ("On the 5th floor.", ["5 floor"]),
        ("It takes three to five days.", ["3 day", "5 day"]),
        ("It takes half an hour.", ["30 minute"]),
        ("Es dauert eineinhalb Stunden, und wir sind im dritten Stock.", ["1.5 hour", "3 floor"]),
        ("La garantie est de deux ans.", ["2 year"]),
        ("Dura una hora y media.", ["1.5 hour"]),
        ("It is 55 x 40 x 20 cm.", ["55 centimeter", "40 centimeter", "20 centimeter"]),
        ("The rate is 4.25% a year.", ["4.25 percent"]),
    ],
)
def test_quantities_have_a_number_and_the_name_of_a_unit(text: str, quantities: list[str]) -> None:
    assert found(text, "quantity") == quantities


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("From June 3 to June 7.", ["--06-03", "--06-07"]),
        ("On the third of May 2026.", ["2026-05-03"]),
        ("Until 2026-05-03.", ["2026-05-03"]),
        ("Bis zum 03.05.2026 und vom 5. bis 9. Oktober.", ["2026-05-03", "--10-05", "--10-09"]),
        ("Le magasin est fermé le 1er mai.", ["--05-01"]),
        ("El 3 de mayo de 2026 no abrimos.", ["2026-05-03"]),
        ("It rests on Mondays, and in May.", ["monday", "--05"]),
        ("Open Mon-Fri.", ["monday", "friday"]),
        ("Founded in 1987.", ["1987"]),
        ("There is no 31 February.", ["--02"]),
        ("May I help you? We march on.", []),
        ("On 06/15/2026 and on 15/06/2026.", ["2026-06-15", "2026-06-15"]),
    ],
)
def test_dates_are_given_as_iso_8601_with_what_is_known_of_them(text: str, dates: list[str]) -> None:
    assert found(text, "date") == dates


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Served in the Gull Room, on Cooper's Lane.", ["Gull Room", "Cooper's Lane"]),
        ("The Copper Cod is our restaurant, the Foghorn our bar.", ["Copper Cod", "Foghorn"]),
        ("The boat leaves Pier 2, says our porter Tobias.", ["Pier 2", "Tobias"]),
        ("Gladly, Zoë! With pleasure! Right away, Señor Núñez!", ["Zoë", "Núñez"]),
        ("The Wi-Fi is free. The lantern desk is always lit for you. I'm glad.", []),
        ("Ask Dr. Weber at the Bank of Merrowick.", ["Weber", "Bank of Merrowick"]),
        ("Ask our porter Bo in room B, or online.", ["Bo"]),
        ("Send it to us Online, by Email.", []),
        ("Anna and Ben will help.", ["Anna", "Ben"]),
        ("Please and Tobias go together.", ["Tobias"]),
        ("Das Frühstück ist im Saal, sagt Frau Weber, in der Lindenstraße.", ["Weber", "Lindenstraße"]),
    ],
)
def test_names_are_capitalised_words_that_no_sentence_asks_for(text: str, names: list[str]) -> None:
    assert found(text, "name") == names


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("The network is Saltlantern-Guest and the password is lowtide77.", ["Saltlantern-Guest", "lowtide77"]),
        ("The night code 7315 opens it; the gate code is 4482.", ["7315", "4482"]),
        ("Das Passwort lautet ebbe2024.", ["ebbe2024"]),
        ("Run `dvc repro` with version 2.14.3, from gate B14.", ["dvc repro", "2.14.3", "B14"]),
        ("Your IBAN is DE89 3704 0044 0532 0130 00.", ["DE89370400440532013000"]),
        ("Your order arrives on the 21st, with 2 codes on it.", []),
    ],
)
def test_codes_are_kept_to_the_letter(text: str, codes: list[str]) -> None:
    assert found(text, "code") == codes


def test_contacts_lose_what_does_not_matter() -> None:
    text = "Call +44 20 7946 0958 or 020 7946 0959, write to Desk@Inn.example.com, see https://www.Example.com/Rates/."

    assert [(fact.kind, fact.value) for fact in facts(text)] == [
        ("phone", "+442079460958"),
        ("phone", "02079460959"),
        ("email", "desk@inn.example.com"),
        ("url", "example.com/Rates"),
    ]


@pytest.mark.parametrize(
    ("text", "phones"),
    [
        ("Call (212) 555-0123.", ["2125550123"]),
        ("In an emergency dial 112.", ["112"]),
        # Digits in no form that a country's numbers are written in.
        ("Your order is 2125550123.", []),
        ("Your order is 79460958 12.", []),
    ],
)
def test_digits_are_a_phone_number_only_in_a_form_that_people_write(text: str, phones: list[str]) -> None:
    assert found(text, "phone") == phones


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Rooms 101 to 103 have wide doors.", ["101", "103"]),
        ("Dogs are welcome, two at most. Take the one on the left.", ["2"]),
        ("There are 390,000 of them, or 390.5.", ["390000", "390.5"]),
        ("1. Sit down.\n2. Wait.", []),
        ("Es sind 1.000 Gäste und 2,5 Köche im Haus.", ["1000", "2.5"]),
        ("About a third of them left once.", []),
    ],
)
def test_bare_numbers_are_those_with_no_unit(text: str, numbers: list[str]) -> None:
    assert found(text, "number") == numbers


def test_a_fact_says_where_it_is_in_the_text_even_if_it_is_spelled_out() -> None:
    text = "Within twenty minutes, for €18 a bag, by half past seven at the Copper Cod; the code is 7315."

    assert [text[fact.start : fact.end] for fact in facts(text)] == [
        "twenty minutes",
        "€18",
        "half past seven",
        "Copper Cod",
        "7315",
    ]


@pytest.mark.parametrize("row", LABELLED[::10], ids=range(0, len(LABELLED), 10))
def test_facts_are_in_the_order_of_the_text_and_do_not_overlap(row: dict) -> None:
    spans = [(fact.start, fact.end) for fact in facts(row["text"])]

    assert all(0 <= start < end <= len(row["text"]) for start, end in spans)
    assert all(left_end <= right_start for (_, left_end), (right_start, _) in zip(spans, spans[1:], strict=False))


def test_facts_are_equal_by_kind_and_value_alone() -> None:
    assert Fact("time", "07:00", 3, 7) == Fact("time", "07:00", 10, 15)
    assert len({Fact("time", "07:00", 3, 7), Fact("time", "07:00", 10, 15), Fact("number", "7")}) == 2


def test_an_answer_without_facts_has_none_and_no_text_is_too_short() -> None:
    assert facts("The lantern desk is always lit, should you need anything.") == []
    assert facts("") == []
    assert compare("", "", []) == compare("Hello!", "Of course!", ["Good day!"])


def counts(answer: str, reference: str, *given: str) -> tuple[int, int, int, int]:
    result = compare(answer, reference, given)
    return result.recalled, result.wanted, result.right, result.stated


def test_what_an_answer_recalls_and_what_it_invents_are_counted_apart() -> None:
    reference = "The Wi-Fi is free: the network is Saltlantern-Guest and the password is lowtide77."
    answer = "The network is Saltlantern-Guest, the password is seagull42, and it costs €3."

    result = compare(answer, reference, [])

    assert (result.recalled, result.wanted, result.right, result.stated) == (1, 2, 1, 3)
    assert [(fact.kind, fact.value) for fact in result.invented] == [("code", "seagull42"), ("price", "3 EUR")]
    assert answer[result.invented[0].start : result.invented[0].end] == "seagull42"


def test_what_the_prompt_says_is_neither_wanted_nor_stated() -> None:
    given = ["You are Maren of the Saltlantern Hotel.", "Wake me at 6 am in room 212, please."]

    assert counts("Maren will call 212 at 6 am.", "Your call to 212 is noted for 6:00 am, by Ines.", *given) == (
        0,
        1,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("It opens at 6 pm.", "It opens at 18:00."),
        ("It opens at 6 o'clock in the evening.", "It opens at 6 pm."),
        ("It costs 2,50 €.", "It costs EUR 2.50."),
        ("It costs 18 for a bag.", "It costs €18 a bag."),
        ("It costs €18 a bag.", "It costs 18 for a bag."),
        ("It takes 90 minutes.", "It takes one and a half hours."),
        ("Meet at 6: bring a towel.", "Meet at 6 am."),
        ("Tobias will help you.", "Ask our porter Tobias."),
        ("Dinner is at the Copper Cod Restaurant.", "Dinner is at the Copper Cod."),
        ("Dinner is at the copper cod.", "Dinner is at the Copper Cod."),
        ("Call 020 7946 0958.", "Call +44 20 7946 0958."),
        ("You need number 7315.", "The code is 7315."),
        ("It is on the 5th floor.", "It is on the fifth floor."),
        ("Das Zimmer kostet fünfundzwanzig Euro.", "La chambre coûte vingt-cinq euros."),
    ],
)
def test_a_fact_in_other_words_is_right(answer: str, reference: str) -> None:
    result = compare(answer, reference, [])

    assert (result.recalled, result.wanted, result.invented) == (1, 1, ())


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("It opens at 6 am.", "It opens at 6 pm."),
        ("It costs $18 a bag.", "It costs €18 a bag."),
        ("It takes 20 hours.", "It takes 20 minutes."),
        ("The password is LOWTIDE77.", "The password is lowtide77."),
        ("It is on the fourth floor.", "It is on the fifth floor."),
        ("Call +44 20 7946 0959.", "Call +44 20 7946 0958."),
        ("Ask our porter Tomas.", "Ask our porter Tobias."),
    ],
)
def test_another_value_is_invented(answer: str, reference: str) -> None:
    result = compare(answer, reference, [])

    assert (result.recalled, result.right, result.stated, len(result.invented)) == (0, 0, 1, 1)


def test_a_bare_number_is_right_for_one_fact_only() -> None:
    # One 2 cannot be both the price and the minutes.
    assert counts("It is 2 for you.", "It is €2 for 2 minutes.") == (1, 2, 1, 1)


def test_a_bare_number_in_the_prompt_does_not_give_a_price_away() -> None:
    assert counts("A ticket is €2.", "A ticket is €2.", "Tickets for 2, please!") == (1, 1, 1, 1)
    assert counts("For 2 of you.", "For 2 of you.", "I have €2.") == (0, 0, 0, 0)


def test_an_hour_said_twice_is_one_fact() -> None:
    assert counts("By 11 am.", "Eleven is just right: check-out is by 11 am.") == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "piece",
    [
        "1 to ",
        "1-",
        "1,",
        "12:",
        "A ",
        "Ab of ",
        "a@",
        "a.",
        "twenty ",
        "code is a ",
        "`",
        "(020) ",
        "DE89 3704 ",
        "May 1 to ",
    ],
)
def test_a_hostile_text_of_100_kb_is_read_to_its_end(piece: str) -> None:
    text = (piece * 100_000)[:100_000] + "\nIt costs €18."

    assert facts(text)[-1].value == "18 EUR"


def test_hostile_texts_can_be_compared() -> None:
    many = " ".join(f"{number}" for number in range(17_000))

    result = compare(many, many, [])

    assert (result.recalled, result.wanted, result.right, result.stated) == (17_000,) * 4


Pairs = set[tuple[str, str]]


def stated_and_labelled(row: dict) -> tuple[Pairs, Pairs]:
    return {(fact.kind, fact.value) for fact in facts(row["text"])}, {(kind, value) for kind, value in row["facts"]}


def measured(rows: list[dict], kind: str = "") -> tuple[float, float, int]:
    """Precision and recall over the distinct facts of all answers, kind and value exact, and how many are labelled."""
    right = stated = labelled = 0
    for row in rows:
        got, expected = ({fact for fact in side if kind in ("", fact[0])} for side in stated_and_labelled(row))
        right, stated, labelled = right + len(got & expected), stated + len(got), labelled + len(expected)
    return right / max(stated, 1), right / max(labelled, 1), labelled


def split_rows(held_out: bool, language: str = "") -> list[dict]:
    return [row for row in LABELLED if row["held_out"] is held_out and language in ("", row["language"])]


@pytest.mark.parametrize(("held_out", "precision", "recall"), [(False, 0.97, 0.965), (True, 0.92, 0.91)])
def test_the_labelled_answers_are_read_as_people_read_them(held_out: bool, precision: float, recall: float) -> None:
    got_precision, got_recall, _ = measured(split_rows(held_out))

    assert got_precision >= precision
    assert got_recall >= recall


def table_row(name: str, kind: str = "", language: str = "") -> str:
    cells = []
    for held_out in (False, True):
        precision, recall, labelled = measured(split_rows(held_out, language), kind)
        cells += [f"{precision:.0%}", f"{recall:.0%}", str(labelled)] if labelled else ["", "", "0"]
    return f"| {name} | {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("name", "kind", "language"),
    [
        ("**all**", "", ""),
        *((kind, kind, "") for kind in KINDS),
        *(
            (name, "", code)
            for name, code in (("English", "en"), ("German", "de"), ("French", "fr"), ("Spanish", "es"))
        ),
    ],
)
def test_the_documented_figures_are_the_measured_ones(name: str, kind: str, language: str) -> None:
    page = (ROOT / "docs/facts.md").read_text(encoding="utf-8")

    assert table_row(name, kind, language) in page.splitlines()


def test_the_labelled_set_is_large_and_has_all_kinds_and_languages() -> None:
    kinds = Counter(kind for row in LABELLED for kind, _ in row["facts"])

    assert len(LABELLED) >= 150
    assert sum(row["held_out"] for row in LABELLED) >= 50
    assert {row["language"] for row in LABELLED} == {"en", "de", "fr", "es"}
    assert set(kinds) == set(KINDS)
    assert sum(not row["facts"] for row in LABELLED) >= 15


def test_facts_beside_half_a_character_are_found():
    assert [(fact.kind, fact.value) for fact in facts("\ud800 at 6 pm")] == [("time", "18:00")]
