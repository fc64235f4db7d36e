"""What is wrong with a conversation's content, by name, each with a masked snippet."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from stages.dataset import placeholders, tool_calls
from stages.dataset.conversations import Conversation, Message
from stages.dataset.detectors import BROKEN, HINTS, SECRETS, UNFILLED, by
from stages.dataset.masking import excerpt, one_line, snippet
from stages.dataset.sentences import finished

_OF_ANSWERS = ("unfinished", "echo", "unlearned")
NAMES = (
    *("email", "phone", "card", "api_key", *BROKEN, *UNFILLED, "special_token", "token_name", *_OF_ANSWERS),
    *tool_calls.NAMES,
)
# Beside the faults: all placeholders of the conversation, one a line, for their list.
PLACEHOLDERS = "placeholders"


class Inspector:
    """Finds faults of content; knows the tokens of one tokenizer.

    `control` are texts that the tokenizer reads as tokens which structure a conversation, `special` are all its special
    ones: some bases have more that a text may name, such as `<filename>`.
    """

    def __init__(self, control: Sequence[str], special: Sequence[str] = ()) -> None:
        # A lone "<s>" or "[PAD]" is still a token to the tokenizer, so nothing is asked about its surroundings.
        self._finders = {
            **SECRETS,
            **BROKEN,
            "special_token": by(_any_of(control)),
            "token_name": by(_any_of(sorted({*special} - {*control}))),
        }

    def faults(self, conversation: Conversation, label: str = "") -> dict[str, str]:
        """Name of each fault, and where it first occurs, with a snippet in which it is marked with ‹ ›."""
        faults = dict(_found(self._finders, list(_texts(conversation, label))))
        faults |= _found(UNFILLED, list(_said(conversation)))
        if "placeholder" in faults:
            listed = placeholders.listed(text for _, text in _said(conversation))
            faults[PLACEHOLDERS] = "\n".join(map(excerpt, listed))
        return faults | _of_calls(conversation) | _of_answers(conversation.messages)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """A pattern of these texts, the longest first; without any it matches nothing."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def _found(finders: dict[str, Any], texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    together = " ".join(text for _, text in texts)
    for name, find in finders.items():
        # What is the whole of one text cannot be seen in all of them together.
        if name != "no_value" and not HINTS.get(name, find)(together):
            continue
        for where, text in texts:
            if span := find(text):
                yield name, where + snippet(text, span, secret=name in SECRETS)
                break


def _said(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """What people and the model say, each text with its place."""
    for number, message in enumerate(conversation.messages, 1):
        if message.role != "tool":
            yield place(number, message), message.text


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


def _of_calls(conversation: Conversation) -> dict[str, str]:
    """The first fault of each kind in calls and results."""
    faults: dict[str, str] = {}
    for name, number, part, why in tool_calls.find(conversation):
        if name not in faults:
            faults[name] = f"{place(number, conversation.messages[number - 1])}‹{excerpt(part)}›; {one_line(why)}"
    return faults


def _of_answers(messages: Sequence[Message]) -> dict[str, str]:
    """What is wrong with the response, or with what is learned of the conversation."""
    faults: dict[str, str] = {}
    if not messages:
        return faults
    last, at = messages[-1], place(len(messages), messages[-1])
    if not (last.tool_calls or finished(last.text)):
        end = len(last.text.rstrip())
        faults["unfinished"] = at + snippet(last.text, (end, end))
    asked = next((one.text for one in reversed(messages[:-1]) if one.role == "user"), "")
    if last.role == "assistant" and asked.strip() and _same(last.text, asked):
        faults["echo"] = f"{at}‹{excerpt(last.text)}›"
    answers = [one for one in messages if one.role == "assistant"]
    if answers and all(one.weight == 0 for one in answers):
        faults["unlearned"] = f"weight 0 in all of its assistant messages, of which there {_count(len(answers))}"
    return faults


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def _count(number: int) -> str:
    return "is 1" if number == 1 else f"are {number}"


def place(number: int, message: Message) -> str:
    """Where a finding is; messages are counted from 1."""
    return f"message {number} ({message.role}): "
