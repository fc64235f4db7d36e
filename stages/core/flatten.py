"""Nested values with one key each (`lora.r`), as text, without the credentials that addresses carry."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

_LOGIN = re.compile(r"^(//)?[^/]*:[^/]*@")
# Between the addresses of a chain, of which all but the last are of fsspec: zip://a.csv::https://host/a.zip.
_CHAINED = re.compile(r"::(?=[A-Za-z][\w+.-]*(?:://|::))")
# Names in a query whose value is no business of a file that is committed.
_SECRET = re.compile(
    r"token|secret|passw|pwd|signature|credential|(api|access)[_-]?key|^sig$|^key$|^auth(?!or)", re.IGNORECASE
)

# What to do with an address that has credentials.
CREDENTIALS = (
    "the address carries a password, key or token, which would be committed with it; put it into ~/.netrc or, for a"
    " plug-in, into its own environment variables"
)


def flat(values: dict[str, Any], text: Callable[[Any], str], prefix: str = "") -> dict[str, str]:
    """Every value under its keys, joined by dots; a list is one value."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, text, f"{prefix}{key}.")
        elif isinstance(value, list):
            found[f"{prefix}{key}"] = ", ".join("none" if one is None else text(one) for one in value)
        else:
            found[f"{prefix}{key}"] = "none" if value is None else text(value)
    return found


def plain(value: Any) -> str:
    """A value as YAML has it; 2.0 and 2 are one number."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def without_credentials(values: dict[str, str]) -> dict[str, str]:
    """Flat values whose addresses have lost user, password, query and fragment, where credentials travel."""
    return {key: address(value) if key.endswith(".url") or "://" in value else value for key, value in values.items()}


def address(url: str) -> str:
    """An address without user, password, query and fragment, where credentials travel; a path as it is."""
    return "::".join(map(_bare, _CHAINED.split(url)))


def has_credentials(url: str) -> bool:
    """Whether an address, or one of those that fsspec chains by `::`, carries a password, a key or a token."""
    return any(map(_carries, _CHAINED.split(url)))


def _bare(url: str) -> str:
    if "://" not in url:
        # An address whose scheme was forgotten looks like a path.
        path, _, query = url.partition("?")
        return _LOGIN.sub(r"\1", path if "=" in query else url)
    try:
        parts = urlsplit(url)
    except ValueError:
        # Where its user and password end is unknown.
        return url.partition("://")[0] + "://..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _carries(url: str) -> bool:
    if "://" not in url:
        return bool(_LOGIN.match(url))
    try:
        parts = urlsplit(url)
    except ValueError:
        return "@" in url
    login, at, _ = parts.netloc.rpartition("@")
    # A user alone may be needed to log in with a key, but on the web it is a token.
    secret = ":" in login or (at and parts.scheme in ("http", "https"))
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return bool(secret) or any(map(_SECRET.search, named))
