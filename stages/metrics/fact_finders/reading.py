"""A text made ready for finding facts: its language, and its number words as digits."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from text_to_num import Token, find_numbers

from stages.metrics.fact_finders.numbers import written
from stages.metrics.fact_finders.vocabulary import (
    CURRENCY_WORDS,
    FLOORS,
    LANGUAGES,
    MAGNITUDES,
    WORDS,
    months,
    units,
    weekdays,
)

_WORD = re.compile(r"[^\W\d_]+")
# Letters, digits or a sign: hyphens only join the words of a number.
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s-]")
# How many of a text's words decide its language.
_ENOUGH = 400

# `find_numbers` reads the o of `o'clock` as a zero.
_NO_NUMBERS = {"o", "oh", "ones"}
_ONE, _BEFORE_TIME, _BEFORE_PRONOUN, _AFTER_PRONOUN = (
    frozenset(WORDS[key].split()) for key in ("one", "before_time", "before_pronoun", "after_pronoun")
)

# What is said of numbers without naming them: as digits, in words that the finders read.
_PHRASES = {
    "en": [
        (r"\bhalf an hour\b", "30 minutes"),
        (r"\ba quarter of an hour\b", "15 minutes"),
        (r"\b(?:one and a half hours|an hour and a half)\b", "1.5 hours"),
        (r"\ba fortnight\b", "2 weeks"),
        (r"\ba couple of\b", "2"),
        (r"\ba dozen\b", "12"),
        (r"\b(?<=within )an?(?= (?:hour|day|week|month|minute|year)\b)", "1"),
        (r"\ban(?= hour (?:earlier|later|before|after|and a half|long)\b)", "1"),
        (r"\bground floor\b", "0 floor"),
    ],
    "de": [
        (r"\b(?:eine |einer )?halben? Stunde\b", "30 Minuten"),
        (r"\b(?:eine |einer )?Viertelstunde\b", "15 Minuten"),
        (r"\b(?:anderthalb|eineinhalb)\b", "1,5"),
        (r"\bzweieinhalb\b", "2,5"),
        (r"\bdreieinhalb\b", "3,5"),
        (r"\bErdgeschoss\b", "0 Etage"),
        (r"(?<=\b(?:zwei|drei|vier|fünf))mal\b", " mal"),
    ],
    "fr": [
        (r"\b(?:une )?demi-heure\b", "30 minutes"),
        (r"\b(?:un )?quart d['’]heure\b", "15 minutes"),
        (r"\b(?:une )?quinzaine de jours\b", "2 semaines"),
        (r"\brez-de-chaussée\b", "0 étage"),
    ],
    "es": [
        (r"\bmedia hora\b", "30 minutos"),
        (r"\b(?:un )?cuarto de hora\b", "15 minutos"),
        (r"\bplanta baja\b", "0 piso"),
    ],
}
# Parts of an hour and of a number, once number words are digits.
_FRACTIONS = {
    "en": [
        (r"\bhalf past (\d{1,2})\b", lambda m: f"{m[1]}:30"),
        (r"\b(?:a )?quarter past (\d{1,2})\b", lambda m: f"{m[1]}:15"),
        (r"\b(?:a )?quarter to (\d{1,2})\b", lambda m: _before(m[1], 15)),
        (r"\b(5|10|20|25)(?: minutes)? past (\d{1,2})\b", lambda m: f"{m[2]}:{int(m[1]):02}"),
        (r"(?<!from )\b(5|10|20|25)(?: minutes)? to midnight\b", lambda m: _before("24", int(m[1]))),
        (r"(?<!from )\b(5|10|20|25)(?: minutes)? to noon\b", lambda m: _before("12", int(m[1]))),
        (r"\b(\d{1,3}) and a half\b", lambda m: f"{m[1]}.5"),
        (r"\b(\d{1,3}) (hours?|days?|weeks?|years?|months?) and a half\b", lambda m: f"{m[1]}.5 {m[2]}"),
    ],
    "de": [
        (r"\b[Hh]alb (\d{1,2})\b", lambda m: _before(m[1], 30)),
        (r"\b(\d{1,4}) (Euro|Franken) (\d\d)\b", lambda m: f"{m[1]},{m[3]} {m[2]}"),
        (r"\b[Vv]iertel nach (\d{1,2})\b", lambda m: f"{m[1]}:15"),
        (r"\b[Vv]iertel vor (\d{1,2})\b", lambda m: _before(m[1], 15)),
    ],
    "fr": [
        (r"\b(\d{1,2}) heures? et demie\b(?! de)", lambda m: f"{m[1]} h 30"),
        (r"\b(\d{1,2}) heures? ([0-5]\d)\b", lambda m: f"{m[1]} h {m[2]}"),
        (r"\b(\d{1,4}) (euros?|francs?) (\d\d)\b", lambda m: f"{m[1]},{m[3]} {m[2]}"),
        (r"\b(\d{1,2}) heures? et quart\b", lambda m: f"{m[1]} h 15"),
        (r"\b(\d{1,2}) heures? moins le quart\b", lambda m: _before(m[1], 15)),
        (r"\b(\d{1,3}) (ans?|mois|jours?|semaines?) et demie?\b", lambda m: f"{m[1]},5 {m[2]}"),
    ],
    "es": [
        (r"\b(\d{1,4}) (euros?) con (\d\d)\b", lambda m: f"{m[1]},{m[3]} {m[2]}"),
        (r"(?<=\blas )(\d{1,2}) y media\b", lambda m: f"{m[1]}:30"),
        (r"(?<=\blas )(\d{1,2}) y cuarto\b", lambda m: f"{m[1]}:15"),
        (r"(?<=\blas )(\d{1,2}) menos cuarto\b", lambda m: _before(m[1], 15)),
        (r"\b(\d{1,3}) (horas?|días?|semanas?|años?|mes(?:es)?) y medi[ao]\b", lambda m: f"{m[1]},5 {m[2]}"),
    ],
}


def _before(hour: str, minutes: int) -> str:
    at = (int(hour) * 60 - minutes) % (24 * 60)
    return f"{at // 60}:{at % 60:02}"


@dataclass
class Reading:
    """A text on its way to facts: what has been found is blanked out, and what was rewritten knows where it comes from.

    `text[i]` was made of `source[starts[i]:ends[i]]`.
    """

    text: str
    language: str = "en"
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts = list(range(len(self.text)))
        self.ends = list(range(1, len(self.text) + 1))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a part of the reading is in the source."""
        return self.starts[start], self.ends[end - 1]

    def blank(self, spans: list[tuple[int, int]]) -> None:
        """Take out what has been found, so that no other finder reads it."""
        parts, at = [], 0
        for start, end in sorted(spans):
            parts += [self.text[at:start], "\0" * (end - max(start, at))]
            at = max(at, end)
        self.text = "".join(parts) + self.text[at:]

    def replace(self, changes: list[tuple[int, int, str]]) -> None:
        """Rewrite parts that do not overlap, in order."""
        parts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for start, end, new in changes:
            parts += [self.text[at:start], new]
            first, last = self.span(start, end)
            starts += self.starts[at:start] + [first] * len(new)
            ends += self.ends[at:start] + [last] * len(new)
            at = end
        self.text = "".join(parts) + self.text[at:]
        self.starts, self.ends = starts + self.starts[at:], ends + self.ends[at:]

    def rewrite(self, pattern: str, new: str | Callable[[re.Match[str]], str]) -> None:
        """Rewrite every match of a pattern."""
        matches = re.finditer(pattern, self.text)
        self.replace([(*m.span(), new if isinstance(new, str) else new(m)) for m in matches])


def language_of(text: str) -> str:
    """The language that most words of a text belong to; English where none is ahead."""
    words = [match[0].lower() for match, _ in zip(_WORD.finditer(text), range(_ENOUGH), strict=False)]
    return max(LANGUAGES, key=lambda code: sum(word in _known(code) for word in words))


@functools.cache
def _known(language: str) -> frozenset[str]:
    return frozenset([*WORDS["frequent"][language].split(), *units(language), *months(language), *weekdays(language)])


def with_digits(reading: Reading) -> None:
    """Write the number words of a reading as digits: `twenty-five`, `half past seven`, `une demi-heure`."""
    for pattern, new in _PHRASES[reading.language]:
        reading.rewrite(f"(?i:{pattern})", new)
    tokens = [_Word(match) for match in _TOKEN.finditer(reading.text)]
    changes = []
    for number in find_numbers(tokens, reading.language, threshold=0):
        if _is_number(tokens, number.start, number.end, number.is_ordinal, reading.language):
            value = written(Decimal(repr(number.value)))
            changes.append((tokens[number.start].start, tokens[number.end - 1].end, value))
    reading.replace(changes)
    for pattern, fraction in _FRACTIONS[reading.language]:
        reading.rewrite(pattern, fraction)


class _Word(Token):
    """A token as `find_numbers` wants it; digits are numbers already."""

    def __init__(self, match: re.Match[str]) -> None:
        self.word, self.start, self.end = match[0], match.start(), match.end()

    def text(self) -> str:
        return self.word

    def text_lowercase(self) -> str:
        return self.word.lower()

    def not_a_number_part(self) -> bool:
        return not self.word.isalpha()


def _is_number(tokens: list[_Word], start: int, end: int, ordinal: bool, language: str) -> bool:
    after = tokens[end].text_lowercase() if end < len(tokens) else ""
    before = tokens[start - 1].text_lowercase() if start else ""
    if ordinal:
        then = tokens[end + 1].text_lowercase() if end + 1 < len(tokens) else ""
        return after in FLOORS or after in months(language) or (after == "of" and then in months(language))
    word = tokens[start].text_lowercase()
    if word in _NO_NUMBERS or (end - start == 1 and word in MAGNITUDES):
        return False
    if end - start > 1 or word not in _ONE:
        return True
    if word == "one" and not after.isalpha():
        return before in _BEFORE_TIME
    if word == "one":
        return before not in _BEFORE_PRONOUN and after not in _AFTER_PRONOUN
    return before == "la" or after in units(language) or after in CURRENCY_WORDS
