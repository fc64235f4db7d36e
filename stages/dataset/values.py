"""What programs write into a cell that has no value: `nan`, `None`, `#REF!`."""

import re

from stages.dataset.cards import Span

# As pandas, Python, databases, JavaScript and Excel (in English and German) write them, in their own spelling: `none`
# and `Null` with a full stop are words of people.
_NO_VALUE = re.compile(
    r"\s*(?:nan|NaN|NAN|-nan|NaT|<NA>|None|NULL|null|\\N|N/A|n/a|#N/A|undefined|\(null\)|\[null\]|nil|-{1,3}|–|—"
    r"|#(?:REF|VALUE|NUM|NULL|CALC|SPILL)!|#NAME\?|#DIV/0!|#GETTING_DATA"
    r"|#(?:BEZUG|WERT|ZAHL)!|#NV)\s*"
)
_LONGEST = 40


def find_no_value(text: str, start: int = 0) -> Span | None:
    """The whole text, where it only says that there is no value."""
    return (0, len(text)) if not start and len(text) <= _LONGEST and _NO_VALUE.fullmatch(text) else None
