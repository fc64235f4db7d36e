"""reports/eval/predictions.jsonl, read back for people: a line holds one test conversation, its answers and scores."""

import json
import re
from typing import Any


def read(text: str) -> list[dict[str, Any]]:
    """The file's lines. A text may hold other line ends than LF, which are none here."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def said(message: dict[str, Any]) -> str:
    """What a message says, or the tools that it calls, as it can be shown."""
    return clean(str(message.get("content") or json.dumps(message.get("tool_calls", ""), ensure_ascii=False)))


def question(prompt: list[dict[str, Any]]) -> str:
    """What the user said last, or else the prompt's last message, in one line."""
    asked = next((message for message in reversed(prompt) if message["role"] == "user"), prompt[-1])
    return " ".join(said(asked).split())


def clean(text: str) -> str:
    """Text without what UTF-8 or a browser cannot show: lone surrogates and control characters."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", valid.replace("\r\n", "\n"))
