"""Finders of what should not be in a text: secrets, broken characters, leftovers of templates."""

import itertools
import re
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from ftfy.badness import BADNESS_RE
from phonenumbers import Leniency, PhoneNumberMatcher

from stages.dataset import cards, keys, placeholders
from stages.dataset.cards import Span
from stages.dataset.values import find_no_value


class Finder(Protocol):
    """Finds the first fault of its kind from `start` on."""

    def __call__(self, text: str, start: int = 0) -> Span | None: ...


# How many phone numbers of one message are looked at.
_CANDIDATES = 100

# Every repetition is bounded or gives nothing back, so that no text makes a search take more than linear time.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}")
_DIGITS = re.compile(r"[+(]{0,2}\d(?:[ ./()-]{0,3}\d){6,18}")
# Without a country's code a number only counts in a form that people write: (212) 555-0123, 020 7946 0958.
_NATIONAL = re.compile(r"\(\d{2,5}\)|0\d{1,4}[ -]|\d{3}[-. ]\d{3}[-. ]\d{4}$")
_DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{2,4}\b")
# Whose numbers those may be.
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "AU", "IN", "JP", "BR")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e]")
# Direction characters other than overrides: where they close what they open, they order a text that is written from the
# right.
_DIRECTION = re.compile(r"[\u202a-\u202c\u2066-\u2069]")
_FROM_THE_RIGHT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_REPLACEMENT = re.compile("\ufffd")
_TEMPLATE = re.compile(r"<\|\w+\|>|\[/?INST\]|<</?SYS>>")
# A list that a program wrote where its one text was meant.
_LIST = re.compile(r"\s*\[\s*[\"']")


def by(pattern: re.Pattern[str]) -> Finder:
    """The finder of a pattern."""

    def find(text: str, start: int = 0) -> Span | None:
        match = pattern.search(text, start)
        return match.span() if match else None

    return find


def _phone(text: str, start: int = 0) -> Span | None:
    # The library is slow and sure: it only sees runs of enough digits.
    for digits in itertools.islice(_DIGITS.finditer(text, start), _CANDIDATES):
        for match in PhoneNumberMatcher(digits[0], None):
            return digits.start() + match.start, digits.start() + match.end
        # Grouped as in its country, or else dates and booking codes would be among them.
        national = _NATIONAL.match(digits[0]) and not _DATE.match(digits[0])
        for region in _REGIONS if national else ():
            for match in PhoneNumberMatcher(digits[0], region, Leniency.STRICT_GROUPING):
                return digits.start() + match.start, digits.start() + match.end
    return None


def _control(text: str, start: int = 0) -> Span | None:
    found = [_CONTROL.search(text, start)]
    if not (_FROM_THE_RIGHT.search(text) and _balanced(text)):
        found.append(_DIRECTION.search(text, start))
    return min((match.span() for match in found if match), default=None)


def _balanced(text: str) -> bool:
    """Whether each direction character that opens something is closed by its own kind."""
    opened: list[str] = []
    for match in _DIRECTION.finditer(text):
        if match[0] not in "\u202c\u2069":
            opened.append("\u202c" if match[0] in "\u202a\u202b" else "\u2069")
        elif not opened or opened.pop() != match[0]:
            return False
    return not opened


def _template(text: str, start: int = 0) -> Span | None:
    """A chat template's markers, or a list in place of its text; a list of JSON is an answer like any other."""
    if not start and (match := _LIST.match(text)) and not _is_json_list(text):
        return match.span()
    return _marker(text, start)


def _is_json_list(text: str) -> bool:
    try:
        values = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    alone = values[0].strip() if len(values) == 1 else ""
    return not (" " in alone and alone.endswith((".", "!", "?")))


_marker = by(_TEMPLATE)
# Keys first: what they hide, a long one's digits among them, no other finder looks at when text is masked.
SECRETS: dict[str, Finder] = {
    "api_key": keys.find_key,
    "card": cards.find_card,
    "email": by(_EMAIL),
    "phone": _phone,
}
BROKEN: dict[str, Finder] = {
    "mojibake": by(BADNESS_RE),
    "control": _control,
    "replacement": by(_REPLACEMENT),
    "template": _template,
}
# Only in what is said: a tool's schema names what is to be filled in, and a tool may return nothing.
UNFILLED: dict[str, Finder] = {"placeholder": placeholders.find_placeholder, "no_value": find_no_value}
# What a text must have for a fault to be possible: cheap to ask, and mostly the answer is no.
HINTS: dict[str, Callable[[str], Any]] = {
    "api_key": keys.hint,
    "card": cards.HINT.search,
    "email": lambda text: "@" in text,
    "phone": _DIGITS.search,
    "mojibake": lambda text: not text.isascii(),
    "control": lambda text: not text.isprintable(),
    "replacement": lambda text: "\ufffd" in text,
    "template": lambda text: "[" in text or "<" in text,
    "placeholder": placeholders.hint,
}
