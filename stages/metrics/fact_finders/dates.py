"""Finder of dates: `2026-05-03`, `--05-03` without a year, `2026-05`, `--05`, `---01`, `1987` and `monday`."""

import datetime
import functools
import re
from collections.abc import Iterator

from stages.metrics.fact_finders.amounts import Match
from stages.metrics.fact_finders.reading import Reading
from stages.metrics.fact_finders.vocabulary import alternatives, months, short_weekdays, weekdays

_ISO = re.compile(r"(?<![\w-])((?:19|20)\d\d)-(\d\d)-(\d\d)(?![\w-]*\w)")
_NUMERIC = re.compile(r"(?<![\w./-])(\d{1,2})([./-])(\d{1,2})\2((?:19|20)\d\d)(?!\w)")
_DAY_MONTH = re.compile(r"(?<![\w./-])(\d{1,2})\.(\d{1,2})\.(?!\d)")
_YEAR = re.compile(
    r"\b(?:[Ii]n|[Ss]ince|[Uu]ntil|[Ff]rom|[Ss]eit|Jahr|[Dd]epuis|[Dd]esde|[Ee]n)\s((?:1[5-9]|20)\d\d)(?![\w%.,-]*\w)"
)
_DAY_ONLY = re.compile(r"\b(?:the|on)\s(\d{1,2})(?:st|nd|rd|th)(?=\sof\s(?:each|every|the)\smonth|\s?[.,;!?)]|$)")
# Months that are also words count only where a time is spoken of.
_AMBIGUOUS = {"may", "march"}
_BEFORE_MONTH = re.compile(
    r"\b(?:in|of|until|till|since|by|from|to|and|or|early|late|mid|next|last|this|through)\s$", re.IGNORECASE
)


@functools.cache
def _names(language: str) -> tuple[re.Pattern[str], ...]:
    month = rf"(?P<month>(?:{'|'.join(alternatives(months(language)))})(?!\w))\.?"
    day = r"(?<![\w.,:/])(?P<{}>\d{{1,2}})(?:st|nd|rd|th|er|\.)?(?![\w:%])"
    year = r"(?:,?\s(?:de[l]?\s)?(?P<year>(?:1[5-9]|20)\d\d)(?!\w))?"
    to = r"(?:\s?(?:-|–|to|and|until|through|bis|und|au|et|al|y|a)\s?(?:the\s|zum\s)?)"
    first = day.format("first") + to
    last = day.format("last")
    return (
        re.compile(rf"(?:{first})?{last}\s(?:of\s|de\s)?{month}{year}", re.IGNORECASE),
        re.compile(
            rf"(?<!\w){month}\s{day.format('first')}(?:{to}{last}(?!\s?(?:am|pm|[ap]\.m|h\b|Uhr)))?{year}",
            re.IGNORECASE,
        ),
        re.compile(rf"(?<!\w){month}(?:\s(?:de[l]?\s)?(?P<year>(?:1[5-9]|20)\d\d)(?!\w))?", re.IGNORECASE),
    )


def numeric_dates(reading: Reading) -> Iterator[Match]:
    """Dates in digits; of `03/05/2026` the day is read first, unless only the other can be the month."""
    text = reading.text
    for match in _ISO.finditer(text):
        yield from _date(match.span(), match[1], match[2], match[3])
    for match in _NUMERIC.finditer(text):
        day, month = (match[3], match[1]) if int(match[3]) > 12 else (match[1], match[3])
        yield from _date(match.span(), match[4], month, day)
    for match in _DAY_MONTH.finditer(text) if reading.language == "de" else ():
        yield from _date(match.span(), "", match[2], match[1])


def _date(span: tuple[int, int], year: str, month: str | int, day: str) -> Iterator[Match]:
    """The date if there is such a day."""
    try:
        at = datetime.date(int(year or 2024), int(month), int(day))
    except ValueError:
        return
    yield "date", f"{year}{at:-%m-%d}" if year else f"{at:--%m-%d}", *span


def named_dates(reading: Reading) -> Iterator[Match]:
    """Dates with a month's name, and months alone."""
    taken: set[int] = set()
    for pattern in _names(reading.language):
        for match in pattern.finditer(reading.text):
            if match.start("month") not in taken:
                found = list(_of_month(match, reading))
                taken.update([match.start("month")] if found else [])
                yield from found


def _of_month(match: re.Match[str], reading: Reading) -> Iterator[Match]:
    name = match["month"]
    month = months(reading.language)[name.lower()]
    year = match["year"] or ""
    days = [key for key in ("first", "last") if match.groupdict().get(key)]
    for at, key in enumerate(days):
        start = match.start(key) if at else match.start()
        end = match.end() if at == len(days) - 1 else match.end(key)
        yield from _date((start, end), year, month, match[key])
    if not days and _is_month(match, reading):
        yield "date", f"{year}-{month:02}" if year else f"--{month:02}", *match.span()


def _is_month(match: re.Match[str], reading: Reading) -> bool:
    """Whether a month that is named without a day is one."""
    name = match["month"]
    if reading.language in ("en", "de") and not name[0].isupper():
        return False
    clear = len(name) > 3 and name.lower() not in _AMBIGUOUS
    return clear or bool(
        match["year"] or _BEFORE_MONTH.search(reading.text[max(0, match.start() - 12) : match.start()])
    )


def days_of_week(reading: Reading) -> Iterator[Match]:
    """Days of the week; abbreviations only in a range: `Mon-Fri`."""
    names, short = weekdays(reading.language), short_weekdays(reading.language)
    for match in re.finditer(rf"(?<!\w)(?:{'|'.join(alternatives(names))})(?!\w)", reading.text, re.IGNORECASE):
        if reading.language != "en" or match[0][0].isupper():
            yield "date", names[match[0].lower()], *match.span()
    day = rf"((?:{'|'.join(alternatives(short))})(?!\w))\.?"
    for match in re.finditer(rf"(?<!\w){day}\s?(?:[-–]|to|bis|/)\s?{day}", reading.text, re.IGNORECASE):
        for group in (1, 2):
            yield "date", short[match[group].lower()], *match.span(group)


def years(reading: Reading) -> Iterator[Match]:
    """Years after a word such as `since`, and days of any month."""
    for match in _YEAR.finditer(reading.text):
        yield "date", match[1], *match.span(1)
    for match in _DAY_ONLY.finditer(reading.text):
        if 1 <= int(match[1]) <= 31:
            yield "date", f"---{int(match[1]):02}", *match.span()
