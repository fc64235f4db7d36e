"""Exports of other programs, and shapes that need a decision: recognised, and sent to the lines that convert them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from stages.dataset.formats.records import PYTHON
from stages.dataset.source import Content

_PAGE = "docs/conversions.md"
_WHATSAPP = re.compile(r"\s*\[?\d{1,4}[./-]\d{1,2}[./-]\d{2,4},? .{0,20}\d{1,2}:\d\d.{0,12}: ", re.ASCII)
_MARKED = re.compile(r"###\s*(Human|User|Instruction|Assistant)|<\|im_start\|>|\[INST\]|<start_of_turn>|<\|user\|>")


def _names(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: all(name in record for name in names)


def _has_python_list(record: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) and PYTHON.match(value) is not None for value in record.values())


def _has_marked_text(record: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) and _MARKED.search(value[:10_000]) is not None for value in record.values())


# What it is, the place on the page, and how a record of it is recognised.
_KNOWN: tuple[tuple[str, str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("an export of ChatGPT", "chatgpt", _names("mapping")),
    ("an export of Claude", "claude", _names("chat_messages")),
    ("an export of Slack", "slack", _names("type", "text", "ts")),
    ("an export of Zendesk", "zendesk", _names("comments")),
    ("a set of preferences", "preferences", _names("chosen", "rejected")),
    ("a set of preferences", "preferences", _names("prompt", "chosen")),
    (
        "a set of answers within records, as in SQuAD",
        "nested-answers",
        lambda one: isinstance(one.get("answers"), dict),
    ),
    ("a set of answers within records, as in SQuAD", "nested-answers", _names("paragraphs")),
    ("a table with Python lists in its cells", "python-lists-in-a-csv", _has_python_list),
    ("a set of conversations in one text with markers", "one-text-with-markers", _has_marked_text),
)


def known(contents: list[Content], records: list[Mapping[str, Any]]) -> str | None:
    """What a file's first rows are and where it is converted, if they are known; `records` are those by names."""
    for what, place, fits in _KNOWN:
        if any(fits(record) for record in records):
            return f"it is {what}, which {_PAGE}#{place} converts"
    lines = [",".join(content) for content in contents if isinstance(content, list)]
    if sum(map(bool, map(_WHATSAPP.match, lines))) * 2 > len(lines):
        return f"it is an export of WhatsApp, which {_PAGE}#whatsapp converts"
    return None
