"""The kinds of facts, each with a finder: where one is in a text, and its value in one form.

English, German, French and Spanish: the names of months, days and units are those of the Unicode CLDR (in Babel);
number words and hours of the day are listed here. Digits are read in every language. Repetitions are bounded.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from phonenumbers import Leniency, PhoneNumberFormat, PhoneNumberMatcher, format_number

# Start, end and value of a fact.
Hit = tuple[int, int, str]
Finder = Callable[[str], Iterator[Hit]]

_LANGUAGES = ("en", "de", "fr", "es")
# A time that may be in the morning or in the evening ends with this.
EITHER = "?"

# One is left out, as it is an article in most languages; so is what means something else in another language.
_UNITS = {
    2: "two zwei deux dos", 3: "three drei trois tres", 4: "four vier quatre cuatro", 5: "five fünf cinq cinco",
    6: "six sechs seis", 7: "seven sieben sept siete", 8: "eight acht huit ocho", 9: "nine neun neuf nueve",
}  # fmt: skip
_TENS = {
    20: "twenty zwanzig vingt veinte", 30: "thirty dreißig dreissig trente treinta",
    40: "forty vierzig quarante cuarenta", 50: "fifty fünfzig cinquante cincuenta",
    60: "sixty sechzig soixante sesenta", 70: "seventy siebzig setenta", 80: "eighty achtzig ochenta",
    90: "ninety neunzig noventa",
}  # fmt: skip
_OTHERS = {
    10: "ten zehn dix diez", 11: "eleven onze", 12: "twelve zwölf douze doce", 13: "thirteen dreizehn treize trece",
    14: "fourteen vierzehn quatorze catorce", 15: "fifteen fünfzehn quinze quince", 16: "sixteen sechzehn dieciséis",
    17: "seventeen siebzehn dix-sept diecisiete", 18: "eighteen achtzehn dix-huit dieciocho",
    19: "nineteen neunzehn dix-neuf diecinueve", 100: "hundred hundert cien", 1000: "thousand tausend mille",
}  # fmt: skip
_ORDINALS = {
    0: "ground", 1: "first erste ersten erster premier première primer primera",
    2: "second zweite zweiten deuxième segunda", 3: "third dritte dritten troisième tercera tercer",
    4: "fourth vierte vierten quatrième cuarta", 5: "fifth fünfte fünften cinquième quinta",
    6: "sixth sechste sechsten sixième sexta", 7: "seventh siebte siebten septième",
    8: "eighth achte achten huitième octava", 9: "ninth neunte neunten neuvième", 10: "tenth zehnte zehnten dixième",
}  # fmt: skip
_FLOOR = r"(?:floor|storey|story|stock|etage|obergeschoss|étage|planta|piso)"
_CURRENCIES = {
    "EUR": "€ eur euro euros", "USD": "$ usd dollar dollars dólar dólares us$", "CHF": "chf franken francs",
    "GBP": "£ gbp pound pounds livres libras", "JPY": "¥ jpy yen", "INR": "₹ inr rupees", "SEK": "sek", "PLN": "pln",
}  # fmt: skip
# CLDR's names of units, and what it has no name for.
_CLDR_UNITS = (
    *("duration-second", "duration-minute", "duration-hour", "duration-day", "duration-week", "duration-month"),
    *("duration-year", "length-kilometer", "length-meter", "length-centimeter", "length-millimeter", "length-mile"),
    *("length-foot", "mass-kilogram", "mass-gram", "mass-pound", "volume-liter", "temperature-celsius"),
    *("temperature-fahrenheit", "digital-megabyte", "digital-gigabyte", "digital-terabyte", "concentr-percent"),
    *("energy-kilowatt-hour", "power-kilowatt", "power-watt", "speed-kilometer-per-hour"),
)
_MORE_UNITS = {
    "night": "night nights nacht nächte nächten nuit nuits noche noches",
    "celsius": "degree degrees °c grad degré degrés grado grados ° degrees-celsius",
    "percent": "% percent prozent",
    "minute": "min mins minuten",
    "hour": "hr hrs",
    "kilowatt-hour": "kwh",
}
_HALF_DAYS = {
    "am": r"in the (?:early )?morning|de la mañana|du matin|morgens|früh|vormittags",
    "pm": r"in the (?:late )?(?:afternoon|evening)|at night|tonight|de la (?:tarde|noche)|du soir|de l['’]après-midi"
    r"|nachmittags|abends",
}
_NOON = {"00:00": "midnight mitternacht minuit medianoche", "12:00": "noon midday mittags midi mediodía"}


def _table(words: dict[Any, str]) -> dict[str, Any]:
    return {word: key for key, text in words.items() for word in text.split()}


def _number_words() -> dict[str, int]:
    found = {**_table(_UNITS), **_table(_TENS), **_table(_OTHERS)}
    for ten, tens in _table(_TENS).items():
        for one, units in _table(_UNITS).items():
            for compound in (f"{ten}-{one}", f"{ten} {one}", f"{one}und{ten}", f"{ten} y {one}"):
                found[compound] = tens + units
    return found


def _one_of(words: Any) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))) + ")"


_WORDS = _number_words()
_DIGITS = r"\d{1,3}(?:[.,'’\u00a0\u202f]\d{3}){1,4}(?:[.,]\d{1,2})?(?!\d)|\d{1,15}(?:[.,]\d{1,4})?(?!\d)"
_NUMBER = rf"(?:{_DIGITS}|\b{_one_of(_WORDS)}\b)"
_SPACE = r"[ \u00a0\u202f]{0,2}"
_IGNORE = re.IGNORECASE


def number(text: str) -> str:
    """A number in digits or words as a decimal without spare zeros: 2,50 is 2.5, and 1.200 is 1200."""
    word = text.casefold()
    if word in _WORDS:
        return str(_WORDS[word])
    whole, decimals = re.fullmatch(r"(.*?)(?:[.,](\d{1,2}|\d{4}))?", text).groups()  # type: ignore[union-attr]
    digits = re.sub(r"\D", "", whole).lstrip("0") or "0"
    decimals = (decimals or "").rstrip("0")
    return f"{digits}.{decimals}" if decimals else digits


def emails(text: str) -> Iterator[Hit]:
    """Addresses of mail."""
    for hit in re.finditer(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}", text):
        yield *hit.span(), hit[0].casefold()


def urls(text: str) -> Iterator[Hit]:
    """Addresses of pages, without what they begin with (https://www.) and a slash at the end."""
    for hit in re.finditer(r"(?:https?://|www\.)[^\s<>\"'“”„]{1,2000}", text, _IGNORE):
        address = hit[0].rstrip(".,;:!?)]}")
        plain = re.sub(r"^(?:https?://)?(?:www\.)?", "", address, flags=_IGNORE).rstrip("/")
        yield hit.start(), hit.start() + len(address), plain.casefold()


def phones(text: str) -> Iterator[Hit]:
    """Telephone numbers that begin with a country's code, or look like national ones, as E.164 or digits."""
    for match in PhoneNumberMatcher(text, None, Leniency.POSSIBLE, max_tries=100):
        yield match.start, match.end, str(format_number(match.number, PhoneNumberFormat.E164))
    for hit in re.finditer(r"(?<![\d.,])(?:\(0?\d{2,5}\)|0\d{1,4})[ /-]\d{2,4}(?:[ -]?\d{2,4}){1,3}(?![\d.,]\d)", text):
        yield *hit.span(), re.sub(r"\D", "", hit[0])


@cache
def _price_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    symbols = _one_of(word for word in _table(_CURRENCIES) if len(word) <= 3 and word != "yen")
    names = _one_of(_table(_CURRENCIES))
    before = re.compile(rf"(?<!\w)({symbols}){_SPACE}({_DIGITS})", _IGNORE)
    return before, re.compile(rf"({_NUMBER}){_SPACE}({names})(?!\w)", _IGNORE)


def prices(text: str) -> Iterator[Hit]:
    """Amounts of money: amount and ISO 4217 code."""
    codes = _table(_CURRENCIES)
    before, after = _price_patterns()
    for hit in before.finditer(text):
        yield *hit.span(), f"{number(hit[2])} {codes[hit[1].casefold()]}"
    for hit in after.finditer(text):
        yield *hit.span(), f"{number(hit[1])} {codes[hit[2].casefold()]}"
    for hit in re.finditer(rf"({_NUMBER}){_SPACE}cents?(?!\w)", text, _IGNORE):
        yield *hit.span(), f"{int(float(number(hit[1]))) / 100:g} cent"


_HALF = "|".join(f"(?P<{name}>{words})" for name, words in _HALF_DAYS.items())
_MERIDIEM = rf"{_SPACE}(?P<half>[ap])\.?{_SPACE}m\b\.?"
_HOUR = _one_of(word for word, value in _WORDS.items() if value <= 12)
_CLOCK = re.compile(
    rf"(?<![\d.,:€$£])(?:(?P<hour>\d{{1,2}})(?:(?:[:.]|{_SPACE}(?:heures|h|uhr){_SPACE})(?P<minute>[0-5]\d))?(?!\d|[.,]\d)"
    rf"|\b(?P<word>{_HOUR})\b)"
    rf"(?:(?P<meridiem>{_MERIDIEM})|{_SPACE}(?P<mark>(?:o['’]clock|uhr|heures|h)\b))?(?:{_SPACE}(?:{_HALF})\b)?",
    _IGNORE,
)
_BEFORE_A_TIME = re.compile(
    r"(?:\b(?:at|by|until|till|from|before|after|since|between|um|bis|ab|vor|nach|à|dès|jusqu['’]à|a las|las|hasta las"
    r"|desde las)\s)$",
    _IGNORE,
)
_TO = re.compile(r"\s{0,2}(?:to|and|until|till|-|–|—|bis|und|à|a las|y las)\s{0,2}$", _IGNORE)
_PAST = re.compile(rf"\b(half|quarter)\s(past|to)\s(\d{{1,2}}|{_HOUR})\b(?:{_SPACE}(?:{_HALF})\b)?", _IGNORE)


def times(text: str) -> Iterator[Hit]:
    """Times of the day, HH:MM in 24 hours; one that may also be twelve hours later ends with `EITHER`.

    In `from 2 to 9 pm` the end's half of the day is the start's too, unless the start would then be later.
    """
    for word, value in _table({value: names for value, names in _NOON.items()}).items():
        for hit in re.finditer(rf"\b{word}\b", text, _IGNORE):
            yield *hit.span(), value
    for hit in _PAST.finditer(text):
        minutes = {"half past": 30, "quarter past": 15, "quarter to": -15}.get(f"{hit[1]} {hit[2]}".casefold())
        if minutes is not None:
            yield *hit.span(), _clock(60 * int(number(hit[3])) + minutes, _half(hit))
    hits = list(_CLOCK.finditer(text))
    for place, hit in enumerate(hits):
        following = hits[place + 1] if place + 1 < len(hits) else None
        ranged = following is not None and bool(_TO.fullmatch(text[hit.end() : following.start()]))
        half = _half(hit) or (_half(following) if ranged and following and not hit["mark"] else "")
        if not (_is_time(hit) or (ranged and following and _is_time(following))) and not (
            int(_hour(hit)) <= 24 and _BEFORE_A_TIME.search(text, max(0, hit.start() - 14), hit.start())
        ):
            continue
        minutes = 60 * int(_hour(hit)) + int(hit["minute"] or 0)
        if minutes >= 24 * 60:
            continue
        if ranged and following and not _half(hit) and half == "pm":
            ends = _in_the_afternoon(60 * int(_hour(following)) + int(following["minute"] or 0))
            half = "pm" if _in_the_afternoon(minutes) < ends else "am"
        # Nobody writes 07:25 for the evening.
        yield *hit.span(), _clock(minutes, half, exact=hit[0].startswith("0"))


def _hour(hit: re.Match[str]) -> str:
    return number(hit["hour"] or hit["word"])


def _is_time(hit: re.Match[str]) -> bool:
    return bool(hit["meridiem"] or hit["mark"] or (hit["minute"] and ":" in hit[0]) or hit["am"] or hit["pm"])


def _half(hit: re.Match[str]) -> str:
    """The half of the day that is said, am or pm; empty where none is."""
    if hit.groupdict().get("meridiem"):
        return f"{hit['half'].casefold()}m"
    return "am" if hit["am"] else "pm" if hit["pm"] else ""


def _in_the_afternoon(minutes: int) -> int:
    return minutes + 12 * 60 if minutes < 12 * 60 else minutes


def _clock(minutes: int, half: str, exact: bool = False) -> str:
    either = EITHER if not half and not exact and 60 <= minutes < 13 * 60 else ""
    if half == "pm":
        minutes = _in_the_afternoon(minutes)
    elif half == "am" and minutes >= 12 * 60:
        minutes -= 12 * 60
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}{either}"


@cache
def _calendar() -> tuple[dict[str, int], dict[str, int]]:
    """Months from 1 and days from 0 (Monday), by their names."""
    from babel import Locale

    months: dict[str, int] = {}
    days: dict[str, int] = {}
    for locale in map(Locale, _LANGUAGES):
        for width in ("wide", "abbreviated"):
            for key, name in locale.months["format"][width].items():
                months.setdefault(name.casefold().rstrip("."), key)
        for key, name in locale.days["format"]["wide"].items():
            days.setdefault(name.casefold(), key)
            days.setdefault(f"{name.casefold()}s", key)
    # What is another word too.
    return {name: key for name, key in months.items() if name not in ("mar", "sept")}, days


@cache
def _date_patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    months, days = _calendar()
    month, day, year = _one_of(months), r"(\d{1,2})(?:st|nd|rd|th|er|\.)?", r"(?:,?\s(?:de\s)?(\d{4}))?"
    first = re.compile(rf"(?<!\d){day}\s(?:of\s|de\s)?({month})\b\.?{year}", _IGNORE)
    return (
        first,
        re.compile(rf"\b({month})\b\.?\s{day}(?!\d){year}", _IGNORE),
        re.compile(rf"\b({_one_of(days)})\b", _IGNORE),
    )


def dates(text: str) -> Iterator[Hit]:
    """Days: YYYY-MM-DD or MM-DD, and days of the week by their English name."""
    months, days = _calendar()
    day_first, month_first, weekday = _date_patterns()
    for hit in re.finditer(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)", text):
        yield *hit.span(), hit[0]
    for hit in re.finditer(r"(?<![\d.])(\d{1,2})\.(\d{1,2})\.(\d{4})?(?!\d)", text):
        yield *hit.span(), _date(int(hit[2]), int(hit[1]), hit[3])
    for hit in day_first.finditer(text):
        yield *hit.span(), _date(months[hit[2].casefold()], int(hit[1]), hit[3])
    for hit in month_first.finditer(text):
        yield *hit.span(), _date(months[hit[1].casefold()], int(hit[2]), hit[3])
    names = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    for hit in weekday.finditer(text):
        yield *hit.span(), names[days[hit[1].casefold()]]


def _date(month: int, day: int, year: str | None) -> str:
    return f"{year}-{month:02}-{day:02}" if year else f"{month:02}-{day:02}"


@cache
def _units() -> dict[str, str]:
    """Units by their names and signs."""
    from babel.units import format_unit

    found = _table(_MORE_UNITS)
    for unit in _CLDR_UNITS:
        short = unit.partition("-")[2]
        for language in _LANGUAGES:
            for length in ("long", "short"):
                for count in (1, 2):
                    name = re.sub(
                        r"[\d\s\u00a0\u202f]+", " ", format_unit(count, unit, length, locale=language)
                    ).strip()
                    found.setdefault(name.casefold().rstrip("."), short)
    # A unit of one letter is one only where it is much used; French writes terabytes as `to`.
    return {name: unit for name, unit in found.items() if (len(name) > 1 or name in "%°mglsh") and name != "to"}


@cache
def _quantity_pattern() -> re.Pattern[str]:
    return re.compile(rf"(?<![\d.,])({_NUMBER})[ \u00a0\u202f-]{{0,2}}({_one_of(_units())})(?!\w)", _IGNORE)


# In French and Spanish a time of the day is written as a number of hours.
_HOURS = ("h", "heures", "heure", "horas")


def _is_clock(text: str, start: int, end: int) -> bool:
    after = re.compile(rf"{_SPACE}(?:à\b|[0-5]\d\b|{'|'.join(_HALF_DAYS.values())})", _IGNORE)
    return bool(_BEFORE_A_TIME.search(text, max(0, start - 14), start) or after.match(text, end))


def quantities(text: str) -> Iterator[Hit]:
    """Numbers with a unit, and floors of a house (the ground floor is 0)."""
    units, ordinals = _units(), _table(_ORDINALS)
    for hit in _quantity_pattern().finditer(text):
        if hit[2].casefold() in _HOURS and _is_clock(text, *hit.span()):
            continue
        yield *hit.span(), f"{number(hit[1])} {units[hit[2].casefold()]}"
    for hit in re.finditer(
        rf"(?:\b({_one_of(ordinals)})|(?<!\d)(\d{{1,3}})(?:st|nd|rd|th|er|e|ª|\.)?)\s{_FLOOR}\b", text, _IGNORE
    ):
        yield *hit.span(), f"{ordinals[hit[1].casefold()] if hit[1] else hit[2]} floor"


def codes(text: str) -> Iterator[Hit]:
    """Words of letters and digits, in their own case, and numbers of four and more digits."""
    for hit in re.finditer(r"(?<![\w.,€$£-])(?=[\w-]{0,30}\d)(?=[\d_-]{0,30}[^\W\d_])\w[\w-]{2,40}(?!\w)", text):
        if not re.fullmatch(r"\d+(?:st|nd|rd|th|er|e|s)", hit[0], _IGNORE):
            yield *hit.span(), hit[0]
    for hit in re.finditer(r"(?<![\w.,€$£-])\d{4,20}(?![\w-]|[.,]\d)", text):
        yield *hit.span(), hit[0]


def numbers(text: str) -> Iterator[Hit]:
    """Numbers of no other kind."""
    for hit in re.finditer(rf"(?<![\w.,-])({_NUMBER})(?:st|nd|rd|th)?(?!\w)", text, _IGNORE):
        yield *hit.span(), number(hit[1])


# In the order in which they take a place of the text; names and other numbers come last.
FINDERS: dict[str, Finder] = {
    "email": emails,
    "url": urls,
    "phone": phones,
    "date": dates,
    "price": prices,
    "quantity": quantities,
    "time": times,
    "code": codes,
}
