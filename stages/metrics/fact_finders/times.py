"""Finder of times of the day, as `18:00`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from stages.metrics.fact_finders.amounts import Match
from stages.metrics.fact_finders.reading import Reading

_WORDS = {
    "midnight": "00:00", "noon": "12:00", "midday": "12:00", "mitternacht": "00:00", "minuit": "00:00", "midi": "12:00",
    "medianoche": "00:00", "mediodía": "12:00",
}  # fmt: skip
_WORD = re.compile(rf"(?<![\w-])(?:12\s)?({'|'.join(_WORDS)})(?![\w-])", re.IGNORECASE)

# Which half of the day is meant, by what is behind the time.
_MORNING = (
    r"in the morning|this morning|tomorrow morning|a\.m\.|a\.m\b|am\b|morgens|vormittags|früh|du matin|de la mañana"
    r"|de la madrugada"
)
_EVENING = (
    r"(?:in the|this|tomorrow) (?:afternoon|evening)|at night|tonight|p\.m\.|p\.m\b|pm\b|nachmittags|abends"
    r"|de l['’]après-midi|du soir|de la (?:tarde|noche)"
)
_CLOCK = re.compile(
    r"(?<![\w.,:/#%€$£-])(?<!\d[-–])(?P<hour>[01]?\d|2[0-4])"
    r"(?:(?P<colon>:)(?P<minute>[0-5]\d)(?::[0-5]\d)?|\.(?P<minute2>[0-5]\d)|(?P<h>\s?[hH](?![\w/])(?:\s?(?P<minute3>[0-5]\d)(?!\d))?"
    r"|[hH](?P<minute4>[0-5]\d)(?!\d)))?(?![\d%:]|[.,]\d)"
    rf"(?:\s?(?P<name>o['’]?\s?clock|Uhr|(?P<heures>heures?)|(?P<horas>horas)|(?:h|hrs)\b))?(?:\s?(?:(?P<am>{_MORNING})|(?P<pm>{_EVENING})))?",
    re.IGNORECASE,
)
# The clock after a dash is part of a range.
_DASH = re.compile(r"(?<=\d|m|h|r|\.)\s?[-–—]\s?(?=\d)")
_RANGE = re.compile(
    r"\s?(?:[-–—]|to|until|till|through|bis|à|a|hasta|jusqu['’]à|et|y|and)\s?(?:at\s|las\s|um\s)?", re.IGNORECASE
)
_LIST = re.compile(
    r"\s?(?:,|and|or|und|oder|et|ou|y|o|,\s?and)\s(?:at\s|from\s|um\s|à\s|(?:a\s)?las\s)?", re.IGNORECASE
)
_AT = re.compile(
    r"\b(?:at|until|till|from|after|before|around|since|about|between|open|um|ab|gegen|geöffnet|ouvert|abierto|las|la|à"
    r"|dès|jusqu['’]à|vers|avant|après|entre)\s$",
    re.IGNORECASE,
)
# In French and Spanish an hour is also a duration: these are before a time.
_LATIN_AT = re.compile(r"\b(?:à|dès|jusqu['’]à|vers|avant|après|entre|las|la)\s$", re.IGNORECASE)
_DURATION = re.compile(
    r"\b(?:en|sous|dans|pendant|durant|toutes les|por|cada|durante|within|in|all|every)\s$", re.IGNORECASE
)
# What may follow an hour that nothing marks: no noun, or else it counts something.
_CLOSED = re.compile(
    r"\s?(?:[.,;:!?)\n]|$|(?:and|or|until|till|to|on|onwards?|sharp|und|bis|et|y|tomorrow|today|daily|every day)\b)"
)
# A range of bare hours is one of times where days are behind it: 10-4 on Saturdays, which is blanked out by then.
_DAYS = re.compile(r"\s(?:on\s)?(?:\0|weekdays|weekends|daily|every day)")
_LOOK_BACK = 16


@dataclass
class _Clock:
    """A number that may be an hour, with what tells whether it is."""

    hour: int
    minute: int
    start: int
    end: int
    half: str  # am, pm or nothing
    sure: bool
    bare: bool
    match: re.Match[str]


def times(reading: Reading) -> Iterator[Match]:
    """Times of the day; where only the end of a range says `pm`, its start is taken as the nearest time before."""
    for match in _WORD.finditer(reading.text):
        yield "time", _WORDS[match[1].lower()], *match.span()
    for group in _groups(reading):
        if _is_time(group, reading.text):
            _complete(group, reading.text)
            for clock in group:
                yield "time", f"{clock.hour % 24:02}:{clock.minute:02}", clock.start, clock.end


def _groups(reading: Reading) -> Iterator[list[_Clock]]:
    """Clocks that are joined by `to`, `and` or a comma."""
    # A space for the dash lets the second clock be read; lengths stay the same.
    text = _DASH.sub(lambda match: " " * len(match[0]), reading.text)
    group: list[_Clock] = []
    for match in _CLOCK.finditer(text):
        clock = _clock(match, reading)
        if group and not _joined(group[-1], clock, reading.text):
            yield group
            group = []
        group.append(clock)
    if group:
        yield group


def _joined(left: _Clock, right: _Clock, text: str) -> bool:
    if right.start - left.end > _LOOK_BACK:
        return False
    gap = text[left.end : right.start]
    if _RANGE.fullmatch(gap):
        return True
    # `Room 3, 7:30`: a list is one of times only if both are, or if the last has the half of the day for all.
    if not _LIST.fullmatch(gap) or (gap[0] == "," and not left.sure and right.hour <= left.hour):
        return False
    return left.sure or not right.sure or bool(right.half) or (right.match["name"] is not None and gap[0] != ",")


def _clock(match: re.Match[str], reading: Reading) -> _Clock:
    minute = next((match[key] for key in ("minute", "minute2", "minute3", "minute4") if match[key]), "0")
    half = "am" if match["am"] else "pm" if match["pm"] else ""
    bare = not (match["colon"] or match["minute2"] or match["h"] or match["name"] or half)
    before = reading.text[max(0, match.start() - _LOOK_BACK) : match.start()]
    duration = bool(match["heures"] or match["horas"] or (match["h"] and minute == "0"))
    sure = bool(half or match["colon"])
    if not sure and duration:
        latin = reading.language in ("fr", "es")
        spoken = bool(match["heures"] or match["horas"] or not latin)
        sure = latin and bool(
            _LATIN_AT.search(before) if spoken else not _DURATION.search(before) and match["hour"] != "24"
        )
    elif not sure:
        sure = bool(match["name"] or (match["h"] and minute != "0"))
    return _Clock(int(match["hour"]), int(minute), match.start(), match.end(), half, sure, bare, match)


def _is_time(group: list[_Clock], text: str) -> bool:
    if any(clock.match["minute2"] and not clock.sure and not clock.half for clock in group):
        # 7.30 is a number where nothing else in the range is a time.
        return any(clock.sure for clock in group)
    if any(clock.sure for clock in group):
        return True
    first, last = group[0], group[-1]
    if not all(clock.bare for clock in group):
        return False
    if len(group) == 2 and _DAYS.match(text, last.end):
        return True
    closed = _CLOSED.match(text, last.end) is not None
    return closed and bool(_AT.search(text[max(0, first.start - _LOOK_BACK) : first.start]))


def _complete(group: list[_Clock], text: str) -> None:
    """Give every clock its half of the day."""
    for clock in group:
        if clock.half and clock.hour <= 12:
            clock.hour = clock.hour % 12 + (12 if _afternoon(clock) else 0)
    for left, right in reversed(list(zip(group, group[1:], strict=False))):
        if right.half and not left.half and 1 <= left.hour <= 12:
            left.hour, left.half = _latest_before(left, right), right.half
    for left, right in zip(group, group[1:], strict=False):
        again = "from" in text[left.end : right.start]  # until 10:30, from 7
        later = again or right.hour * 60 + right.minute > left.hour * 60 + left.minute
        if not right.half and not later and right.hour + 12 <= 24 and (left.half or left.bare):
            right.hour += 12


def _afternoon(clock: _Clock) -> bool:
    """Whether an hour is after noon: `2 at night` is not, `12 at night` is midnight."""
    night = (clock.match["pm"] or "").lower() in ("at night", "tonight", "de la noche")
    return clock.half == "pm" and not (night and (clock.hour < 5 or clock.hour == 12))


def _latest_before(left: _Clock, right: _Clock) -> int:
    """The hour of a range's start: `11 to 2 pm` begins at 11, `2 to 9 pm` at 14."""
    early, late = left.hour % 12, left.hour % 12 + 12
    end = right.hour * 60 + right.minute
    same, other = (late, early) if right.half == "pm" else (early, late)
    return same if same * 60 + left.minute < end else other
