"""Which encoding a text's bytes are in: whether a declared one exists, fits, and what is likely instead."""

import codecs

from charset_normalizer import from_bytes

from stages.core.cli import UserError
from stages.dataset import language

BINARY = "a binary file"
UNKNOWN = "an unknown encoding"
# Encodings that CSVs are found in; a guess among all that there are is mostly wrong.
_USUAL = ["utf_8", "utf_16", "cp1252", "cp1250", "cp1251", "shift_jis", "gb18030", "big5", "euc_kr"]
# Older ones, which are found by the letters of the text's language where the usual ones give none.
_OLDER = ["mac_roman", "cp850", "cp437", "koi8_r", "mac_cyrillic", "cp866", "iso8859_7", "cp1254", "cp1255", "cp1256"]
# Bytes that no text has, whatever its encoding.
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\x0b\x0c\x1a\x1b"))
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
    "el": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",
    "es": "áéíñóúü¿¡",
    "fi": "äöå",
    "fr": "àâæçéèêëîïôœùûü",
    "ar": "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىي؟،",
    "he": "אבגדהוזחטיךכלםמןנסעףפץצקרשת",
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
    "tr": "çğıİöşüâ",
}
_SIGNS = "“”‘’‚„–—…€•™"
# What a text in an older encoding is taken for.
_GUESSED_WRONGLY = ("cp1250", "cp1251", "cp1252", "shift_jis")
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
    """The most likely encoding of a sample, seen from its lines that are not ASCII; or BINARY, or UNKNOWN."""
    odd = _odd(sample)
    best = from_bytes(odd, cp_isolation=_USUAL).best()
    name = best.encoding if best else None
    # These two differ in few letters, and only the language shows which of them is meant.
    if name in ("cp1250", "cp1252"):
        name = "cp1250" if language.detect(odd.decode("cp1250", "ignore"), 1) in _CP1250_LANGUAGES else "cp1252"
    if name in (None, *_GUESSED_WRONGLY) and (older := _older(odd, name)):
        return older
    return name or (BINARY if any(byte in _CONTROL for byte in sample) else UNKNOWN)


def _older(odd: bytes, name: str | None) -> str | None:
    """An older encoding in which the text has its language's letters, where it has them not in `name`."""
    if name and _share_of_letters(odd, name) >= _FITTING:
        return None
    likely = [one.encoding for one in from_bytes(odd, cp_isolation=_OLDER)]
    return next((older for older in likely if _share_of_letters(odd, older) >= _FITTING), None)


def _share_of_letters(odd: bytes, name: str) -> float:
    """Of the signs beyond ASCII, the share that are letters of the language in which the text reads."""
    text = odd.decode(name, "replace")
    letters = _LETTERS.get(language.detect(text, 1) or "")
    signs = [sign for sign in text if not sign.isascii()]
    if not letters or len(signs) < _SIGNS_NEEDED:
        return 0.0
    known = sum(sign.lower() in letters for sign in signs)
    # Bytes of letters read as dashes and quotes are no sign of a text.
    return (known + sum(sign in _SIGNS for sign in signs)) / len(signs) if 2 * known >= len(signs) else 0.0


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
