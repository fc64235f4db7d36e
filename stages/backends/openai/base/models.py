"""What is known of OpenAI's own models, from models.yaml, and the shut-down date that a service tells."""

import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.backends.openai.base.client import is_openai
from stages.backends.openai.base.replies import field, number

TABLE = Path(__file__).with_name("models.yaml")


@cache
def table() -> dict[str, Any]:
    """Return the whole file."""
    return dict(yaml.safe_load(TABLE.read_text(encoding="utf-8")))


def known(model: str, url: str) -> dict[str, Any]:
    """Return the table's entry for a model at OpenAI's address; empty for other models and other services."""
    names = [name for name in table()["models"] if model.startswith(name)] if is_openai(url) else []
    return dict(table()["models"][max(names, key=len)]) if names else {}


def shut_down(model: str, url: str, described: Any = None) -> datetime.date | None:
    """Return the date on which the service shuts a model down, if known.

    `described` is the model object; its date comes before the table's.
    """
    try:
        if date := field(described, "shutdown_date", str):
            return datetime.datetime.fromisoformat(date).date()
        if seconds := number(described, "shutdown_date"):
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    except (ValueError, OverflowError, OSError):
        pass
    return known(model, url).get("shut_down")
