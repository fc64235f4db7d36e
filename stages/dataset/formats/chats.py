"""Chats as many interfaces write them, as OpenAI's: synonyms of keys and roles, parts, calls, system prompts.

It is the way for what is not in OpenAI's form already. The result is decoded strictly, so what is not understood here
is refused with its place.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from stages.dataset.conversations import Conversation
from stages.dataset.formats import calls
from stages.dataset.formats.calls import Calls, as_text
from stages.dataset.formats.keys import Keys
from stages.dataset.source import Source

# Where a record keeps its messages, a message its speaker and its text, and both a system prompt or reasoning.
LISTS = ("messages", "conversations", "conversation", "contents", "dialog", "dialogue", "turns")
_ROLE, _CONTENT = ("role", "from", "author", "speaker"), ("content", "value", "text", "parts")
SYSTEM = ("system", "system_prompt", "system_instruction", "systemInstruction")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SYNONYMS = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "ai", "model", "chatgpt", "agent", "support"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}


@dataclass(frozen=True)
class Chats:
    """How a source's chats are read: what its speakers are called, and what becomes of reasoning and unread keys."""

    keys: Keys
    roles: Mapping[str, str]
    reasoning: str | None
    reasoning_key: str

    @classmethod
    def of(cls, source: Source, keys: Keys) -> "Chats":
        """As the source declares."""
        return cls(keys, source.roles, source.reasoning, source.key("reasoning"))

    def conversation(self, value: Any) -> Conversation:
        """The conversation in a decoded record.

        Raises:
            msgspec.ValidationError: it is none, or holds what is not text.
        """
        record = {"messages": value} if isinstance(value, list) else value
        if not isinstance(record, dict):
            return msgspec.convert(record, Conversation)
        record = dict(record)
        name = next((name for name in LISTS if name in record), None)
        found: dict[str, Any] = {}
        if name is not None:
            said = _decoded(record.pop(name))
            messages = list(self._messages(said)) if isinstance(said, list) else said
            found["messages"] = self._with_system(record, messages)
        found |= self._options(record)
        if "messages" not in found:
            # No metadata is to be named where there is no conversation.
            self.keys.refuse(record.items())
        made = msgspec.convert(found, Conversation)
        self.keys.leave(record.items())
        return made

    def _options(self, record: dict[str, Any]) -> dict[str, Any]:
        given = calls.tools(record.pop("tools", None)) or calls.tools(record.pop("functions", None))
        parallel = record.pop("parallel_tool_calls", None)
        # Which function may be called is a setting of the request that the conversation shows the result of.
        if record.get("function_call") in ("auto", "none"):
            del record["function_call"]
        return {
            name: value for name, value in (("tools", given), ("parallel_tool_calls", parallel)) if value is not None
        }

    def _with_system(self, record: dict[str, Any], messages: Any) -> Any:
        """The messages after the record's own system prompt, if it has one."""
        texts = [text for name in SYSTEM if (text := self._plain(record.pop(name, None)))]
        if not texts or not isinstance(messages, list):
            return messages
        first = messages[0] if messages and isinstance(messages[0], dict) else {}
        if len(set(texts)) > 1 or (first.get("role") == "system" and first.get("content") != texts[0]):
            raise msgspec.ValidationError("The record has two different system prompts; keep one")
        return messages if first.get("role") == "system" else [{"role": "system", "content": texts[0]}, *messages]

    def _plain(self, value: Any) -> Any:
        """The text of a system prompt, which may be in parts."""
        return self._parts(value.get("parts") if isinstance(value, dict) else value, Calls(self.keys)).text

    def _messages(self, said: list[Any]) -> Iterator[Any]:
        made = Calls(self.keys)
        for message in said:
            yield from self._message(dict(message), made) if isinstance(message, dict) else [message]

    def _message(self, message: dict[str, Any], made: Calls) -> Iterator[dict[str, Any]]:
        """A message as OpenAI writes it; results of tools that are parts of a user's message come before its text."""
        role = self._role(_take(message, _ROLE))
        content = _take(message, _CONTENT)
        if role == "call":
            role, parts = "assistant", _Parts(None, [made.call(one) for one in _several(content)])
        else:
            parts = self._parts(content, made)
        given = message.pop("tool_calls", None) or []
        made_here = ([made.call(one) for one in given] if isinstance(given, list) else []) + parts.calls
        if legacy := message.pop("function_call", None):
            made_here.append(made.call(legacy))
        yield from parts.results
        if parts.results and parts.text is None and not made_here:
            return
        found = {"role": role, "content": self._thought(message, parts), **self._marks(message, role)}
        if made_here or given:
            found["tool_calls"] = made_here or given
        if role == "tool":
            found |= self._answered(message, made)
        if (name := message.pop("name", None)) is not None and "tool_call_id" not in found:
            found["name"] = name
        self.keys.leave(message.items(), "messages.")
        yield found

    def _role(self, role: Any) -> Any:
        if isinstance(role, dict):
            # As in an export of ChatGPT.
            role = role.get("role")
        if not isinstance(role, str):
            return role
        return self.roles.get(role) or _SYNONYMS.get(role.strip().lower()) or role

    def _answered(self, message: dict[str, Any], made: Calls) -> dict[str, Any]:
        """Which call a tool's message answers; its name says nothing more where it is that of the function."""
        identity, name = message.pop("tool_call_id", None), message.get("name")
        answered = made.answer(identity, name)
        if answered is None:
            return {}
        if identity is None:
            message.pop("name", None)
        elif name is not None:
            return {"tool_call_id": answered, "name": message.pop("name")}
        return {"tool_call_id": answered}

    def _thought(self, message: dict[str, Any], parts: "_Parts") -> Any:
        """The text, with the reasoning before it where that is to be learned."""
        given = [text for name in _REASONING if isinstance(text := message.pop(name, None), str) and text.strip()]
        thoughts = "\n\n".join([*given, *parts.thoughts])
        if not thoughts or self.reasoning == "drop":
            return parts.text
        if self.reasoning is None:
            raise msgspec.ValidationError(
                f"The message has reasoning beside its text: declare {self.reasoning_key}: drop, to leave it out, or"
                " learn, to train on it as <think> before the answer"
            )
        return f"<think>\n{thoughts}\n</think>\n\n{parts.text or ''}"

    def _marks(self, message: dict[str, Any], role: Any) -> dict[str, Any]:
        """Whether the message is learned: weight, or train as other trainers call it."""
        weight, train = message.pop("weight", None), message.pop("train", None)
        if weight is None and role == "assistant" and isinstance(train, bool):
            weight = int(train)
        if isinstance(weight, bool) or (isinstance(weight, float) and weight.is_integer()):
            weight = int(weight)
        return {} if weight is None else {"weight": weight}

    def _parts(self, content: Any, made: Calls) -> "_Parts":
        """Text, calls, results of tools and reasoning of a content, which may be in parts."""
        found = _Parts()
        if isinstance(content, dict):
            content = content.get("parts", [content])
        if not isinstance(content, list):
            found.text = content
            return found
        for part in content:
            self._part(part, found, made)
        return found

    def _part(self, part: Any, found: "_Parts", made: Calls) -> None:
        if isinstance(part, str):
            found.add(part)
        elif not isinstance(part, dict):
            raise msgspec.ValidationError(f"Expected text in `content`, got a part of type {type(part).__name__}")
        elif isinstance(text := part.get("text"), str) and part.get("type", "text").endswith("text"):
            (found.thoughts.append if part.get("thought") is True else found.add)(text)
        elif isinstance(text := part.get("thinking"), str):
            found.thoughts.append(text)
        elif part.get("type") == "tool_use" or "functionCall" in part:
            found.calls.append(made.call(part.get("functionCall") or part))
        elif part.get("type") == "tool_result" or "functionResponse" in part:
            found.results.append(self._result(part, made))
        else:
            kind = part.get("type") or next(iter(part), "nothing")
            raise msgspec.ValidationError(
                f"A part of `content` is of type `{kind}`, and only text is trained on;"
                " docs/conversions.md#images-and-sound leaves such records out"
            )

    def _result(self, part: dict[str, Any], made: Calls) -> dict[str, Any]:
        given = part.get("functionResponse") or part
        content = given.get("content", given.get("response"))
        text = self._parts(content, made).text if isinstance(content, list) else as_text(content)
        return {
            "role": "tool",
            "content": text or "",
            "tool_call_id": made.answer(given.get("tool_use_id", given.get("id")), given.get("name")),
        }


class _Parts:
    """What a message's content is made of."""

    def __init__(self, text: Any = None, made: list[Any] | None = None) -> None:
        self.text: Any = text
        self.calls: list[Any] = made or []
        self.results: list[dict[str, Any]] = []
        self.thoughts: list[str] = []

    def add(self, text: str) -> None:
        """Parts of a text follow each other without a sign between them, as interfaces and templates join them."""
        self.text = (self.text or "") + text


def _take(message: dict[str, Any], names: tuple[str, ...]) -> Any:
    name = next((name for name in names if name in message), None)
    return message.pop(name) if name else None


def _several(content: Any) -> list[Any]:
    """One call or several from a JSON text, as in a message of the role function_call."""
    value = _decoded(content)
    return value if isinstance(value, list) else [value]


def _decoded(value: Any) -> Any:
    """A list or an object that is written as a text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
