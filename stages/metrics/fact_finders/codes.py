"""Finders of codes: what must be typed or quoted letter by letter."""

import itertools
import re
from collections.abc import Iterator

from stages.metrics.fact_finders.amounts import Match
from stages.metrics.fact_finders.reading import Reading

_INLINE = re.compile(r"`([^`\n\0]{1,200})`")
_FORMS = (
    # Versions, then files, KEY=VALUE, CONSTANTS_LIKE_THIS, keys to press, and the postcodes of Great Britain.
    re.compile(r"(?<![\w.,])v?(\d{1,5}(?:\.\d{1,5}){2,3})(?![\w.]*\w)"),
    re.compile(
        r"(?<![\w./-])((?:\.|[\w-]{1,60}\.)(?:json|ya?ml|toml|txt|py|csv|pdf|exe|zip|log|ini|cfg|sh|env|md|xml))(?!\w)"
    ),
    re.compile(r"(?<!\w)([A-Z][A-Z0-9_]{1,40}=[^\s,;\0]{1,80})"),
    re.compile(r"(?<!\w)([A-Z][A-Z0-9]{1,30}(?:_[A-Z0-9]{1,30}){1,6})(?!\w)"),
    re.compile(r"(?<!\w)((?:Ctrl|Strg|Cmd|Alt|Shift)(?:\+\w{1,10}){1,3})(?!\w)"),
    re.compile(r"(?<!\w)([A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2})(?!\w)"),
    re.compile(r"(?<!\w)#(\d{2,12})(?!\w)"),
)
# What is called a code, and then the code: digits, or a word that is none of the language.
_CALLED = re.compile(
    r"\b(?:code|codes|password|passcode|passphrase|pin|bic|swift|ssid|network|username|voucher|reference|order|ticket"
    r"|invoice|booking|passwort|kennwort|wlan|netzwerk|netz|rechnung|bestellung|gutschein|buchung|mot de passe|réseau"
    r"|wi-?fi|commande|facture|référence|contraseña|código|clave|red|pedido|factura|referencia)(?!\w)",
    re.IGNORECASE,
)
_NEXT = re.compile(r"[\wÀ-ÿ][\w@!*+-]{0,60}|(?<!\bNr)(?<!\bNo)(?<!\bN[º°])[.!?;\n](?!\w)")
_NEXT_WORDS, _NEXT_CHARS = 7, 120
_ORDINARY = {"Wi-Fi", "WiFi", "E-Mail", "WLAN", "QR-Code"}
_MIXED = re.compile(r"(?<![\w.,+])[A-Za-zÀ-ÿ0-9]{1,40}(?:[-_][A-Za-zÀ-ÿ0-9]{1,40}){0,6}(?![\w+])")
_NO_CODE = re.compile(r"\d+(?:st|nd|rd|th|er|e|ème|x|s|k|h|º|ª|D)|\d+-\d+k?|\d+-[a-zà-ÿ-]+|[a-zà-ÿ]+-\d+", re.ASCII)


def inline_codes(reading: Reading) -> Iterator[Match]:
    """What is in backticks."""
    for match in _INLINE.finditer(reading.text):
        yield "code", match[1].strip(), *match.span()


def forms(reading: Reading) -> Iterator[Match]:
    """Codes by their form alone."""
    for pattern in _FORMS:
        for match in pattern.finditer(reading.text):
            yield "code", match[1], *match.span()


def called_codes(reading: Reading) -> Iterator[Match]:
    """Codes by what is said before them: `the night code is 7315`, `das WLAN heißt Leuchtturm-Gast`."""
    for match in _CALLED.finditer(reading.text):
        after = _NEXT.finditer(reading.text, match.end(), match.end() + _NEXT_CHARS)
        for word in itertools.islice(after, _NEXT_WORDS):
            if word[0] in ".!?;\n":
                break
            code = word[0].rstrip("-*")
            if _looks_typed(code):
                yield "code", code, word.start(), word.start() + len(code)
                break


def mixed_codes(reading: Reading) -> Iterator[Match]:
    """Words of letters and digits: `B14`, `lowtide77`."""
    for match in _MIXED.finditer(reading.text):
        word = match[0]
        mixed = any(map(str.isdigit, word)) and any(map(str.isalpha, word))
        if mixed and not _NO_CODE.fullmatch(word):
            yield "code", word, *match.span()


def _looks_typed(word: str) -> bool:
    """Whether no sentence has such a word: with digits, capitals within, or in capitals alone."""
    if word in _ORDINARY:
        return False
    if word.isdigit():
        return len(word) >= 3
    has_digit = any(map(str.isdigit, word))
    capital_within = any(map(str.isupper, word[1:])) and not word.isupper()
    return (has_digit and not _NO_CODE.fullmatch(word)) or capital_within or (word.isupper() and len(word) >= 5)
