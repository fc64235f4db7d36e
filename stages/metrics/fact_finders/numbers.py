"""Numbers as people write them: `1,200.50`, `1.200,50`, `1 200,50`, all the same value."""

import functools
from decimal import Decimal

# Between the numbers of a range or a list that share the unit behind the last: 3 to 5 days, 55 x 40 cm.
BETWEEN = r"\s?(?:[-–—x×/]|to|or|and|bis|oder|und|à|a|ou|et|o|y)\s?"


@functools.cache
def number_pattern(language: str) -> str:
    """A pattern of a number with no group."""
    # French groups thousands by a space; elsewhere it separates numbers, unless it is a narrow or unbreakable one.
    separators = ".,'’\u00a0\u202f" + (" " if language == "fr" else "")
    grouped = rf"\d{{1,3}}(?:[{separators}]\d{{3}}){{1,4}}(?!\d)(?:[.,]\d{{1,2}}(?!\d))?"
    plain = r"\d{1,15}(?:[.,]\d{1,4}(?!\d))?"
    return rf"(?<![\w.,])(?:{grouped}|{plain})"


def value_of(text: str, language: str) -> Decimal:
    """The value of what `number_pattern` has matched.

    A single separator before three digits groups thousands if that is the language's way, and else is a decimal point.
    """
    digits = text.translate(dict.fromkeys(map(ord, "'’\u00a0\u202f ")))
    marks = [char for char in digits if char in ".,"]
    if not marks:
        return Decimal(digits)
    point = _point(digits, marks, language)
    thousands = "," if point == "." else "."
    return Decimal(digits.replace(thousands, "").replace(point, ".") if point else digits.replace(marks[0], ""))


def _point(digits: str, marks: list[str], language: str) -> str:
    """The decimal point of a number, or nothing."""
    if len(set(marks)) == 2:
        return marks[-1]
    grouped = len(digits) - digits.rindex(marks[-1]) == 4
    if len(marks) > 1 or (grouped and marks[0] == ("," if language == "en" else ".")):
        return ""
    return marks[0]


def written(value: Decimal) -> str:
    """A number in its shortest form: `2.5`, `1000`."""
    return f"{value.normalize():f}"
