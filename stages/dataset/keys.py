"""API keys, tokens and private keys, distinguished from placeholders and published examples."""

import re

from stages.dataset.cards import START, Span

# Words that no generated key spells, and that its place in documentation does.
_PLACEHOLDER = re.compile(
    r"example|placeholder|changeme|replace|redacted|dummy|sample|insert|goes[-_]?here|secret[-_]?key|api[-_]?key"
    r"|(?<![a-z])(?:your|my|this|the|here|fake|todo|some)(?![a-z])|12345678|abcdefgh|x{6}|\.{3}|\*{3}"
    # jwt.io's own token.
    r"|eyJzdWIiOiIxMjM0NTY3ODkw",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"[a-z]{2,4}[_-]?([x0*#_-])\1*", re.IGNORECASE)
_PEM = r"[A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
# A key's body follows its header, after a few lines about it; a sentence that names the header has none.
_BODY = r"(?=[\s\S]{0,300}?(?<![\w+/=])[A-Za-z0-9+/=]{30})"
_KEY = re.compile(
    rf"{START}(?:sk-[\w-]{{20,}}+|(?:AKIA|ASIA)[0-9A-Z]{{16}}\b|gh[pousr]_\w{{36,}}+|github_pat_\w{{22,}}+"
    r"|hf_\w{30,}+|glpat-[\w-]{20,}+|[sr]k_(?:live|test)_\w{16,}+|xox[abprs]-[\w-]{10,}+|AIza[\w-]{35}\b"
    # Two more parts make it a token; without them the word is read all the same, so that none is read twice.
    r"|eyJ[\w-]{10,}+(?P<token>\.eyJ[\w-]{10,}+\.[\w-]{10,}+)?+)"
    # The key's body is the secret: all of it, up to its end or that of the text.
    rf"|(?P<pem>-----BEGIN {_PEM}){_BODY}(?P<body>[\s\S]*?)(?:-----END {_PEM}|\Z)"
)
_RUN = re.compile(r"[A-Za-z0-9+/=]{30,}")
_HINTS = (
    *("sk-", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "glpat-"),
    *("k_live_", "k_test_", "xox", "AIza", "eyJ", "PRIVATE KEY"),
)


def hint(text: str) -> bool:
    """Whether the text has the beginning of a key."""
    return any(one in text for one in _HINTS)


def find_key(text: str, start: int = 0) -> Span | None:
    """The first key from `start` on that is no placeholder."""
    for match in _KEY.finditer(text, start):
        if _is_secret(match):
            return match.span()
    return None


def _is_secret(match: re.Match[str]) -> bool:
    if match["pem"]:
        run = _RUN.search(match["body"])
        return bool(run and len(set(run[0].lower())) > 2)
    key = match[0]
    if key.startswith("eyJ"):
        return bool(match["token"]) and not _PLACEHOLDER.search(key)
    word = key.startswith("sk-") and key.islower() and not any(map(str.isdigit, key))
    return not (word or _PLACEHOLDER.search(key) or _NOTHING.fullmatch(key))
