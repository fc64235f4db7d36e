"""What should not stand in a record: secrets, broken text, leftovers of templates. Found by name, shown masked."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
from ftfy.badness import BADNESS_RE
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import luhn

from stages.command import printable
from stages.conversations import Conversation, Message

Span = tuple[int, int]


class Finder(Protocol):
    """Finds the first fault of its kind from `start` on."""

    def __call__(self, text: str, start: int = 0) -> Span | None: ...


_AROUND = 30
_BEGINNING = 60
# Characters that are shown of a fault itself.
_FAULT_SHOWN = 300
# Characters at the beginning and at the end that are shown of a long reason: its value, and its place.
_REASON_BEGINNING, _REASON_END = 120, 80
# How far masking looks for secrets of a limited length, of which an e-mail address is the longest.
_WINDOW = 700
# Phone numbers that are looked at in one message.
_CANDIDATES = 100
# Stands for each hidden character until the text is cut; no text that is read has it for another reason.
_COVER = "\ue000"
_COVERED = re.compile(f"{_COVER}+")
_MASK = "•••"

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
# Groups of digits that stand together: a card's number may be some of them.
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


def _by(pattern: re.Pattern[str]) -> Finder:
    def find(text: str, start: int = 0) -> Span | None:
        match = pattern.search(text, start)
        return match.span() if match else None

    return find


def _phone(text: str, start: int = 0) -> Span | None:
    # The library is slow and sure: it only sees where enough digits stand together.
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
    """The card's number that begins with one of the groups: other numbers may stand before and behind it."""
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
SECRETS: dict[str, Finder] = {"api_key": _key, "card": _card, "email": _by(_EMAIL), "phone": _phone}
BROKEN: dict[str, Finder] = {
    "mojibake": _by(BADNESS_RE),
    "control": _by(_CONTROL),
    "replacement": _by(_REPLACEMENT),
    "template": _by(_TEMPLATE),
}
NAMES = ("email", "phone", "card", "api_key", *BROKEN, "special_token", "unfinished")
# What a text must have for a fault to be possible: cheap to ask, and mostly the answer is no.
_HINTS: dict[str, Callable[[str], Any]] = {
    "api_key": lambda text: any(hint in text for hint in _KEY_HINTS),
    "card": _CARD_HINT.search,
    "email": lambda text: "@" in text,
    "phone": _DIGITS.search,
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

    def faults(self, conversation: Conversation, label: str = "") -> dict[str, str]:
        """Name of each fault, and where it first stands, with a snippet in which it is marked with ‹ ›."""
        return dict(self._faults(list(_texts(conversation, label)))) | _unfinished(conversation.messages)

    def _faults(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        together = " ".join(text for _, text in texts)
        for name, find in self._finders.items():
            if not _HINTS.get(name, find)(together):
                continue
            for where, text in texts:
                if span := find(text):
                    yield name, where + snippet(text, span, secret=name in SECRETS)
                    break


def _texts(conversation: Conversation, label: str) -> Iterator[tuple[str, str]]:
    """All that a record says, each text with its place; the label too, for it becomes a name in the reports."""
    for number, message in enumerate(conversation.messages, 1):
        yield place(number, message), message.text
        for field in ("name", "tool_calls", "tool_call_id"):
            if (value := getattr(message, field)) is not None:
                yield place(number, message) + f"{field}: ", _leaves(value)
    if conversation.tools:
        yield "tools: ", _leaves(conversation.tools)
    if label:
        yield "label: ", label


def _leaves(value: Any) -> str:
    """All names and values in a JSON value, each in a line: in its JSON, escapes would hide some from the finders."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(reversed([part for pair in one.items() for part in pair]))
        elif isinstance(one, list):
            left.extend(reversed(one))
        else:
            found.append(str(one))
            left.append(_inner(one))
    return "\n".join(filter(None, found))


def _inner(value: Any) -> Any:
    """What a text holds that is JSON itself, as the arguments of a call are; of other values an empty list."""
    if not (isinstance(value, str) and value.lstrip()[:1] in ("{", "[")):
        return []
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return []


def _unfinished(messages: Sequence[Message]) -> dict[str, str]:
    if not messages or messages[-1].tool_calls or finished(messages[-1].text):
        return {}
    end = len(messages[-1].text.rstrip())
    return {"unfinished": place(len(messages), messages[-1]) + snippet(messages[-1].text, (end, end))}


def place(number: int, message: Message) -> str:
    """Where a finding is; messages are counted from 1."""
    return f"message {number} ({message.role}): "


def finished(text: str) -> bool:
    """Whether a text ends as a sentence may end: with a sign, a number, an address or an emoji, not within a word."""
    return not text.strip() or bool(_FINISHED.search(text.rstrip()[-_WINDOW:]))


def snippet(text: str, span: Span, secret: bool = False) -> str:
    """The text around `span`, with ‹ › around it; secrets in it are masked."""
    start, end = span
    # Covering comes before cutting: half a secret is not recognized any more. Keys are as long as they like.
    text = _covered(_hidden(text, [span]) if secret else text, ["api_key"])
    low = max(0, start - _WINDOW)
    near = _covered(text[low : end + _WINDOW])
    start, end = start - low, end - low
    left, right = near[max(0, start - _AROUND) : start], near[end : end + _AROUND]
    return _shown(f"{left}‹{near[start:end][:_FAULT_SHOWN]}›{right}")


def excerpt(text: str) -> str:
    """The beginning of a text; secrets in it are masked."""
    return _shown(_covered(_covered(text, ["api_key"])[:_WINDOW])[:_BEGINNING])


def one_line(text: str) -> str:
    """An error's text, which may quote what it is about: in one line, secrets masked, its middle left out if long."""
    text = _covered(text, ["api_key"])
    if len(text) <= _REASON_BEGINNING + _REASON_END:
        return _shown(_covered(text))
    beginning, end = _covered(text[:_WINDOW])[:_REASON_BEGINNING], _covered(text[-_WINDOW:])[-_REASON_END:]
    return _shown(f"{beginning}…{end}")


def masked(text: str) -> str:
    """The text with every secret replaced by its first two characters and dots."""
    return _COVERED.sub(_MASK, _covered(text))


def _shown(text: str) -> str:
    return printable(_COVERED.sub(_MASK, text))


def _covered(text: str, kinds: Iterable[str] = SECRETS) -> str:
    """The text with secrets hidden; as long as before, so that places in it stay the same."""
    for kind in kinds:
        if _HINTS[kind](text):
            text = _hidden(text, _spans(text, SECRETS[kind]))
    return text


def _spans(text: str, find: Finder) -> Iterator[Span]:
    end = 0
    while span := find(text, end):
        yield span
        end = span[1]


def _hidden(text: str, spans: Iterable[Span]) -> str:
    """The text with all of each span covered but its first two characters."""
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done : start + 2], _COVER * (end - start - 2)]
        done = end
    return "".join([*parts, text[done:]])
