"""Prices and shut-down dates of OpenAI's models, from models.yaml."""

import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("models.yaml")


@cache
def table() -> dict[str, Any]:
    """Return the whole file."""
    return dict(yaml.safe_load(TABLE.read_text(encoding="utf-8")))


def known(model: str) -> dict[str, Any]:
    """Return the table's entry for a model, empty if it has none."""
    names = [name for name in table()["models"] if model.startswith(name)]
    return dict(table()["models"][max(names, key=len)]) if names else {}


def shut_down(model: str) -> datetime.date | None:
    """Return the date on which OpenAI shuts the model down, if announced."""
    return known(model).get("shut_down")
