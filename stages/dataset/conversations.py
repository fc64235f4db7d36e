"""What a conversation is: OpenAI's chat format, one JSON record a line, and the words that the project uses for it."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

Role = Literal["system", "user", "assistant", "tool"]

# Longer words are normalized in parts.
_LONGEST_WORD = 256


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One turn: who speaks and what is said, or which tools are called."""

    role: Role
    content: str | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None  # 0: this assistant message is not learned
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content, empty where there is none."""
        return self.content or ""


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Messages in order. In a valid conversation the last one is the assistant's: the response."""

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the last: what the model is given."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """The last message's text: what the model should answer."""
        return self.messages[-1].text

    @property
    def prompt_key(self) -> str:
        """The prompt without the system message, in a form in which trivially different prompts are equal.

        Trivial are differences of case, punctuation, white space and Unicode form (NFKC).
        """
        return "\n".join(
            f"{message.role}:{_plain(message.text)}" for message in self.prompt if message.role != "system"
        )


def _plain(text: str) -> str:
    folded = _normalized(_normalized(text).casefold())
    words = re.sub(r"[\W_]+", " ", folded).strip()
    # A prompt of nothing but punctuation or emoji keeps its own characters: they are all that it says.
    return words or " ".join(folded.split())


def _normalized(text: str) -> str:
    """NFKC, except for white space, which the key does not distinguish. The time is linear in the text's length."""
    if text.isascii():
        return text
    words = text.split()
    if max(map(len, words), default=0) > _LONGEST_WORD:
        return " ".join("".join(unicodedata.normalize("NFKC", part) for part in _parts(word)) for word in words)
    return unicodedata.normalize("NFKC", text)


def _parts(word: str) -> Iterator[str]:
    """A very long word in parts: to sort a run of combining marks takes the square of its length."""
    start = 0
    while start < len(word):
        end = start + _LONGEST_WORD
        # A mark stays with its letter, unless there are more marks than any script writes.
        while end < min(len(word), start + 2 * _LONGEST_WORD) and unicodedata.combining(word[end]):
            end += 1
        yield word[start:end]
        start = end


class ModelReader(Protocol):
    """What a base model makes of a conversation."""

    def counts(self, conversations: Sequence[Conversation]) -> Sequence[int | str]:
        """Lengths of whole conversations in tokens, 0 for one without messages; where it can read none, the reason."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Lengths of plain texts in tokens, without what a template adds."""

    @property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer turns into one token with a meaning of its own, such as the end token."""

    @property
    def control_tokens(self) -> list[str]:
        """Those of the special tokens that structure a conversation: in a text they would break it."""

    @property
    def context(self) -> int:
        """How many tokens the model can read."""


_decoder = msgspec.json.Decoder(Conversation)
_encoder = msgspec.json.Encoder()


def decode(record: str | bytes) -> Conversation:
    """Read one JSON record.

    Raises:
        msgspec.DecodeError: it is not JSON, or not a conversation; the message names the place.
    """
    return _decoder.decode(record)


def encode(conversation: Conversation) -> bytes:
    """The conversation as one line of JSONL, without the line end. Text is kept as it is, in UTF-8."""
    return _encoder.encode(conversation)


def identity(line: bytes) -> str:
    """A hash of a conversation's line of JSONL, without the line end: 32 hexadecimal digits."""
    return hashlib.blake2b(line, digest_size=16).hexdigest()


def read_jsonl(path: Path) -> Iterator[Conversation]:
    """Conversations of a JSONL file, one at a time."""
    with path.open("rb") as file:
        for line in file:
            yield decode(line)


def write_jsonl(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as JSONL. The caller sees to it that `path` is a temporary one."""
    with path.open("wb") as file:
        file.writelines(encode(conversation) + b"\n" for conversation in conversations)


def shared_system(conversations: Iterable[Conversation]) -> str:
    """The system prompt, where all conversations have the same; else nothing."""
    found: set[str] = set()
    for conversation in conversations:
        first = conversation.messages[0]
        found.add(first.text if first.role == "system" else "")
        if len(found) > 1:
            return ""
    return found.pop() if found else ""
