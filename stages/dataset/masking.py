"""Text for messages: excerpts and snippets in which secrets are masked."""

import re
from collections.abc import Iterable, Iterator

from stages.core.text import printable
from stages.dataset.detectors import HINTS, SECRETS, Finder, Span

_AROUND = 30
_BEGINNING = 60
# Characters that are shown of a fault itself.
_FAULT_SHOWN = 300
# Characters at the beginning and at the end that are shown of a long reason: its value, and its place.
_REASON_BEGINNING, _REASON_END = 120, 80
# How far masking looks for secrets of a limited length, of which an e-mail address is the longest.
_WINDOW = 700
# Replaces each hidden character until the text is cut; no text has it for another reason.
_COVER = "\ue000"
_COVERED = re.compile(f"{_COVER}+")
_MASK = "•••"


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
        if HINTS[kind](text):
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
