"""Finder of names: capitalised words that are neither the start of a sentence nor ordinary words; Latin script only."""

import re
from collections.abc import Iterator

from stages.metrics.fact_finders.amounts import Match
from stages.metrics.fact_finders.reading import Reading
from stages.metrics.fact_finders.vocabulary import WORDS

_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆČĎĐĒĖĘĚĞĢĪĮİĶĹĽŁŃŇŌŐŒŘŚŞŠŤŪŮŰŲŹŻŽ"
_LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"
_CAPITALISED = rf"[{_UPPER}][{_LETTER}]{{0,40}}(?:['’&][{_LETTER}]{{1,40}})?(?:-[{_LETTER}\d]{{1,40}}){{0,4}}"
_JOIN = r"(?:of|de|la|du|des|del|de la|de los|von|van|der|der|the|and the)"
# A dot within a name is that of a title or an initial.
_DOT = r"(?:(?:(?<=\b[A-Z])|(?<=\b(?:[DMS][rst]))|(?<=\b(?:Mrs|Sra)))\.)?"
# A name's words, and a number that belongs to it: Pier 2.
_NAME = re.compile(
    rf"(?<![\w@#/.'’-]){_CAPITALISED}(?:{_DOT}\s(?:{_JOIN}\s)?{_CAPITALISED}){{0,6}}(?:\s\d{{1,4}}(?![\w.,:]*\d))?(?![\w@])"
)
_WORD = re.compile(rf"[{_LETTER}\d][^\s]*")
# What is before the first word of a sentence, a line or a quotation.
_START = re.compile(
    r"(?:^|[.!?…:;¡¿\n。！？、|>•]|[^\x00-\u024f\u2010-\u201f\u20ac]|(?:^|\n)\s{0,20}[-*•–])[\s*_\"“„«‘'(\[\u00a0]{0,20}$"
)
_LOOK_BACK = 44

_TITLES, _ORDINARY, _COUNTED = (frozenset(WORDS[key].split()) for key in ("titles", "ordinary", "counted"))
_OPENERS = frozenset(word for words in WORDS["openers"].values() for word in words.split())
# They begin a name only by chance: the Gull Room, but Le Corbusier.
_ARTICLES = {
    "en": ("the",),
    "de": ("der", "die", "das", "dem", "den"),
    "fr": ("le", "la", "les"),
    "es": ("el", "la", "los"),
}
_STREET = re.compile(r"(?:straße|strasse|gasse|allee)$")
_SINGLE_AFTER = re.compile(
    r"(?:\b(?:Herrn?|Frau|Dr\.|Prof\.|Familie|Hotel|Restaurant|Café|nach|namens|heißt|Porter|porter|Kollege|Kollegin)\s)$"
)
_PAIR = re.compile(rf"\s(?:and|und|et|y|e|&)\s[{_UPPER}][a-zà-ÿ]")
_MAX_ACRONYM = 5


def names(reading: Reading) -> Iterator[Match]:
    """Names without article, title and the possessive's `'s`."""
    for match in _NAME.finditer(reading.text):
        words = [(word[0].rstrip("."), match.start() + word.start()) for word in _WORD.finditer(match[0])]
        words, opens = _without_openers(words, _opens_sentence(reading.text, match.start()), reading.language)
        last = words[-1][0] if words else ""
        if last.isdigit() and (
            len(words) == 1 or (len(words) == 2 and (words[0][0].lower() in _COUNTED or reading.language == "de"))
        ):
            continue
        if words and not last.isdigit() and last.lower() in _ORDINARY:
            words.pop()
        if words and _is_name([word for word, _ in words], opens, words[0][1], match.end(), reading):
            text = " ".join(word for word, _ in words)
            end = words[-1][1] + len(words[-1][0])
            possessive = 2 if text.endswith(("'s", "’s")) else 0
            yield "name", text[: len(text) - possessive], words[0][1], end - possessive


def _without_openers(words: list[tuple[str, int]], opens: bool, language: str) -> tuple[list[tuple[str, int]], bool]:
    """What is left of a name without the words before it, and whether it is still the start of the sentence."""
    lower = [word.lower() for word, _ in words]
    if language == "de" and "sie" in lower:  # Fragen Sie Anna
        words, opens = words[lower.index("sie") + 1 :], False
    while words:
        word = words[0][0].lower()
        imperative = language == "fr" and opens and word.endswith("ez")
        if not (
            imperative
            or word in _TITLES
            or word in _ORDINARY
            or (word in _OPENERS and (opens or word in _ARTICLES[language]))
        ):
            break
        words, opens = words[1:], False
        while words and words[0][0].islower():
            words = words[1:]
    return words, opens


def _opens_sentence(text: str, start: int) -> bool:
    before = text[max(0, start - _LOOK_BACK) : start]
    if not _START.search(before) and start:
        return False
    title = re.search(r"(\w+)\.\s$", before)
    return not (title and title[1].lower() in _TITLES)


def _is_name(words: list[str], opens: bool, start: int, end: int, reading: Reading) -> bool:
    if len(words) == 1:
        return _is_single_name(words[0], opens, start, end, reading)
    return any(not word.isupper() or word.isdigit() for word in words) or not opens


def _is_single_name(word: str, opens: bool, start: int, end: int, reading: Reading) -> bool:
    if word.lower() in _ORDINARY or len(word) < 2 or (word.isupper() and len(word) <= _MAX_ACRONYM):
        return False
    camel = any(map(str.isupper, word[1:])) and "-" not in word and not word.isupper()
    if camel:
        return True
    if reading.language == "de":  # where every noun is capitalised
        before = reading.text[max(0, start - _LOOK_BACK) : start]
        return bool(_STREET.search(word) and len(word) > 6 or _SINGLE_AFTER.search(before))
    if opens:
        return word.lower() not in _OPENERS and bool(_PAIR.match(reading.text, end))
    return True
