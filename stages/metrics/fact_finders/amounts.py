"""Finders of prices, quantities with a unit, and bare numbers."""

import functools
import re
from collections.abc import Iterator

from stages.metrics.fact_finders.numbers import BETWEEN, number_pattern, value_of, written
from stages.metrics.fact_finders.reading import Reading
from stages.metrics.fact_finders.vocabulary import (
    CURRENCY_CODES,
    CURRENCY_SIGNS,
    CURRENCY_WORDS,
    FLOORS,
    MAGNITUDES,
    alternatives,
    unit_of,
    unit_pattern,
)

Match = tuple[str, str, int, int]  # kind, value, start, end

_CURRENCIES = CURRENCY_SIGNS | CURRENCY_WORDS | {code: code for code in CURRENCY_CODES}
_ADJECTIVES = r"(?:(?:working|business|full|more|whole|short|calendar)\s)?"
_FLOOR = re.compile(
    rf"(?<![\w.,])(\d{{1,3}})(?:st|nd|rd|th|er|e|ème|\.|º|ª|°)?\s(?:{'|'.join(alternatives(FLOORS))})(?!\w)",
    re.IGNORECASE,
)
# In a list `1.` and `2)` are no facts.
_LIST_MARK = re.compile(r"(?:^|\n)\s{0,20}\d{1,3}[.)](?=\s)")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")


@functools.cache
def _price(language: str) -> re.Pattern[str]:
    number = number_pattern(language)
    magnitude = f"(?:{'|'.join(alternatives(MAGNITUDES))})"
    sign = "|".join(alternatives([*CURRENCY_SIGNS, *CURRENCY_CODES]))
    word = "|".join(alternatives(CURRENCY_WORDS))
    many = rf"(?:{number}{BETWEEN}){{0,2}}{number}"
    return re.compile(
        rf"(?<!\w)(?P<before>{sign})\s?(?P<first>{many})(?:\s?(?P<scale>(?i:{magnitude}))\b)?"
        rf"|(?P<second>{many})[\s-]?(?:(?P<scale2>(?i:{magnitude}))\s(?:d['’]|de )?)?"
        rf"(?P<after>(?:{sign}|(?i:{word}))(?!\w))"
    )


@functools.cache
def _quantity(language: str) -> re.Pattern[str]:
    number = number_pattern(language)
    return re.compile(
        rf"(?P<numbers>(?:{number}(?:{BETWEEN})){{0,3}}{number})[\s-]?{_ADJECTIVES}(?P<unit>{unit_pattern(language)})"
    )


def prices(reading: Reading) -> Iterator[Match]:
    """Amounts of money, as `2.5 EUR`; `$10 to 15` are two."""
    for match in _price(reading.language).finditer(reading.text):
        group = "first" if match["before"] else "second"
        name = match["before"] or match["after"]
        scale = MAGNITUDES.get((match["scale"] or match["scale2"] or "").lower(), 1)
        currency = _CURRENCIES.get(name) or _CURRENCIES[name.lower()]
        yield from _each(match, group, reading, currency, "price", scale)


def quantities(reading: Reading) -> Iterator[Match]:
    """Numbers with a unit or a floor, as `20 minute`; the unit of a range is that of both its ends."""
    for match in _FLOOR.finditer(reading.text):
        yield "quantity", f"{int(match[1])} floor", *match.span()
    for match in _quantity(reading.language).finditer(reading.text):
        yield from _each(match, "numbers", reading, unit_of(match["unit"], reading.language), "quantity")


def numbers(reading: Reading) -> Iterator[Match]:
    """Numbers with no unit."""
    marks = {match.end() - 1 for match in _LIST_MARK.finditer(reading.text)}
    for match in re.finditer(number_pattern(reading.language), reading.text):
        part_of_word = reading.text[match.end() : match.end() + 1].isalpha()
        if match.end() not in marks and (not part_of_word or _ORDINAL.match(reading.text, match.end())):
            yield "number", written(value_of(match[0], reading.language)), *match.span()


def _each(match: re.Match[str], group: str, reading: Reading, unit: str, kind: str, scale: int = 1) -> Iterator[Match]:
    """One fact for each number; the first and the last span include what is around them."""
    found = list(re.finditer(number_pattern(reading.language), match[group]))
    for at, number in enumerate(found):
        start = match.start(group) + number.start() if at else match.start()
        end = match.start(group) + number.end() if at < len(found) - 1 else match.end()
        yield kind, f"{written(value_of(number[0], reading.language) * scale)} {unit}", start, end
