"""Jinja, the style that all pages share, and the filters that show any text in Markdown as text."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

# Where a gap keeps GitHub from acting on words that a model happens to write: @somebody, who would be notified; #12,
# GH-12 and a commit's whole SHA, which would be linked from there too; addresses; and :tada:, which becomes a picture.
_LIVE = re.compile(
    r"(?<=[@#])(?=\w)|(?<=GH)(?=-\d)|(?<=\b[0-9a-f]{3})(?=[0-9a-f]{37}\b)"
    r"|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=:)(?=[\w+-]+:)",
    re.IGNORECASE,
)
# Part of each page: what is opened from a disk or sent by mail has no other file beside it.
_STYLE = "page.css"
# Placeholder of the gap while the text is escaped.
_GAP = "\0"


def environment(folder: Path) -> Environment:
    """Jinja over a folder's templates. Those named .html.jinja escape by themselves, Markdown asks for `cell`.

    `style` is the style sheet that all pages share.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["style"] = Path(__file__).with_name(_STYLE).read_text(encoding="utf-8")
    environment.filters |= {"clip": clip, "cell": cell, "number": number}
    return environment


def clip(text: str, limit: int) -> str:
    """The text's first `limit` characters; an ellipsis replaces the rest."""
    return text if len(text) <= limit else text[:limit].rstrip() + "…"


def cell(value: Any) -> str:
    """Any text as one cell of a Markdown table: shown as it is, never as markup, a picture, a link or a mention."""
    text = _LIVE.sub(_GAP, number(value).replace(_GAP, "\N{REPLACEMENT CHARACTER}"))
    text = html.escape(text, quote=False)
    text = re.sub(r"([\\`*_\[\]~|$])", r"\\\1", text)
    # A comment is not seen, and parts the text for whatever looks for patterns in it.
    text = text.replace(_GAP, "<!-- -->")
    return "<br>".join(line.strip() for line in text.strip().splitlines()) or "(empty)"


def fitted(template: Template, facts: Mapping[str, Any], sizes: Iterable[Mapping[str, int]], limit: int) -> str:
    """The template with the first of `sizes`, from large to small, that makes a text of at most `limit` characters.

    Where none does, as many whole lines of the smallest, and a line that says so.
    """
    text = ""
    for size in sizes:
        text = template.render(facts, **size)
        if len(text) <= limit:
            return text
    rest = "\nThe rest does not fit into one comment on GitHub.\n"
    return text[: text.rindex("\n", 0, limit - len(rest)) + 1] + rest


def number(value: Any) -> str:
    """A fact as text: whole numbers with separators, others with four digits that count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
