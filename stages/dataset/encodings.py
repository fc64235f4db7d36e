"""Which encoding a text's bytes are in: whether a declared one exists, fits, and what is likely instead."""

import codecs

from charset_normalizer import from_bytes

from stages.core.cli import UserError
from stages.dataset import language

BINARY = "a binary file"
# Encodings that CSVs are found in; a guess among all that there are is mostly wrong.
_USUAL = ["utf_8", "utf_16", "cp1252", "cp1250", "cp1251", "shift_jis", "gb18030", "big5", "euc_kr"]
_CP1250_LANGUAGES = {"bs", "cs", "hr", "hu", "pl", "ro", "sk", "sl", "sq"}
# Bytes that some codecs take for half of a character, which no file can be written with.
_TRIAL = b'"+2AA-\\ud800" '
# Any bytes are text in these, so only the language distinguishes them.
_BY_LANGUAGE = ["cp1252", "cp1250", "cp1251"]
_JUDGED = {*_BY_LANGUAGE, "iso8859-1"}
_CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґўђѓјљњќћџ"
# Letters beyond a to z, by language.
_LETTERS = {
    **dict.fromkeys(("be", "bg", "mk", "ru", "uk"), _CYRILLIC),
    **dict.fromkeys(("bs", "hr", "sl"), "čćžšđ"),
    **dict.fromkeys(("da", "no"), "æøåé"),
    "ca": "àçèéíïòóúü·",
    "cs": "áčďéěíňóřšťúůýž",
    "de": "äöüß",
    "en": "",
    "es": "áéíñóúü¿¡",
    "fi": "äöå",
    "fr": "àâæçéèêëîïôœùûü",
    "hu": "áéíóöőúüű",
    "is": "áðéíóúýþæö",
    "it": "àèéìòù",
    "nl": "éëïöè",
    "pl": "ąćęłńóśźż",
    "pt": "áàâãçéêíóôõúü",
    "ro": "ăâîşţ",
    "sk": "áäčďéíĺľňóôŕšťúýž",
    "sq": "çë",
    "sr": _CYRILLIC + "čćžšđ",
    "sv": "åäöé",
}
_SIGNS = "“”‘’‚„–—…€•™"
# So many signs that two encodings read differently, and so large a share of them that fits, are no chance.
_SIGNS_NEEDED, _FITTING = 5, 0.9


def known(declared: str, key: str) -> str:
    """Python's own name of a declared encoding; `key` is the parameter that declares it.

    Raises:
        UserError: it has none, or it is no encoding of a file of text.
    """
    try:
        # LookupError for codecs that make no text, such as hex.
        _TRIAL.decode(declared, "ignore").encode()
        name = codecs.lookup(declared).name
    except (LookupError, ValueError):
        name = "punycode"
    # The one codec of host names that takes the trial.
    if name == "punycode":
        raise UserError(f"{key}: {declared!r} is not an encoding of text; expected e.g. utf-8 or cp1252")
    return name


def guess(sample: bytes) -> str:
    """The most likely encoding of a sample, seen from its lines that are not ASCII."""
    odd = _odd(sample)
    best = from_bytes(odd, cp_isolation=_USUAL).best()
    if best is None:
        return BINARY
    if best.encoding not in ("cp1250", "cp1252"):
        return best.encoding
    # These two differ in few letters, and only the language shows which of them is meant.
    return "cp1250" if language.detect(odd.decode("cp1250", "ignore"), 1) in _CP1250_LANGUAGES else "cp1252"


def contradicted(name: str, sample: bytes) -> str | None:
    """Another encoding in which the sample is clearly a text, and in `name` it is none of that language.

    Only encodings that take any byte are judged, and only by signs that the two read differently.
    """
    if name not in _JUDGED:
        return None
    odd = _odd(sample)
    fits = {other: _fit(odd, name, other) for other in _BY_LANGUAGE if other != name}
    best = max(fits, key=lambda other: fits[other])
    return best if fits[best] >= _FITTING else None


def _fit(odd: bytes, name: str, other: str) -> float:
    """Share of signs that `other` reads as letters of the text's language, of those that `name` reads differently."""
    text = odd.decode(other, "replace")
    letters = _LETTERS.get(language.detect(text) or "")
    differing = [sign for sign, now in zip(text, odd.decode(name, "replace"), strict=True) if sign != now]
    if letters is None or len(differing) < _SIGNS_NEEDED:
        return 0.0
    # Accents read as Cyrillic letters look like Serbian, which is written in both; but only a few letters are accents.
    if other == "cp1251" and sum(map(str.isalpha, differing)) < sum(sign.isascii() and sign.isalpha() for sign in text):
        return 0.0
    return sum(sign.lower() in letters or sign in _SIGNS for sign in differing) / len(differing)


def _odd(sample: bytes) -> bytes:
    return b"\n".join(line for line in sample.splitlines() if not line.isascii())
