"""Facts of an answer: what it states that can be right or wrong, such as prices, times and names."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

from stages.metrics.fact_finders import amounts, codes, contacts, dates, names, times
from stages.metrics.fact_finders.numbers import written
from stages.metrics.fact_finders.reading import Reading, language_of, with_digits
from stages.metrics.fact_finders.vocabulary import SCALES

# What is found first is not read again by those behind.
_BEFORE_DIGITS = (codes.inline_codes, contacts.emails, contacts.urls, contacts.accounts)
_FINDERS: tuple[Callable[[Reading], Iterator[amounts.Match]], ...] = (
    dates.numeric_dates,
    codes.forms,
    dates.named_dates,
    dates.days_of_week,
    contacts.phones,
    amounts.prices,
    times.times,
    dates.years,
    amounts.quantities,
    codes.called_codes,
    codes.mixed_codes,
    names.names,
    amounts.numbers,
)
# A surrogate, which is no text: text_to_num crashes on it.
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
# Without the country's code and the 0 before the area's, the same phone number has the same end.
_PHONE_END = 8
# How many facts with the same number are looked at for a bare one.
_SAME_NUMBER = 20


@dataclass(frozen=True)
class Fact:
    """A fact, `text[start:end]`. Two are equal if kind and value are, wherever they are found."""

    kind: str
    value: str
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Found:
    """Counts of distinct facts: `recalled` of those `wanted`, `right` of those `stated`, and the invented ones."""

    recalled: int
    wanted: int
    right: int
    stated: int
    invented: tuple[Fact, ...]


def facts(text: str) -> list[Fact]:
    """The facts of a text, in its order; what is said twice is there twice."""
    text = _HALF_A_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)
    reading = Reading(text, language_of(text))
    found = [fact for finder in _BEFORE_DIGITS for fact in _find(finder, reading)]
    with_digits(reading)
    found += [fact for finder in _FINDERS for fact in _find(finder, reading)]
    return sorted(found, key=lambda fact: (fact.start, fact.end))


def _find(finder: Callable[[Reading], Iterator[amounts.Match]], reading: Reading) -> Iterator[Fact]:
    """The facts of one finder, which are then blanked out; of two that overlap, the first."""
    spans: list[tuple[int, int]] = []
    at = 0
    for kind, value, start, end in sorted(finder(reading), key=lambda match: (match[2], -match[3])):
        if start >= at:
            spans.append((start, end))
            yield Fact(kind, value, *reading.span(start, end))
            at = end
    reading.blank(spans)


def compare(answer: str, reference: str, given: Sequence[str]) -> Found:
    """An answer's facts against those of the reference; what the messages before it (`given`) hold is not counted.

    Equal facts match first. Then a bare number matches a fact with a unit and the same number, each of them once; a
    name or a code matches where the other text has it in whatever place; and a name matches one that is part of it.
    """
    said, expected = _source(answer), _source(reference)
    stated, asked = unprompted(answer, given), unprompted(reference, given)
    right, recalled = _matched(stated, asked)
    right |= {fact for fact in stated if expected.mentions(fact)}
    recalled |= {fact for fact in asked if said.mentions(fact)}
    invented = tuple(fact for fact in stated if fact not in right)
    return Found(len(recalled), len(asked), len(right), len(stated), invented)


def unprompted(text: str, given: Sequence[str]) -> list[Fact]:
    """The distinct facts of a text that the messages before it do not hold."""
    before = _source("\n".join(given))
    return [fact for fact in _source(text).facts if not before.holds(fact)]


class _Source:
    """A text with its distinct facts."""

    def __init__(self, text: str) -> None:
        self._text, self._folded = text, f" {_folded(text)} "
        found = list(dict.fromkeys(facts(text)))
        # `Eleven is just right: check-out is by 11 am` is one fact.
        hours = {hour for fact in found if fact.kind == "time" for hour in _numbers(fact)}
        self.facts = [fact for fact in found if fact.kind != "number" or hours.isdisjoint(_numbers(fact))]
        self._keys = {_key(fact) for fact in found}
        self._numbers = {number for fact in found for number in _numbers(fact)}

    def holds(self, fact: Fact) -> bool:
        """Whether the text states a fact, no less precisely: `€2` holds the number 2, but `2` holds no price."""
        bare = fact.kind == "number" and not self._numbers.isdisjoint(_numbers(fact))
        return _key(fact) in self._keys or bare or self.mentions(fact)

    def mentions(self, fact: Fact) -> bool:
        """Whether the text has a name in any case, or a code to the letter, also where no fact was seen."""
        if fact.kind == "code":
            return re.search(rf"(?<!\w){re.escape(fact.value)}(?!\w)", self._text) is not None
        return fact.kind == "name" and f" {_folded(fact.value)} " in self._folded


# Each measure compares the same texts.
_source = lru_cache(maxsize=1024)(_Source)


def _folded(text: str) -> str:
    """Words in lower case between single spaces, without the possessive's `'s`."""
    return " ".join(re.findall(r"\w+", re.sub(r"['’]s\b", "", text.casefold())))


def _matched(stated: list[Fact], wanted: list[Fact]) -> tuple[set[Fact], set[Fact]]:
    """Those of both sides that match one of the other."""
    ours, theirs = {_key(fact) for fact in stated}, {_key(fact) for fact in wanted}
    right = {fact for fact in stated if _key(fact) in theirs}
    recalled = {fact for fact in wanted if _key(fact) in ours}
    names = {_folded(fact.value): fact for fact in wanted if fact.kind == "name"}
    open_ = _by_number(fact for fact in wanted if fact not in recalled)
    for fact in stated:
        if fact in right:
            continue
        parts = _parts(fact) & names.keys()
        partner = next((names[part] for part in sorted(parts)), None) or _take(fact, open_, recalled)
        if partner:
            right.add(fact)
            recalled.add(partner)
    return right, recalled


def _by_number(left: Iterable[Fact]) -> dict[Decimal, list[Fact]]:
    table: dict[Decimal, list[Fact]] = {}
    for fact in left:
        for number in _numbers(fact):
            table.setdefault(number, []).append(fact)
    return table


def _take(fact: Fact, left: dict[Decimal, list[Fact]], taken: set[Fact]) -> Fact | None:
    """A fact with the same number that nothing has matched yet, if one of the two is a bare number."""
    for number in _numbers(fact):
        for other in left.get(number, ())[:_SAME_NUMBER]:
            if other not in taken and "number" in (fact.kind, other.kind):
                return other
    return None


def _key(fact: Fact) -> tuple[str, str]:
    """What is equal for the same fact: `90 minute` and `1.5 hour`, a phone number with and without its country."""
    if fact.kind == "quantity":
        number, unit = fact.value.split(" ", 1)
        base, times_base = SCALES.get(unit, (unit, 1))
        return fact.kind, f"{written(Decimal(number) * Decimal(times_base))} {base}"
    if fact.kind == "phone":
        return fact.kind, fact.value[-_PHONE_END:] if len(fact.value) > _PHONE_END else fact.value
    return fact.kind, fact.value.casefold() if fact.kind == "name" else fact.value


def _parts(fact: Fact) -> set[str]:
    """A name's runs of words: `Copper Cod` is one of `Copper Cod Restaurant`."""
    words = _folded(fact.value).split() if fact.kind == "name" else []
    return {" ".join(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1)}


def _numbers(fact: Fact) -> tuple[Decimal, ...]:
    """What is left of a fact when its unit is missing: the number, of a full hour on either clock, of a year."""
    if fact.kind == "time":
        hour = int(fact.value[:2])
        return tuple(Decimal(h) for h in {hour, (hour - 1) % 12 + 1}) if fact.value.endswith(":00") else ()
    number = fact.value.split(" ")[0]
    countable = fact.kind in ("price", "quantity", "date", "code", "number") and re.fullmatch(r"\d+(?:\.\d+)?", number)
    return (Decimal(number),) if countable else ()
