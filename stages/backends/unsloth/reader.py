"""The base model's tokenizer and chat template: conversations as tokens and labels."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.cli import UserError
from stages.core.paths import BASE
from stages.dataset.conversations import Conversation, Message, ModelReader

IGNORED = -100


def load() -> ModelReader:
    """Load the base model's tokenizer and chat template.

    Raises:
        UserError: the tokenizer has no chat template or no end token.
    """
    return Chat.load()


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation, and as many labels: the token id if it is learned, else -100."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, as written to `models/base` by the `base` stage."""

    tokenizer: Any
    folder: Path

    @classmethod
    def load(cls, folder: Path = BASE) -> "Chat":
        """Load the tokenizer from a folder.

        Raises:
            UserError: the tokenizer has no chat template or no end token.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer in {folder} has no chat template; choose a chat (instruct) model")
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in {folder} has no end token; choose a chat (instruct) model")
        return cls(tokenizer, folder)

    def render(self, conversation: Conversation, upto: int | None = None, answer_next: bool = False) -> str:
        """Render the first `upto` messages; with `answer_next`, add the prefix of the assistant's next message.

        Raises:
            UserError: the template drops tool calls, which would teach the model to answer nothing.
        """
        messages = conversation.messages[:upto]
        text = str(
            self.tokenizer.apply_chat_template(
                [_turn(message) for message in messages],
                tools=conversation.tools,
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        )
        if any(call["function"]["name"] not in text for message in messages for call in message.tool_calls or ()):
            raise UserError("the model's chat template does not support tool calls; choose a model that does")
        return text

    def counts(self, conversations: Sequence[Conversation]) -> Sequence[int | str]:
        """Lengths of conversations in tokens, 0 for one without messages; the reason if one cannot be rendered."""
        texts = [self._rendered(one) for one in conversations]
        lengths = iter(self.lengths([text for text in texts if isinstance(text, str)]))
        return [next(lengths) if isinstance(text, str) else _why(text) for text in texts]

    def _rendered(self, conversation: Conversation) -> str | Exception:
        try:
            return self.render(conversation) if conversation.messages else ""
        # Chat templates are third-party code that can raise anything; only this conversation is affected.
        except Exception as error:
            return error

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Lengths of plain texts in tokens, without the template's own."""
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    @property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer encodes as special tokens, such as the end token."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)})

    @property
    def context(self) -> int:
        """The model's context length in tokens; unlimited if its configuration does not say."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings") or sys.maxsize)

    def example(self, conversation: Conversation, last_only: bool = False) -> Example:
        """Tokenize a conversation and label only its assistant messages, including their end tokens.

        Messages of weight 0 are not labelled. With `last_only`, only the response is, regardless of its weight.

        Raises:
            UserError: the template changes earlier turns when more follow, or does not end an assistant message with
                the tokenizer's end token.
        """
        text = self.render(conversation)
        if last_only:
            learned_messages = [len(conversation.messages) - 1]
        else:
            turns = enumerate(conversation.messages)
            learned_messages = [at for at, one in turns if one.role == "assistant" and one.weight != 0]
        spans = [self._span(conversation, at, text) for at in learned_messages]
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tokens["input_ids"]
        learned = [any(start <= a and b <= end for start, end in spans) and b > a for a, b in tokens["offset_mapping"]]
        return Example(ids, [token if keep else IGNORED for token, keep in zip(ids, learned, strict=True)])

    def _span(self, conversation: Conversation, index: int, text: str) -> tuple[int, int]:
        """Character range of message `index`, including its end token, in the rendered text."""
        before = self.render(conversation, index, answer_next=True)
        upto = self.render(conversation, index + 1)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise UserError(
                "the model's chat template rewrites earlier turns, so responses cannot be located; choose another model"
            )
        end_token = self.tokenizer.eos_token
        end = upto.rfind(end_token)
        if end < len(before):
            raise UserError(f"the model's chat template does not end responses with {end_token}; choose another")
        return len(before), end + len(end_token)


def _turn(message: Message) -> dict[str, Any]:
    """The message as templates expect it: content is always a string, unset fields are absent."""
    turn = {"role": message.role, "content": message.text}
    extra = {name: getattr(message, name) for name in ("name", "tool_calls", "tool_call_id")}
    return turn | {name: value for name, value in extra.items() if value is not None}


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"the model's chat template rejects the conversation: {error or type(error).__name__}"
