"""The base model's chat template: how it wants conversations, and what of them it writes."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from stages.dataset.conversations import Conversation, Message, without_reasoning

# What a template is asked, to see how it writes.
ASKED, ANSWERED = Message("user", "qqq"), Message("assistant", "aaa")
_CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "fff", "arguments": '{"kkk": "vvv"}'}}
_CALLING = Message("assistant", tool_calls=[_CALL])
_TOOL = {
    "type": "function",
    "function": {"name": "fff", "description": "ddd", "parameters": {"type": "object", "properties": {}}},
}
# Many templates write the day's date; with another one each day, no run could be repeated.
_TODAY = date(2026, 1, 1)
_FIELDS = ("content", "name", "tool_calls", "tool_call_id")
_FIELDS_OF_ALL = ("tools", "parallel_tool_calls")


class _CallForm(NamedTuple):
    """How a template wants a call: arguments as text or as an object, no content as None or as an empty text, and ids
    as they are or as nine letters and digits.
    """

    arguments_are_text: bool = False
    content_is_none: bool = False
    ids_are_short: bool = False


_CALL_FORMS = [_CallForm(text, none, ids) for ids in (False, True) for none in (False, True) for text in (False, True)]


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template."""

    tokenizer: Any

    def render(self, conversation: Conversation, answer_next: bool = False) -> str:
        """Render a conversation; with `answer_next`, add the prefix of the assistant's next message."""
        turns = [
            _turn(message, self._call_form, self._closes_reasoning) for message in self._placed(conversation.messages)
        ]
        tools = conversation.tools
        if tools and self._tools_in_system:
            if not turns or turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": ""})
            turns[0]["tools"] = json.dumps(tools, ensure_ascii=False)
        return self._filled(turns, tools, answer_next, conversation.parallel_tool_calls)

    def unwritten(self, conversation: Conversation, text: str) -> Iterator[tuple[str, int]]:
        """Each field that makes no difference to the rendered `text`, with the number of its message, from 1; 0 for
        fields of the whole conversation.
        """
        for number, message in enumerate(conversation.messages, 1):
            for field in _FIELDS:
                # A text that is there need not be rendered again.
                if not getattr(message, field) or (field == "content" and message.text.strip() in text):
                    continue
                unnamed = field == "tool_calls" and any(name not in text for name in called(message))
                messages = list(conversation.messages)
                messages[number - 1] = msgspec.structs.replace(message, **{field: None})
                if unnamed or self._writes(msgspec.structs.replace(conversation, messages=tuple(messages)), text):
                    yield field, number
        for field in _FIELDS_OF_ALL:
            value = getattr(conversation, field)
            if value and self._writes(msgspec.structs.replace(conversation, **{field: None}), text):
                yield field, 0

    def _writes(self, conversation: Conversation, text: str) -> bool:
        try:
            return self.render(conversation) == text
        # A template that refuses to do without a field makes use of it.
        except Exception:
            return False

    def _filled(
        self,
        turns: list[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        answer_next: bool = False,
        parallel: bool | None = None,
    ) -> str:
        more: dict[str, Any] = {} if parallel is None else {"parallel_tool_calls": parallel}
        return str(
            self.tokenizer.apply_chat_template(
                turns,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=answer_next,
                strftime_now=_TODAY.strftime,
                **more,
            )
        )

    def _tried(self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None) -> str:
        """What the template writes; nothing where it refuses to."""
        try:
            return self._filled(turns, tools)
        # Chat templates are third-party code that can raise anything.
        except Exception:
            return ""

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the system's text where the template has a place for it: its own, or the user's message."""
        if [message.role for message in messages[:2]] != ["system", "user"] or self._takes_system:
            return messages
        system, user, *others = messages
        return (msgspec.structs.replace(user, content=f"{system.text}\n\n{user.text}"), *others)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template has a place for a system message: Gemma's refuses it, older Mistrals leave it out, and
        later ones do once there is an answer.
        """
        turns = [{"role": "system", "content": "sss"}, _turn(ASKED), _turn(ANSWERED)]
        return all("sss" in self._tried(turns[:upto]) for upto in (2, 3))

    @cached_property
    def _tools_in_system(self) -> bool:
        """Whether the template shows tools only as a part of the system's message, as text."""
        system = {"role": "system", "content": "sss", "tools": json.dumps([_TOOL])}
        return "fff" not in self._tried([_turn(ASKED)], [_TOOL]) and "fff" in self._tried([system, _turn(ASKED)])

    @cached_property
    def _call_form(self) -> _CallForm:
        """The first form in which the template writes a call's name, and its arguments as JSON."""
        for form in _CALL_FORMS:
            text = self._tried([_turn(ASKED), _turn(_CALLING, form)])
            if "fff" in text and '"kkk"' in text:
                return form
        return _CALL_FORMS[0]

    @cached_property
    def _closes_reasoning(self) -> bool:
        """Whether the model is asked to answer without reasoning."""
        return self._filled([_turn(ASKED)], answer_next=True).rstrip().endswith("</think>")


def called(message: Message) -> list[str]:
    """The names of the functions that the message calls."""
    return [call["function"]["name"] for call in message.tool_calls or ()]


def has_extras(conversation: Conversation) -> bool:
    """Whether the conversation has fields that a template may leave out."""
    return any(getattr(one, field) for one in conversation.messages for field in _FIELDS[1:]) or any(
        getattr(conversation, field) for field in _FIELDS_OF_ALL
    )


def _turn(message: Message, form: _CallForm = _CALL_FORMS[0], no_reasoning: bool = False) -> dict[str, Any]:
    """The message as templates expect it: unset fields are absent."""
    text = without_reasoning(message.text) if no_reasoning and message.role == "assistant" else message.text
    turn: dict[str, Any] = {"role": message.role, "content": text}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, form) for call in message.tool_calls]
        if form.content_is_none and not text:
            turn["content"] = None
    if message.tool_call_id is not None:
        turn["tool_call_id"] = _short(message.tool_call_id) if form.ids_are_short else message.tool_call_id
    return turn


def _call(call: dict[str, Any], form: _CallForm) -> dict[str, Any]:
    if form.ids_are_short and "id" in call:
        call = call | {"id": _short(call["id"])}
    return call if form.arguments_are_text else _with_object(call)


def _short(identity: str) -> str:
    """Nine letters and digits for an id, always the same; an id that has nine stays as it is."""
    fits = re.fullmatch("[a-zA-Z0-9]{9}", identity)
    return identity if fits else hashlib.sha256(identity.encode()).hexdigest()[:9]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are the object that its JSON text says, if it is one."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call
