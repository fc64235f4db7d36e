"""Text that came from outside, made fit to be shown."""

import re

# What a terminal obeys instead of showing: control characters other than line breaks and tabs, what turns the direction
# of writing, and what separates lines elsewhere; and halves of characters, which cannot be written.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that came from outside, in one line: a terminal would obey control characters, line breaks fake messages."""
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text)


def harmless(text: str) -> str:
    """Text in several lines, in which a terminal finds nothing to obey."""
    return _OBEYED.sub(lambda sign: _escaped(sign[0]), text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
