"""The base model's tokenizer and chat template: conversations as tokens and labels."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from stages.core.cli import UserError
from stages.core.paths import BASE
from stages.dataset.conversations import Conversation, Message, ModelReader

IGNORED = -100
# A token that is written as a word in angle brackets.
_PLAIN = re.compile(r"<[a-z_]{3,}>")
# What a chat template is asked, to see how it writes.
_ASKED, _ANSWERED = Message("user", "qqq"), Message("assistant", "aaa")


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
        if tokenizer.pad_token_id is None:
            # Any token does: padding is masked and never learned.
            tokenizer.pad_token = tokenizer.eos_token
        return cls(tokenizer, folder)

    def check(self) -> None:
        """Look whether the template can be trained on, before there are conversations.

        Raises:
            UserError: it cannot, and why.
        """
        try:
            self.examples(Conversation((_ASKED, _ANSWERED, _ASKED, _ANSWERED)))
        except Exception as error:
            raise UserError(f"unsloth.model: {_why(error)}") from None

    def render(self, conversation: Conversation, upto: int | None = None, answer_next: bool = False) -> str:
        """Render the first `upto` messages; with `answer_next`, add the prefix of the assistant's next message.

        Raises:
            UserError: the template drops tools or tool calls, which would teach the model to answer nothing.
        """
        messages = conversation.messages[:upto]
        text = self._written(messages, conversation.tools, answer_next)
        calls = (call["function"]["name"] for message in messages for call in message.tool_calls or ())
        if any(name not in text for name in calls):
            raise UserError("the model's chat template does not support tool calls; choose a model that does")
        if messages and any(tool["function"]["name"] not in text for tool in conversation.tools or ()):
            raise UserError("the model's chat template does not show the tools; choose a model that supports them")
        return text

    def _written(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None, answer_next: bool = False
    ) -> str:
        turns = [_turn(message, self._arguments_are_text) for message in self._placed(messages)]
        return self._filled(turns, tools, answer_next)

    def _filled(
        self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, answer_next: bool = False
    ) -> str:
        given = list(tools) if tools else None
        return str(
            self.tokenizer.apply_chat_template(turns, tools=given, tokenize=False, add_generation_prompt=answer_next)
        )

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the system's text where the template has a place for it: its own, or the user's message."""
        if [message.role for message in messages[:2]] != ["system", "user"] or self._takes_system:
            return messages
        system, user, *others = messages
        return (msgspec.structs.replace(user, content=f"{system.text}\n\n{user.text}"), *others)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template has a place for a system message; Gemma's refuses it, and others leave it out."""
        try:
            return "sss" in self._filled([{"role": "system", "content": "sss"}, _turn(_ASKED, False)])
        # Chat templates are third-party code that can raise anything.
        except Exception:
            return False

    @cached_property
    def _arguments_are_text(self) -> bool:
        """Whether the template wants a tool call's arguments as JSON, and not as the object that it makes JSON of."""
        call = {"id": "1", "type": "function", "function": {"name": "fff", "arguments": {"kkk": "vvv"}}}
        try:
            text = self._filled([_turn(_ASKED, False), {"role": "assistant", "content": "", "tool_calls": [call]}])
        except Exception:
            return True
        return '"kkk"' not in text

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

    @cached_property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer encodes as special tokens, such as the end token."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)})

    @property
    def control_tokens(self) -> list[str]:
        """Special tokens that begin, end or pad, that the chat template writes, or that are written as no word is.

        Others are left from the base's pretraining and read like a text's own words, such as `<filename>`.
        """
        # Those with a name of their own, such as eos_token; the additional ones are a list.
        named = {token for token in self.tokenizer.special_tokens_map.values() if isinstance(token, str)}
        template = str(self.tokenizer.chat_template)
        return [one for one in self.special_tokens if one in named or one in template or not _PLAIN.fullmatch(one)]

    @property
    def context(self) -> int:
        """The model's context length in tokens; unlimited if its configuration does not say."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings") or sys.maxsize)

    def examples(self, conversation: Conversation) -> list[Example]:
        """The conversation as `example` makes it; where the template writes earlier turns otherwise once more follow,
        an example for each learned message that ends there, as the model will see it.

        Raises:
            UserError: as for `example`.
        """
        try:
            return [self.example(conversation)]
        except _RewrittenError:
            turns = [
                msgspec.structs.replace(conversation, messages=conversation.messages[: at + 1])
                for at in _learned(conversation)
            ]
            return [self.example(one, last_only=True) for one in turns]

    def example(self, conversation: Conversation, last_only: bool = False) -> Example:
        """Tokenize a conversation and label only its assistant messages, including their end tokens.

        Messages of weight 0 are not labelled. With `last_only`, only the response is, regardless of its weight.

        Raises:
            UserError: the template changes earlier turns when more follow, or does not end an assistant message with
                a special token.
        """
        text = self.render(conversation)
        at = [len(conversation.messages) - 1] if last_only else _learned(conversation)
        spans = [self._span(conversation, index, text) for index in at]
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tokens["input_ids"]
        learned = [any(start <= a and b <= end for start, end in spans) and b > a for a, b in tokens["offset_mapping"]]
        return Example(ids, [token if keep else IGNORED for token, keep in zip(ids, learned, strict=True)])

    def _span(self, conversation: Conversation, index: int, text: str) -> tuple[int, int]:
        """Character range of message `index`, including its end token, in the rendered text."""
        before = self.render(conversation, index, answer_next=True)
        upto = self.render(conversation, index + 1)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise _RewrittenError(
                "the model's chat template rewrites earlier turns, so responses cannot be located; choose another model"
            )
        said = upto[len(before) :]
        _, end = self._end(said, conversation.messages[index])
        return len(before), len(before) + end

    def _end(self, said: str, message: Message) -> tuple[str, int]:
        """The special token that ends a rendered message, the first after what it says, and where that token ends."""
        words = [message.text.strip(), *(call["function"]["name"] for call in message.tool_calls or ())]
        begin = max((said.rfind(word) + len(word) for word in words if word), default=0)
        places = ((said.find(token, begin), token) for token in self.special_tokens)
        place, end_token = min((found for found in places if found[0] >= 0), default=(0, ""))
        if not end_token:
            raise UserError("the model's chat template does not end responses with a special token; choose another")
        return end_token, place + len(end_token)

    @cached_property
    def end_token(self) -> str:
        """The special token with which the template ends a response; it need not be the tokenizer's own."""
        asked = (_ASKED,)
        said = self._written((*asked, _ANSWERED)).removeprefix(self._written(asked, answer_next=True))
        return self._end(said, _ANSWERED)[0]

    @cached_property
    def end_ids(self) -> list[int]:
        """Ids of the tokens at which an answer ends: the template's, the tokenizer's and the model's."""
        ids = {self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(self.end_token)}
        path = self.folder / "generation_config.json"
        of_model = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
        return sorted(ids | set(of_model if isinstance(of_model, list) else [of_model]) - {None})

    def spoken(self, ids: Iterable[int], prompt: str = "") -> str:
        """The text of an answer's tokens after `prompt`, without special tokens and without reasoning."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
        _, closed, answer = text.rpartition("</think>")
        if closed:
            return str(answer.strip())
        unfinished = "<think>" in text or prompt.rstrip().endswith("<think>")
        return "" if unfinished else str(text)


class _RewrittenError(UserError):
    """The template writes earlier turns otherwise once more follow."""


def _learned(conversation: Conversation) -> list[int]:
    """The numbers of the messages that are learned."""
    return [at for at, one in enumerate(conversation.messages) if one.role == "assistant" and one.weight != 0]


def _turn(message: Message, arguments_are_text: bool) -> dict[str, Any]:
    """The message as templates expect it: content is always a string, unset fields are absent."""
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    extra = {name: getattr(message, name) for name in ("name", "tool_calls", "tool_call_id")}
    if extra["tool_calls"] and not arguments_are_text:
        extra["tool_calls"] = [_with_object(call) for call in extra["tool_calls"]]
    return turn | {name: value for name, value in extra.items() if value is not None}


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are the object that its JSON text says, if it is one."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"the model's chat template rejects the conversation: {error or type(error).__name__}"
