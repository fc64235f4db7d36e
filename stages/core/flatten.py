"""Nested values with one key each (`lora.r`), as text, without the credentials that addresses carry."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_LOGIN = re.compile(r"^(//)?[^/]*:[^/]*@")


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
