"""Checks for what the service would reject, before anything is uploaded or paid."""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.backends.openai.reader import HostedChat
from stages.core.cli import UserError
from stages.core.paths import SIGNALS, SPLITS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.params import Params

# OpenAI, "Supervised fine-tuning" and the API reference for files: fewest examples, largest file, largest seed.
_FEWEST = 10
_LARGEST_FILE = 512_000_000
_LARGEST_SEED = 2**31 - 1
_NAMED = 10


def check(knobs: Params, chat: HostedChat) -> tuple[int, int]:
    """Check both splits against the API's rules; return the train split's number of conversations and tokens.

    Raises:
        UserError: names the first errors, with their rows in the source.
    """
    if knobs.seed > _LARGEST_SEED:
        raise UserError(f"seed: {knobs.seed} exceeds the service's maximum of {_LARGEST_SEED}; lower it")
    examples = tokens = 0
    faults: list[tuple[str, str]] = []
    for split in ("train", "validation"):
        size = SPLITS[split].stat().st_size
        if size > _LARGEST_FILE:
            raise UserError(
                f"{SPLITS[split]} has {size / 1e6:.0f} MB; the service accepts {_LARGEST_FILE / 1e6:.0f} MB"
            )
        for conversation in conversations.read_jsonl(SPLITS[split]):
            length = chat.count(conversation)
            if split == "train":
                examples, tokens = examples + 1, tokens + length
            for fault in _faults(conversation, length, chat):
                faults.append((conversations.identity(conversations.encode(conversation)), fault))
    if faults:
        rows = _rows([identity for identity, _ in faults[:_NAMED]])
        lines = [f"row {rows.get(identity, '?')}: {fault}" for identity, fault in faults[:_NAMED]]
        count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        raise UserError("\n".join([f"the service would reject the data: {count}; fix the source", *lines]))
    if examples < _FEWEST:
        raise UserError(f"{SPLITS['train']} has {examples} conversations; the service requires at least {_FEWEST}")
    return examples, tokens


def _rows(identities: list[str]) -> dict[str, int]:
    """Map conversations to their row numbers in the source."""
    table = pq.read_table(SIGNALS, columns=["row", "conversation_hash"])
    found = table.filter(pc.is_in(table["conversation_hash"], pc.cast(identities, table["conversation_hash"].type)))
    return {row["conversation_hash"]: row["row"] for row in reversed(found.to_pylist())}


def _faults(conversation: Conversation, length: int, chat: HostedChat) -> Iterator[str]:
    messages = conversation.messages
    if length > chat.context:
        yield f"{length} tokens exceed the {chat.context} that {chat.model} accepts"
    if not messages or messages[-1].role != "assistant":
        yield "the last message is not the assistant's"
    if not any(message.role == "assistant" and message.weight != 0 for message in messages):
        yield "no assistant message has weight 1, so there is nothing to learn"
    tools = {_text(_function(tool).get("name")) for tool in conversation.tools or []}
    if None in tools:
        yield 'a tool is not of the form {"type": "function", "function": {"name": ...}}'
    calls: set[Any] = set()
    for number, message in enumerate(messages, 1):
        for fault in _message_faults(message, tools, calls, chat):
            yield f"message {number} ({message.role}): {fault}"
        calls |= {_text(call.get("id")) for call in message.tool_calls or [] if isinstance(call, dict)}


def _message_faults(message: Message, tools: set[Any], calls: set[Any], chat: HostedChat) -> Iterator[str]:
    if message.weight is not None and message.role != "assistant":
        yield "only assistant messages can have a weight"
    if message.content is None and not message.tool_calls:
        yield "neither content nor tool calls"
    if any(token in message.text for token in chat.special_tokens):
        yield "the text contains a special token of the model"
    if message.role == "tool" and message.tool_call_id not in calls:
        yield f"tool_call_id {message.tool_call_id!r} does not match an earlier call"
    for call in message.tool_calls or []:
        function = _function(call)
        if None in map(_text, (function.get("name"), function.get("arguments"), call.get("id"))):
            yield "a tool call needs an id and a function with name and arguments, all of them strings"
        elif function.get("name") not in tools:
            yield f"the called tool {function.get('name')!r} is not among the record's tools"


def _function(tool: Any) -> dict[str, Any]:
    """The function of a tool or tool call; empty if malformed."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return function if isinstance(function, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
