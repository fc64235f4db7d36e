"""What should not stand in a message: secrets, broken text, leftovers of templates. Found by name, shown masked."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ftfy.badness import BADNESS_RE
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import luhn

from stages.conversations import Conversation, Message

Span = tuple[int, int]
Finder = Callable[[str], Span | None]

_AROUND = 30
_BEGINNING = 60
# How far masking looks: beyond it nothing is shown.
_WINDOW = 300
# Phone numbers that are looked at in one message.
_CANDIDATES = 100
_MASK = "•••"

# Every repetition is bounded, so that no text, however long, makes a search take more than linear time.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}")
_DIGITS = re.compile(r"[+(]{0,2}\d(?:[ ./()-]{0,3}\d){6,18}")
# Without a country's code a number only counts in a form that people write: (212) 555-0123, 020 7946 0958.
_NATIONAL = re.compile(r"\(\d{2,5}\)|0\d{1,4}[ -]|\d{3}[-. ]\d{3}[-. ]\d{4}$")
_DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{2,4}\b")
# Whose numbers those may be.
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "AU", "IN", "JP", "BR")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{36,}|hf_\w{30,}|glpat-[\w-]{20,}|[sr]k_(?:live|test)_\w{16,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_REPLACEMENT = re.compile("\ufffd")
_TEMPLATE = re.compile(r"^\s*\[\s*[\"']|<\|\w+\|>|\{\{\s*[\w.]+\s*\}\}|\[/?INST\]|<</?SYS>>")
_FINISHED = re.compile(r"[.!?…:;。！？：；।؟)\]}\"'”’»›*`~|]$|[^\w\s,\-–—]$|https?://\S+$|\S+@\S+\.\w+$|\d$")


def _by(pattern: re.Pattern[str]) -> Finder:
    def find(text: str) -> Span | None:
        match = pattern.search(text)
        return match.span() if match else None

    return find


def _phone(text: str) -> Span | None:
    # The library is slow and sure: it only sees where enough digits stand together.
    for digits in itertools.islice(_DIGITS.finditer(text), _CANDIDATES):
        for match in PhoneNumberMatcher(digits[0], None):
            return digits.start() + match.start, digits.start() + match.end
        # Grouped as in its country, or else dates and booking codes would be among them.
        national = _NATIONAL.match(digits[0]) and not _DATE.match(digits[0])
        for region in _REGIONS if national else ():
            for match in PhoneNumberMatcher(digits[0], region, Leniency.STRICT_GROUPING):
                return digits.start() + match.start, digits.start() + match.end
    return None


def _card(text: str) -> Span | None:
    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])):
            return match.span()
    return None


SECRETS: dict[str, Finder] = {"email": _by(_EMAIL), "phone": _phone, "card": _card, "api_key": _by(_KEY)}
BROKEN: dict[str, Finder] = {
    "mojibake": _by(BADNESS_RE),
    "control": _by(_CONTROL),
    "replacement": _by(_REPLACEMENT),
    "template": _by(_TEMPLATE),
}
NAMES = (*SECRETS, *BROKEN, "special_token", "unfinished")
# What a text must have for a fault to be possible: cheap to ask, and mostly the answer is no.
_HINTS: dict[str, Callable[[str], Any]] = {
    "email": lambda text: "@" in text,
    "phone": _DIGITS.search,
    "card": _DIGITS.search,
    "mojibake": lambda text: not text.isascii(),
    "control": lambda text: not text.isprintable(),
    "replacement": lambda text: "\ufffd" in text,
    "template": lambda text: "[" in text or "<" in text or "{{" in text,
}


class Inspector:
    """Finds faults of content; knows the special tokens of one tokenizer."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        tokens = "|".join(re.escape(token) for token in sorted(special_tokens, key=len, reverse=True))
        # A lone "<s>" or "[PAD]" is still a token to the tokenizer, so nothing is asked about its surroundings.
        self._finders = {**SECRETS, **BROKEN, "special_token": _by(re.compile(tokens or r"(?!)"))}

    def faults(self, conversation: Conversation) -> dict[str, str]:
        """Name of each fault, and in which message it first stands, with a snippet in which it is marked with ‹ ›."""
        return dict(self._faults(conversation.messages))

    def _faults(self, messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
        together = " ".join(message.text for message in messages)
        for name, find in self._finders.items():
            if not _HINTS.get(name, find)(together):
                continue
            for number, message in enumerate(messages, 1):
                if span := find(message.text):
                    yield name, place(number, message) + snippet(message.text, span, secret=name in SECRETS)
                    break
        if messages and not messages[-1].tool_calls and not finished(messages[-1].text):
            end = len(messages[-1].text.rstrip())
            yield "unfinished", place(len(messages), messages[-1]) + snippet(messages[-1].text, (end, end))


def place(number: int, message: Message) -> str:
    """Where a finding is; messages are counted from 1."""
    return f"message {number} ({message.role}): "


def finished(text: str) -> bool:
    """Whether a text ends as a sentence may end: with a sign, a number, an address or an emoji, not within a word."""
    return not text.strip() or bool(_FINISHED.search(text.rstrip()[-_WINDOW:]))


def snippet(text: str, span: Span, secret: bool = False) -> str:
    """The text around `span`, with ‹ › around it; secrets in it are masked."""
    start, end = span
    middle = text[start : start + 2] + _MASK if secret else masked(text[start:end][:_WINDOW])
    # Masking comes before cutting: half a secret is not recognized any more.
    left = masked(text[max(0, start - _WINDOW) : start])[-_AROUND:]
    right = masked(text[end : end + _WINDOW])[:_AROUND]
    return _printable(f"{left}‹{middle}›{right}")


def excerpt(text: str) -> str:
    """The beginning of a text; secrets in it are masked."""
    return _printable(masked(text[:_WINDOW])[:_BEGINNING])


def _printable(text: str) -> str:
    """A terminal would obey control characters, and a line break would fake another finding."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def masked(text: str) -> str:
    """The text with every secret replaced by its first two characters and dots."""
    for find in SECRETS.values():
        done = 0
        while span := find(text[done:]):
            start, end = done + span[0], done + span[1]
            text = f"{text[: start + 2]}{_MASK}{text[end:]}"
            done = start + 2 + len(_MASK)
    return text
