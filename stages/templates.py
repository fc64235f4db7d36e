"""Jinja over this folder, and the filters that let any text stand in Markdown as text."""

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment() -> Environment:
    """Templates named .html.jinja escape by themselves, Markdown asks for `cell`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"clip": clip, "cell": cell, "number": number}
    return environment


def clip(text: str, limit: int) -> str:
    """The text's first `limit` characters; an ellipsis stands for the rest."""
    return text if len(text) <= limit else text[:limit].rstrip() + "…"


def cell(value: Any) -> str:
    """Any text as one cell of a Markdown table: shown as it is, never as markup, a link's image or a mention."""
    text = html.escape(number(value), quote=False)
    text = re.sub(r"([\\`*_\[\]~|$])", r"\\\1", text)
    # GitHub would notify the person, or link the issue, that a model happens to name.
    text = re.sub(r"([@#])(?=\w)", r"\1<!-- -->", text)
    return "<br>".join(line.strip() for line in text.strip().splitlines()) or "(empty)"


def number(value: Any) -> str:
    """A fact as text: whole numbers with separators, others with four digits that count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
