"""What a template leaves where a name or a number should be: `{{Order Number}}`, `[Customer Name]`, `<NAME>`."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from stages.dataset.cards import Span

# How many different ones of a conversation are listed, of how many.
_LISTED, _LOOKED_AT = 20, 1000
_INNER = r"[^{}\[\]<>\n]{1,56}"
_ANY = re.compile(
    # In double braces and in ${} a name is enough: ordinary text has neither.
    rf"(?P<braces>(?<!\$)\{{\{{\{{?[#^/!&~]?{_INNER}\}}\}}\}}?)"
    rf"|(?P<dollar>\$\{{{_INNER}\}})"
    r"|(?P<percent>%\([A-Za-z_]\w{0,40}\)[sd]\b|(?<![\w%\"'])%s(?![\w\"']))"
    r"|(?P<merge>\*\|[A-Z][A-Z0-9_:]{1,40}\|\*|<<\s?[A-Za-z][\w ]{1,40}>>)"
    # Ordinary text has single brackets: there the words have to name what is to be filled in.
    rf"|(?P<square>(?<![\w\]\[!\\])\[{_INNER}\](?![\w(\[:]))"
    rf"|(?P<curly>(?<![\w{{$#\\])\{{{_INNER}\}}(?![\w}}]))"
    rf"|(?P<angle>(?<![\w<])<{_INNER}>(?![\w>]))"
)
_BETWEEN_WORDS = re.compile(r"[\s_\-/&.,'’:#]+|(?<=[a-z])(?=[A-Z])")
_MOST_WORDS = 7
_NOUNS = frozenset(
    re.findall(
        r"\w+",
        """
        name names firstname lastname surname fullname username number numbers no id date time day month year
        address street city country state zip postcode email mail phone telephone fax mobile company
        organization organisation business brand store shop customer client user guest patient employee person
        agent manager team department product item order invoice ticket booking reservation account amount
        price cost total currency percentage discount code link url website title job position role recipient
        sender signature location venue event reason detail details hour hours service platform app university
        school degree industry field skill skills experience topic
        """,
    )
)
_ASKING = {"your", "insert", "enter", "specify", "fill"}
_CODE = re.compile(r"```[\s\S]*?(?:```|\Z)|`[^`\n]{1,300}`|<(code|pre|script)\b[\s\S]*?(?:</\1>|\Z)", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][\w-]{0,30}(?:\s[^<>]{0,60})?/?>")
_TAG_NEAR = 60
# A text about templates and programs shows placeholders on purpose.
_ABOUT_CODE = re.compile(
    r"\b(?:jinja2?|vue(?:\.?js)?|handlebars|mustache|angular(?:js)?|liquid|twig|django|ansible|helm|nunjucks|svelte|hugo"
    r"|github actions?|template (?:engine|literal|string|syntax|language|variable)s?|interpolat\w+"
    r"|(?:curly|square) br\w+s|bash|shell|printf|format (?:string|specifier)s?|f-strings?|javascript|typescript|python"
    r"|terraform|kubernetes|makefile|environment variables?|placeholders?|regex|css selectors?)\b|\{%",
    re.IGNORECASE,
)
_SIGNS = ("{", "[", "<", "%", "*|")
# In angle brackets these are HTML.
_HTML = {"address", "code", "title", "time", "text"}


def hint(text: str) -> bool:
    """Whether the text has a sign with which a placeholder begins."""
    return any(sign in text for sign in _SIGNS)


def find_placeholder(text: str, start: int = 0) -> Span | None:
    """The first placeholder from `start` on; code has none, and neither has a text that explains a template."""
    return next(_spans(text, start), None)


def listed(texts: Iterable[str]) -> list[str]:
    """The different placeholders of some texts, in order, at most 20."""
    spans = ((text, span) for text in texts if hint(text) for span in _spans(text, 0))
    found = (text[begin:end] for text, (begin, end) in islice(spans, _LOOKED_AT))
    return list(islice(dict.fromkeys(found), _LISTED))


def _spans(text: str, start: int) -> Iterator[Span]:
    plain = ""
    for match in _ANY.finditer(text, start):
        if not _is_left(match):
            continue
        if not plain:
            if _ABOUT_CODE.search(text):
                return
            # As long as before, so that places stay the same.
            plain = _CODE.sub(lambda code: " " * len(code[0]), text)
        if plain[match.start()] != " ":
            yield match.span()


def _is_left(match: re.Match[str]) -> bool:
    """Whether the words name what is to be filled in."""
    kind, inner = match.lastgroup, match[0].strip("{}[]<>$#^/!&~ ")
    words = [word for word in _BETWEEN_WORDS.split(inner) if word]
    if kind in ("percent", "merge"):
        return match[0] != "<<SYS>>"
    if not words or len(words) > _MOST_WORDS or not all(word.isalnum() for word in words):
        return False
    if kind == "dollar":
        return words[0][0].isalpha()
    if kind == "braces":
        # Between tags it is a binding, as Vue and Jinja write it.
        near = match.string[max(0, match.start() - _TAG_NEAR) : match.end() + _TAG_NEAR]
        return words[0][0].isalpha() and not _TAG.search(near)
    if kind == "angle" and (inner.lower() in _HTML or (inner.islower() and " " not in inner)):
        # Usage texts and XML have lower-case names.
        return False
    lower = [word.lower() for word in words]
    return lower[0] in _ASKING and len(words) > 1 or bool(_NOUNS & {*lower[-2:], lower[-1].rstrip("0123456789")})
