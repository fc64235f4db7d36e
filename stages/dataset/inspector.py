"""What is wrong with a conversation's content, by name, each with a masked snippet."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from stages.dataset.conversations import Conversation, Message
from stages.dataset.detectors import BROKEN, HINTS, SECRETS, by, finished
from stages.dataset.masking import snippet

NAMES = ("email", "phone", "card", "api_key", *BROKEN, "special_token", "unfinished")


class Inspector:
    """Finds faults of content; knows the special tokens of one tokenizer."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        tokens = "|".join(re.escape(token) for token in sorted(special_tokens, key=len, reverse=True))
        # A lone "<s>" or "[PAD]" is still a token to the tokenizer, so nothing is asked about its surroundings.
        self._finders = {**SECRETS, **BROKEN, "special_token": by(re.compile(tokens or r"(?!)"))}

    def faults(self, conversation: Conversation, label: str = "") -> dict[str, str]:
        """Name of each fault, and where it first occurs, with a snippet in which it is marked with ‹ ›."""
        return dict(self._faults(list(_texts(conversation, label)))) | _unfinished(conversation.messages)

    def _faults(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        together = " ".join(text for _, text in texts)
        for name, find in self._finders.items():
            if not HINTS.get(name, find)(together):
                continue
            for where, text in texts:
                if span := find(text):
                    yield name, where + snippet(text, span, secret=name in SECRETS)
                    break


def _texts(conversation: Conversation, label: str) -> Iterator[tuple[str, str]]:
    """All that a record says, each text with its place; the label too, for it becomes a name in the reports."""
    for number, message in enumerate(conversation.messages, 1):
        yield place(number, message), message.text
        for field in ("name", "tool_calls", "tool_call_id"):
            if (value := getattr(message, field)) is not None:
                yield place(number, message) + f"{field}: ", _leaves(value)
    if conversation.tools:
        yield "tools: ", _leaves(conversation.tools)
    if label:
        yield "label: ", label


def _leaves(value: Any) -> str:
    """All names and values in a JSON value, each in a line: in its JSON, escapes would hide some from the finders."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(reversed([part for pair in one.items() for part in pair]))
        elif isinstance(one, list):
            left.extend(reversed(one))
        else:
            found.append(str(one))
            left.append(_inner(one))
    return "\n".join(filter(None, found))


def _inner(value: Any) -> Any:
    """What a text holds that is JSON itself, as the arguments of a call are; of other values an empty list."""
    if not (isinstance(value, str) and value.lstrip()[:1] in ("{", "[")):
        return []
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return []


def _unfinished(messages: Sequence[Message]) -> dict[str, str]:
    if not messages or messages[-1].tool_calls or finished(messages[-1].text):
        return {}
    end = len(messages[-1].text.rstrip())
    return {"unfinished": place(len(messages), messages[-1]) + snippet(messages[-1].text, (end, end))}


def place(number: int, message: Message) -> str:
    """Where a finding is; messages are counted from 1."""
    return f"message {number} ({message.role}): "
