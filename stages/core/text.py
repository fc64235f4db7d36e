"""Text that came from outside, made fit to be shown."""


def printable(text: str) -> str:
    """Text that came from outside, in one line: a terminal would obey control characters, line breaks fake messages."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
