"""Whether a text ends as a sentence may end."""

import re
import unicodedata

# How much of a text's end is looked at.
_END = 700
# Words of the longest name.
_NAME = 4
_FINISHED = re.compile(r"[.!?…:;。！？：；।؟)\]}\"'”’»›*`~|]$|[^\w\s,\-–—、，،]$|https?://\S+$|\S+@\S+\.\w+$|\d$")
# Scripts that have no full stop, or whose writers leave it out; of their unpunctuated texts only words that cannot be
# the last one are known.
_WITHOUT_STOP = (
    "THAI ",
    "LAO ",
    "CJK ",
    "HIRAGANA ",
    "KATAKANA",
    "TIBETAN ",
    "KHMER ",
    "MYANMAR ",
    "JAVANESE ",
    "BALINESE ",
)
_OPEN = re.compile(
    r"(?:因为|因為|以及|但是|如果|虽然|雖然|或者|并且|並且|而且|由于|由於|(?<![暖温柔平缓饱共附总])和|(?<![参赋给授])与|を|および|または|そして|しかし"
    r"|และ|แต่|เพราะ|โดย|คือ|ເພາະ|ແລະ)$"
)
# A name in code, a token or a path, and a line of dashes.
_CODE = re.compile(r"(?<!\S)\S*[\d_/\\]\S*\w$|---$")
# Korean sentences end in these syllables, with or without a full stop.
_KOREAN = re.compile(r"[다요까죠네]$")


def finished(text: str) -> bool:
    """Whether a text ends with a sign, a number, an address or an emoji, and not within a sentence.

    A single word or a name is an answer and no sentence. In scripts without a full stop (Thai, Chinese, Japanese and
    others) a text counts as finished unless its last word calls for another.
    """
    end = text.strip()[-_END:]
    if not any(map(str.isalpha, end)) or _FINISHED.search(end) or _KOREAN.search(end) or _CODE.search(end):
        return True
    if _without_stop(end[-1]):
        return not _OPEN.search(end)
    return _is_name(end.split())


def _is_name(words: list[str]) -> bool:
    """Whether it is a word or a name, such as Yes or New York, and no sentence."""
    return len(words) == 1 and words[0].isalpha() or len(words) <= _NAME and all(word[0].isupper() for word in words)


def _without_stop(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_WITHOUT_STOP)
