"""reports/eval/predictions.jsonl, read back for people: a line holds one test conversation, its answers and scores."""

import json
import re
from typing import Annotated, Any

import msgspec

from stages.core.artifacts import MAKE_ANEW, intact, numbers

# JSON has no infinity, but a number can be too large to be read as another one.
_Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class _Message(msgspec.Struct):
    role: str
    content: str | None = None


class _Scores(msgspec.Struct):
    base: dict[str, _Number]
    tuned: dict[str, _Number]


class _Line(msgspec.Struct):
    prompt: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    reference: str
    base: str
    tuned: str
    scores: _Scores
    tokens: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET


def read(text: str, name: str, fix: str = MAKE_ANEW) -> list[dict[str, Any]]:
    """The lines of the file `name`. Only LF ends a line: a text may contain other line ends.

    Raises:
        UserError: a line is not what evaluate writes, or there is none.
    """
    lines = [_line(line, f"{name}, line {at},", fix) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    with intact(name, fix):
        if not lines:
            raise ValueError("it is empty")
    return lines


def _line(text: str, name: str, fix: str) -> dict[str, Any]:
    with intact(name, fix):
        line: dict[str, Any] = numbers(text)
        scores = msgspec.convert(line, _Line).scores
        if lacking := {"chrf", *scores.tuned} - scores.base.keys() | {"chrf"} - scores.tuned.keys():
            raise ValueError(f"there is no score {', '.join(sorted(lacking))}")
        return line


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
