"""Words of English, German, French and Spanish for dates, units and money: of the CLDR and of words.yaml."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from babel import Locale
from babel.units import format_unit

LANGUAGES = ("en", "de", "fr", "es")

# Units by their name in the CLDR. The temperature's scale is seldom said: only Fahrenheit is a unit of its own.
_UNITS = {
    "duration": "second minute hour day week month year night",
    "length": "millimeter centimeter meter kilometer mile yard foot inch nautical-mile",
    "mass": "milligram gram kilogram tonne pound ounce",
    "volume": "milliliter centiliter liter gallon pint",
    "area": "square-meter square-kilometer square-foot hectare acre",
    "digital": "byte kilobyte megabyte gigabyte terabyte",
    "speed": "kilometer-per-hour meter-per-second mile-per-hour knot",
    "temperature": "generic celsius fahrenheit",
    "energy": "kilowatt-hour kilocalorie",
    "power": "watt kilowatt horsepower",
    "electric": "volt ampere",
    "frequency": "hertz megahertz gigahertz",
    "graphics": "pixel megapixel",
    "concentr": "percent",
}
_DEGREES = {"generic": "degree", "celsius": "degree"}
# Units of one measure that people convert without thinking, in their smallest: `90 minutes` is `1.5 hours`.
SCALES = {
    "minute": ("second", 60), "hour": ("second", 3600), "week": ("day", 7), "centimeter": ("millimeter", 10),
    "meter": ("millimeter", 1000), "kilometer": ("millimeter", 10**6), "gram": ("milligram", 1000),
    "kilogram": ("milligram", 10**6), "liter": ("milliliter", 1000), "centiliter": ("milliliter", 10),
}  # fmt: skip


def _table(forms: dict[str, str]) -> dict[str, str]:
    """The key of each of its forms."""
    return {form: key for key, listed in forms.items() for form in listed.split(", ")}


WORDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
_UNIT_WORDS, _UNIT_SIGNS = _table(WORDS["units"]), _table(WORDS["unit_signs"])
CURRENCY_CODES: list[str] = WORDS["currency_codes"].split()
CURRENCY_SIGNS, CURRENCY_WORDS = _table(WORDS["currency_signs"]), _table(WORDS["currency_words"])
MAGNITUDES = {word: int(factor) for word, factor in _table(WORDS["magnitudes"]).items()}
FLOORS: list[str] = WORDS["floors"].split()


@functools.cache
def months(language: str) -> dict[str, int]:
    """The months' names and abbreviations, lower case, with their numbers."""
    names: dict[str, int] = {}
    for width in ("abbreviated", "wide"):
        for number, name in Locale(language).months["format"][width].items():
            names[name.lower().rstrip(".")] = number
    if language == "en":
        names["sept"] = 9
    return names


@functools.cache
def weekdays(language: str) -> dict[str, str]:
    """The days' names in all forms, lower case, with their English names; of abbreviations see `short_weekdays`."""
    names = _days(language, "wide")
    return names | {f"{name}s": day for name, day in names.items() if not name.endswith("s")}


@functools.cache
def short_weekdays(language: str) -> dict[str, str]:
    """The days' abbreviations, which are other words too."""
    return {name.rstrip("."): day for name, day in _days(language, "abbreviated").items()}


def _days(language: str, width: str) -> dict[str, str]:
    english = Locale("en").days["format"]["wide"]
    return {name.lower(): english[at].lower() for at, name in Locale(language).days["format"][width].items()}


@functools.cache
def units(language: str) -> dict[str, str]:
    """The units' names, lower case, with their names in the CLDR."""
    names = dict(_UNIT_WORDS)
    for group, members in _UNITS.items():
        for unit in members.split():
            for name in _names(f"{group}-{unit}", language):
                names[name] = _DEGREES.get(unit, unit)
                if language == "de":  # the dative: in drei Tagen
                    names[f"{name}n"] = names[name]
    return names


def _names(unit: str, language: str) -> set[str]:
    forms = {format_unit(number, unit, "long", locale=language) for number in (1, 2)}
    return {" ".join(form.split()[1:]).lower() for form in forms}


@functools.cache
def unit_pattern(language: str) -> str:
    """A pattern of all units, which is case-sensitive for abbreviations only; `[-\\s]` may be in a name."""
    words = "|".join(alternatives(units(language)))
    signs = "|".join(alternatives(_UNIT_SIGNS))
    return rf"(?:(?i:{words})(?:-old)?(?!\w|-\w)|(?:{signs})(?![\w/²]))"


def unit_of(name: str, language: str) -> str:
    """The name in the CLDR of a unit that `unit_pattern` has matched."""
    return _UNIT_SIGNS.get(name) or units(language)[" ".join(name.lower().removesuffix("-old").split())]


def alternatives(words: Iterable[str]) -> list[str]:
    """Words for a pattern, the longest first."""
    return [re.escape(word).replace(r"\ ", r"[\s-]") for word in sorted(words, key=lambda word: (-len(word), word))]
