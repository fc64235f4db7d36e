"""Finders of what should not be in a text: secrets, broken characters, leftovers of templates."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ftfy.badness import BADNESS_RE
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import luhn

Span = tuple[int, int]


class Finder(Protocol):
    """Finds the first fault of its kind from `start` on."""

    def __call__(self, text: str, start: int = 0) -> Span | None: ...


# How much of a text's end is looked at, and how many phone numbers in one message.
_END = 700
_CANDIDATES = 100

# Every repetition is bounded or gives nothing back, so that no text makes a search take more than linear time.
# A word begins here, also after an escape in JSON that could not be read.
_START = r"(?:(?<!\w)|(?<=\\[bfnrt])|(?<=\\u[0-9a-fA-F]{4}))"
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}")
_DIGITS = re.compile(r"[+(]{0,2}\d(?:[ ./()-]{0,3}\d){6,18}")
# Without a country's code a number only counts in a form that people write: (212) 555-0123, 020 7946 0958.
_NATIONAL = re.compile(r"\(\d{2,5}\)|0\d{1,4}[ -]|\d{3}[-. ]\d{3}[-. ]\d{4}$")
_DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{2,4}\b")
# Whose numbers those may be.
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "AU", "IN", "JP", "BR")
# Adjacent groups of digits: a card's number may be some of them.
_GROUPS = re.compile(_START + r"\d++(?:[ .\u00a0-]\d++)*(?!\w)")
_GROUP = re.compile(r"\d+")
_CARD_HINT = re.compile(r"\d(?:[ .\u00a0-]?\d){12}")
# A card's number is not written in smaller groups; tables and dates are.
_SMALLEST_GROUP, _MOST_GROUPS, _MOST_DIGITS = 3, 6, 19
# First digits and lengths: Visa, Mastercard, American Express, Diners, and then JCB, Discover, Maestro and others.
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[0689]\d{12}|(?:3[05689]|5[0678]|6\d)\d{14,17}"
)
_KEY = re.compile(
    rf"{_START}(?:sk-[\w-]{{20,}}+|(?:AKIA|ASIA)[0-9A-Z]{{16}}\b|gh[pousr]_\w{{36,}}+|github_pat_\w{{22,}}+"
    r"|hf_\w{30,}+|glpat-[\w-]{20,}+|[sr]k_(?:live|test)_\w{16,}+|xox[abprs]-[\w-]{10,}+|AIza[\w-]{35}\b"
    # Two more parts make it a token; without them the word is read all the same, so that none is read twice.
    r"|eyJ[\w-]{10,}+(?P<token>\.eyJ[\w-]{10,}+\.[\w-]{10,}+)?+)"
    # The key's body is the secret: all of it, up to its end or that of the text.
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
_KEY_HINTS = (
    *("sk-", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "glpat-"),
    *("k_live_", "k_test_", "xox", "AIza", "eyJ", "PRIVATE KEY"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_REPLACEMENT = re.compile("\ufffd")
_TEMPLATE = re.compile(r"^\s*\[\s*[\"']|<\|\w+\|>|\{\{\s*[\w.]+\s*\}\}|\[/?INST\]|<</?SYS>>")
_FINISHED = re.compile(r"[.!?…:;。！？：；।؟)\]}\"'”’»›*`~|]$|[^\w\s,\-–—]$|https?://\S+$|\S+@\S+\.\w+$|\d$")


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


def _card(text: str, start: int = 0) -> Span | None:
    for run in _GROUPS.finditer(text, start):
        groups = [group.span() for group in _GROUP.finditer(text, *run.span())]
        for at in range(len(groups)):
            if span := _card_from(text, groups, at):
                return span
    return None


def _card_from(text: str, groups: Sequence[Span], at: int) -> Span | None:
    """The card's number that begins with one of the groups: other numbers may be before and after it."""
    begin, digits = groups[at][0], ""
    for first, last in groups[at : at + _MOST_GROUPS]:
        if not _SMALLEST_GROUP <= last - first <= _MOST_DIGITS - len(digits):
            return None
        digits += text[first:last]
        # The digits behind a decimal point are none.
        fraction = at and text[begin - 1] == "." and "." not in text[begin:last]
        if not fraction and _CARD.fullmatch(digits) and luhn.is_valid(digits):
            return begin, last
    return None


def _key(text: str, start: int = 0) -> Span | None:
    for match in _KEY.finditer(text, start):
        word = match[0].startswith("sk-") and match[0].islower() and not any(map(str.isdigit, match[0]))
        if not word and (match["token"] or not match[0].startswith("eyJ")):
            return match.span()
    return None


# Keys first: what they hide, a long one's digits among them, no other finder looks at when text is masked.
SECRETS: dict[str, Finder] = {"api_key": _key, "card": _card, "email": by(_EMAIL), "phone": _phone}
BROKEN: dict[str, Finder] = {
    "mojibake": by(BADNESS_RE),
    "control": by(_CONTROL),
    "replacement": by(_REPLACEMENT),
    "template": by(_TEMPLATE),
}
# What a text must have for a fault to be possible: cheap to ask, and mostly the answer is no.
HINTS: dict[str, Callable[[str], Any]] = {
    "api_key": lambda text: any(hint in text for hint in _KEY_HINTS),
    "card": _CARD_HINT.search,
    "email": lambda text: "@" in text,
    "phone": _DIGITS.search,
    "mojibake": lambda text: not text.isascii(),
    "control": lambda text: not text.isprintable(),
    "replacement": lambda text: "\ufffd" in text,
    "template": lambda text: "[" in text or "<" in text or "{{" in text,
}


def finished(text: str) -> bool:
    """Whether a text ends as a sentence may end: with a sign, a number, an address or an emoji, not within a word."""
    return not text.strip() or bool(_FINISHED.search(text.rstrip()[-_END:]))
