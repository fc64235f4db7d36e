"""The base model's chat template and tokenizer: what a conversation looks like to the model, token by token."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.paths import BASE

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation, and labels of the same length: the id where it is learned, else -100."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, as the `base` stage left it in `models/base`."""

    tokenizer: Any
    folder: Path

    @classmethod
    def load(cls, folder: Path = BASE) -> "Chat":
        """Read the tokenizer of a folder.

        Raises:
            UserError: it has no chat template or no end token.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer in {folder} has no chat template; choose a chat (instruct) model")
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in {folder} has no end token; its answers could never end")
        return cls(tokenizer, folder)

    def render(self, conversation: Conversation, upto: int | None = None, answer_next: bool = False) -> str:
        """The first `upto` messages as the template writes them; with `answer_next`, up to where the assistant speaks.

        Raises:
            UserError: the template leaves tool calls out, so that the model would learn to say nothing.
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
            raise UserError("the model's chat template has no place for tool calls; choose a model that knows tools")
        return text

    def counts(self, conversations: Sequence[Conversation]) -> Sequence[int | str]:
        """Lengths of whole conversations in tokens, 0 for one without messages; where it can read none, the reason."""
        texts = [self._rendered(one) for one in conversations]
        lengths = iter(self.lengths([text for text in texts if isinstance(text, str)]))
        return [next(lengths) if isinstance(text, str) else _why(text) for text in texts]

    def _rendered(self, conversation: Conversation) -> str | Exception:
        try:
            return self.render(conversation) if conversation.messages else ""
        # A template is a program of other people, which can raise anything: that concerns this conversation alone.
        except Exception as error:
            return error

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Lengths of plain texts in tokens, without what a template adds."""
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    @property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer turns into one token with a meaning of its own, such as the end token."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)})

    @property
    def context(self) -> int:
        """How many tokens the model can read; where its configuration does not say, there is no limit."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings") or sys.maxsize)

    def example(self, conversation: Conversation, last_only: bool = False) -> Example:
        """Tokens and labels: each assistant message and the end token that closes it are learned, nothing else.

        A message of weight 0 is not learned. With `last_only`, the response alone is labelled, whatever its weight.

        Raises:
            UserError: the template does not write a conversation as a continuation of its beginning, or does not
                close an assistant's message with the tokenizer's end token.
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
        """Where the template puts message `index` and its end token: first character and the one after the last."""
        before = self.render(conversation, index, answer_next=True)
        upto = self.render(conversation, index + 1)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise UserError("the model's chat template rewrites earlier turns; it cannot be trained on responses only")
        end = upto.rfind(self.tokenizer.eos_token)
        if end < len(before):
            raise UserError(f"the model's chat template does not close a response with {self.tokenizer.eos_token}")
        return len(before), end + len(self.tokenizer.eos_token)


def _turn(message: Message) -> dict[str, Any]:
    """The message as templates expect it: content is text, and what is not said is absent."""
    turn = {"role": message.role, "content": message.text}
    extra = {name: getattr(message, name) for name in ("name", "tool_calls", "tool_call_id")}
    return turn | {name: value for name, value in extra.items() if value is not None}


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"the model's chat template refuses the conversation: {error or type(error).__name__}"
