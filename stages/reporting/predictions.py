"""reports/eval/predictions.jsonl and general.jsonl, read back: a line is a conversation with its scores.

Lines of predictions.jsonl are test conversations, and have the answers too.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from stages.core.artifacts import MAKE_ANEW, intact, numbers

# JSON has no infinity, but a number can be too large to be read as another one.
_Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class _Message(msgspec.Struct):
    role: str
    content: str | None = None


class _Scores(msgspec.Struct):
    base: dict[str, _Number | None]
    tuned: dict[str, _Number | None]


class _Weights(msgspec.Struct):
    base: dict[str, _Count]
    tuned: dict[str, _Count]


class _Line(msgspec.Struct):
    """A conversation of either file."""

    prompt: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    reference: str
    scores: _Scores
    weights: _Weights


class _Answers(msgspec.Struct):
    """What a line has besides where it is one of the test split."""

    base: str
    tuned: str
    baselines: dict[str, str]


def read(text: str, name: str, fix: str = MAKE_ANEW) -> list[dict[str, Any]]:
    """The test conversations of the file `name`.

    Raises:
        UserError: a line is not what evaluate writes, or there is none.
    """
    lines = _lines(text, name, fix, _test_line)
    with intact(name, fix):
        if not lines:
            raise ValueError("it is empty")
    return lines


def read_general(text: str, name: str, fix: str = MAKE_ANEW) -> list[dict[str, Any]]:
    """The general prompts of the file `name`; none where the backend gives no likelihoods.

    Raises:
        UserError: a line is not what evaluate writes.
    """
    return _lines(text, name, fix, lambda line: None)


def _lines(text: str, name: str, fix: str, check: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Only LF ends a line: a text may contain other line ends."""
    found = []
    for at, content in enumerate(text.split("\n"), 1):
        if content.strip():
            with intact(f"{name}, line {at},", fix):
                line: dict[str, Any] = numbers(content)
                msgspec.convert(line, _Line)
                check(line)
                found.append(line)
    return found


def _test_line(line: dict[str, Any]) -> None:
    msgspec.convert(line, _Answers)
    base, tuned = (line["scores"][part].keys() for part in ("base", "tuned"))
    if lacking := {"chrf", *tuned} - base | {"chrf"} - tuned:
        raise ValueError(f"there is no score {', '.join(sorted(lacking))}")


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
