"""Finders of addresses that a machine reads: URLs, e-mail addresses, phone and account numbers."""

import itertools
import re
from collections.abc import Iterator

from phonenumbers import Leniency, PhoneNumberFormat, PhoneNumberMatcher, format_number
from stdnum import iban

from stages.metrics.fact_finders.amounts import Match
from stages.metrics.fact_finders.reading import Reading

# Every repetition is bounded, so that no text makes a search take more than linear time.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}")
_ENDINGS = "com|org|net|io|dev|app|edu|gov|info|shop|hotel|de|fr|es|at|ch|uk|eu|it|nl|be|us|ca|au|example|test"
_URL = re.compile(
    rf"(?<![\w@.-])(?:https?://[^\s<>\"“”\0]{{1,2000}}|(?:[\w-]{{1,63}}\.){{1,6}}(?:{_ENDINGS})(?![\w@-])(?:[/?#][^\s<>\"“”\0]{{0,2000}})?)"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_DIGITS = re.compile(r"(?<![\w.,])[+(]{0,2}\d(?:[ ./()-]{0,3}\d){6,18}")
# Without a country's code a number only counts in a form that people write: (212) 555-0123, 020 7946 0958.
_NATIONAL = re.compile(r"\(\d{2,5}\)|0\d{1,4}[ -/]|(?:1[-. ])?\d{3}[-. ]\d{3}[-. ]\d{4}$")
_REGIONS = {
    "en": ("US", "GB", "AU", "IN"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR", "BE", "CH"),
    "es": ("ES", "MX", "AR"),
}
_EMERGENCY = re.compile(
    r"\b(?:[Cc]all|[Dd]ial|[Rr]ing|[Rr]ufen Sie|[Ww]ählen Sie|[Aa]ppelez|[Cc]omposez|[Ll]lame)\s"
    r"(?:the\s|den\s|die\s|le\s|al\s)?(112|911|999|110|115|116117)(?!\w)"
)
# How many runs of digits in one text are looked at as phone numbers: the library is slow.
_CANDIDATES = 100


def emails(reading: Reading) -> Iterator[Match]:
    """E-mail addresses, lower case."""
    for match in _EMAIL.finditer(reading.text):
        yield "email", match[0].lower(), *match.span()


def urls(reading: Reading) -> Iterator[Match]:
    """Web addresses without scheme, `www.` and the slash at the end; the host lower case."""
    for match in _URL.finditer(reading.text):
        address = match[0].rstrip(".,;:!?)'’]*")
        bare = re.sub(r"^(?:https?://)?(?:www\.)?", "", address).rstrip("/")
        host, slash, path = bare.partition("/")
        yield "url", host.lower() + slash + path, match.start(), match.start() + len(address)


def accounts(reading: Reading) -> Iterator[Match]:
    """IBANs with a right check digit, without spaces."""
    for match in _IBAN.finditer(reading.text):
        if iban.is_valid(match[0]):
            yield "code", iban.compact(match[0]), *match.span()


def phones(reading: Reading) -> Iterator[Match]:
    """Phone numbers: `+442079460958`, and the digits alone where no country's code is given."""
    for match in _EMERGENCY.finditer(reading.text):
        yield "phone", match[1], *match.span(1)
    for digits in itertools.islice(_DIGITS.finditer(reading.text), _CANDIDATES):
        yield from _phone(digits, reading.language)


def _phone(digits: re.Match[str], language: str) -> Iterator[Match]:
    regions: list[str | None] = [None, *(_REGIONS[language] if _NATIONAL.match(digits[0]) else ())]
    for region in regions:
        # Grouped as in its country, or else booking codes would be among them.
        leniency = Leniency.STRICT_GROUPING if region else Leniency.VALID
        for match in PhoneNumberMatcher(digits[0], region, leniency):
            plain = re.sub(r"\D", "", match.raw_string)
            number = format_number(match.number, PhoneNumberFormat.E164) if match.raw_string[0] == "+" else plain
            yield "phone", number, digits.start() + match.start, digits.start() + match.end
            return
