"""Facts of a text: prices, quantities, times, dates, codes, telephone numbers, addresses, names and other numbers.

What a fact is, in which languages, and how well they are found is in docs/facts.md.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from stages.dataset import language
from stages.metrics import fact_kinds
from stages.metrics.fact_kinds import EITHER

# Characters of a text that are read.
_READ = 20_000
# Letters that show a language.
_LETTERS = 15
_BEGINS_SENTENCE = re.compile(r"(?:^|[.!?:;…\n\"“„«(\[*•]|\s[-–—])\s*$")
_CAPITAL = r"[^\W\d_a-zà-öø-ÿ][\w'’]{0,40}(?:-[\w'’]{1,40}){0,4}"
_NAME = re.compile(
    rf"(?<![\w'’-]){_CAPITAL}(?:(?:\s|\sof\s|\sof\sthe\s|\sde\s(?:la\s)?|\sdu\s)(?:{_CAPITAL}|\d{{1,4}}\b)){{0,5}}"
)
_ORDINARY_WORDS = """
    a an and are as at be before but by can come could dear did do does each every feel for free from gladly good
    great happy have hello here hi how i if in is it just let may most my no not of oh ok okay on one only our please
    perfect right sadly sir sorry sure thank thanks that the their there these they this those to today tomorrow tonight
    under unfortunately until very was we welcome what when where which while who why will wi-fi wifi with would yes you
    your madam mr mrs ms miss dr always anything also after all any both call during either feel give go gladly let's
    once or so some take tell then too up upon use we'll we're we've i'm i'll i've i'd it's that's there's you'll you're
    you've le la les un une des et ou est bonjour merci avec dans pour sur votre vous nous il elle je ce cette oui non
    el los las una y o es hola gracias con en para por su usted sí buenos buenas señor señora monsieur madame
"""
_ORDINARY = frozenset(_ORDINARY_WORDS.split())


@dataclass(frozen=True)
class Fact:
    """A fact: its kind, its value in one form, and its place in the text. Facts are equal by kind and value."""

    kind: str
    value: str
    start: int = field(compare=False)
    end: int = field(compare=False)


@dataclass(frozen=True)
class Found:
    """An answer's facts, counted once each: those of the reference that it has (`recalled` of `wanted`), and its own
    that are in the reference (`right` of `stated`); the others are `invented`. Facts of the prompt do not count.
    """

    recalled: int
    wanted: int
    right: int
    stated: int
    invented: tuple[Fact, ...]


@lru_cache(maxsize=4096)
def facts(text: str) -> tuple[Fact, ...]:
    """The facts of a text, in its order; of facts that overlap the first kind's is taken."""
    text = text[:_READ]
    taken = bytearray(len(text))
    found = []
    for kind, finder in _FINDERS.items():
        for start, end, value in finder(text):
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append(Fact(kind, value, start, end))
    return tuple(sorted(found, key=lambda fact: fact.start))


def _names(text: str) -> Iterator[fact_kinds.Hit]:
    """Capitalised words that are not at the beginning of a sentence, with what belongs to them: Pier 2, Isle of Skye.

    German writes all nouns in capitals, so that its names cannot be told from them.
    """
    if _GERMAN.search(text) and language.detect(text, _LETTERS) in ("de", None):
        return
    for hit in _NAME.finditer(text):
        start, end = hit.span()
        words = list(re.finditer(r"\S+", hit[0]))
        begins = bool(_BEGINS_SENTENCE.search(text, max(0, start - 8), start))
        while words and (_plain(words[0][0]) in _ORDINARY or (begins and _alone(words))):
            words, begins = words[1:], False
        while words and (_plain(words[-1][0]) in _ORDINARY or words[-1][0].isdigit() and len(words) == 1):
            words = words[:-1]
        if not words or (len(words) == 1 and _is_acronym(words[0][0])):
            continue
        yield (
            start + words[0].start(),
            start + words[-1].end(),
            name(text[start + words[0].start() : start + words[-1].end()]),
        )


_GERMAN = re.compile(r"\b(?:der|das|und|ist|nicht|für|wir|ihnen|ihr|sie|uhr|zum|zur|eine)\b", re.IGNORECASE)


def _alone(words: Sequence[re.Match[str]]) -> bool:
    """Whether there is one word, but for a number: Rooms 101."""
    return len(words) == 1 or all(word[0].isdigit() for word in words[1:])


def _plain(word: str) -> str:
    return word.casefold().replace("’", "'").strip("'")


def _is_acronym(word: str) -> bool:
    return word.isupper() and len(word) <= 5 or len(word) == 1


# A name may hold a number, and so takes its place before numbers.
_FINDERS = {**fact_kinds.FINDERS, "name": _names, "number": fact_kinds.numbers}


def name(text: str) -> str:
    """A name in one form: without case, white space and the possessive's end."""
    return re.sub(r"'s?$", "", " ".join(_plain(text).split()))


def compare(answer: str, reference: str, given: Sequence[str]) -> Found:
    """What an answer has of the reference's facts, and what it invents; `given` are the texts of the prompt."""
    known = _Text(given)
    expected, said = _Text([reference]), _Text([answer])
    expected_facts = wanted(reference, given)
    stated = [fact for fact in _distinct(facts(answer)) if fact not in known]
    right = [fact for fact in stated if fact in expected]
    return Found(
        recalled=sum(fact in said for fact in expected_facts),
        wanted=len(expected_facts),
        right=len(right),
        stated=len(stated),
        invented=tuple(fact for fact in stated if fact not in right),
    )


def wanted(reference: str, given: Sequence[str]) -> list[Fact]:
    """The facts of the reference that the prompt does not give."""
    known = _Text(given)
    return [fact for fact in _distinct(facts(reference)) if fact not in known]


class _Text:
    """What is said in some texts: a fact is in it as far as a human would say so."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._facts = [fact for text in texts for fact in facts(text)]
        self._words = " ".join(" ".join(_plain(text[:_READ]).split()) for text in texts)

    def __contains__(self, fact: Fact) -> bool:
        if fact.kind == "name":
            return bool(re.search(rf"(?<!\w){re.escape(fact.value)}(?!\w)", self._words))
        return any(_same(fact, other) for other in self._facts)


def _distinct(found: Sequence[Fact]) -> list[Fact]:
    return list(dict.fromkeys(found))


def _same(one: Fact, other: Fact) -> bool:
    """Whether two facts say the same: also 6 o'clock and 18:00, a date with and without its year, and 20 and 20 min."""
    if one == other:
        return True
    if one.kind == other.kind == "time":
        either = EITHER in one.value + other.value
        return either and _within_half_a_day(one.value) == _within_half_a_day(other.value)
    if one.kind == other.kind == "date":
        return one.value[-5:] == other.value[-5:] and len(one.value) != len(other.value)
    if "number" in (one.kind, other.kind) and one.kind != "name" != other.kind:
        return _amount(one) == _amount(other)
    return False


def _within_half_a_day(time: str) -> str:
    hours, minutes = time.rstrip(EITHER).split(":")
    return f"{int(hours) % 12}:{minutes}"


def _amount(fact: Fact) -> str:
    """The number in a fact: of a time on the hour, the hour."""
    if fact.kind == "time":
        hours, minutes = fact.value.rstrip(EITHER).split(":")
        return str(int(hours)) if minutes == "00" else fact.value
    return fact.value.partition(" ")[0]
