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

from stages.backends.unsloth.template import ANSWERED, ASKED, Template, called, has_extras
from stages.core.cli import UserError
from stages.core.paths import BASE
from stages.dataset.conversations import Conversation, Message, ModelReader, without_reasoning

IGNORED = -100
# A token that is written as a word in angle brackets.
_PLAIN = re.compile(r"<[a-z_]{3,}>")
# The reasoning that a prompt opens, and may close again, for the answer to follow.
_OPENED = re.compile(r"<think>\s*(</think>\s*)?$")
# Without these fields a message says nothing.
_MEANT = {"content", "tool_calls"}
# A range of characters.
_Span = tuple[int, int]


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
            self.examples(Conversation((ASKED, ANSWERED, ASKED, ANSWERED)))
        except Exception as error:
            raise UserError(f"unsloth.model: {_why(error)}") from None

    @cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer)

    def render(self, conversation: Conversation, upto: int | None = None, answer_next: bool = False) -> str:
        """Render the first `upto` messages; with `answer_next`, add the prefix of the assistant's next message."""
        first = msgspec.structs.replace(conversation, messages=conversation.messages[:upto])
        return self._template.render(first, answer_next)

    def left_out(self, conversations: Sequence[Conversation]) -> list[list[str]]:
        """The fields of each conversation that make no difference to what the template writes."""
        return [self._left_out(one) if has_extras(one) else [] for one in conversations]

    def _left_out(self, conversation: Conversation) -> list[str]:
        try:
            return sorted({field for field, _ in self._template.unwritten(conversation, self.render(conversation))})
        # What the template rejects is reported as a whole.
        except Exception:
            return []

    def counts(self, conversations: Sequence[Conversation]) -> Sequence[int | str]:
        """Lengths of conversations in tokens, 0 for one without messages; the reason if one cannot be learned."""
        texts = [self._learnable(one) for one in conversations]
        lengths = iter(self.lengths([text for text in texts if isinstance(text, str)]))
        return [next(lengths) if isinstance(text, str) else _why(text) for text in texts]

    def _learnable(self, conversation: Conversation) -> str | Exception:
        """The conversation's text, or why it has none, or none that can be learned."""
        try:
            if not conversation.messages:
                return ""
            text = self.render(conversation)
            # Otherwise the gate has a finding of its own.
            if conversation.messages[-1].role == "assistant":
                self._parts(conversation, text)
            return text
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
        # Models that also see have a configuration for each part.
        config = config.get("text_config") or config
        return int(config.get("max_position_embeddings") or sys.maxsize)

    def examples(self, conversation: Conversation) -> list[Example]:
        """Tokenize a conversation and label only its assistant messages, including their end tokens.

        Messages of weight 0 are not labelled. Where the template writes earlier turns otherwise once more follow, there
        is an example for each learned message that ends there, as the model will see it.

        Raises:
            UserError: the template leaves out what a message says, writes answers otherwise than the model is asked for
                them, or does not end them with a special token.
        """
        return [self._tokenized(*part) for part in self._parts(conversation, self.render(conversation))]

    def example(self, conversation: Conversation) -> Example:
        """Tokenize a conversation and label only its response, regardless of its weight.

        Raises:
            UserError: as for `examples`.
        """
        return self._tokenized(*self._response(conversation))

    def _tokenized(self, text: str, spans: Sequence[_Span]) -> Example:
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tokens["input_ids"]
        learned = [any(start <= a and b <= end for start, end in spans) and b > a for a, b in tokens["offset_mapping"]]
        return Example(ids, [token if keep else IGNORED for token, keep in zip(ids, learned, strict=True)])

    def _parts(self, conversation: Conversation, text: str) -> list[tuple[str, list[_Span]]]:
        """The text of each example, and what of it is learned; `text` is that of the whole conversation."""
        self._refuse_unwritten(conversation, text)
        learned = [at for at, one in enumerate(conversation.messages) if one.role == "assistant" and one.weight != 0]
        try:
            return [(text, [self._span(conversation, at, text) for at in learned])]
        except _RewrittenError:
            turns = (conversation.messages[: at + 1] for at in learned)
            return [self._response(msgspec.structs.replace(conversation, messages=turn)) for turn in turns]

    def _response(self, conversation: Conversation) -> tuple[str, list[_Span]]:
        last = len(conversation.messages) - 1
        asked = self.render(conversation, last, answer_next=True)
        text = _following(asked, self.render(conversation), conversation.messages[last])
        return text, [self._span(conversation, last, text)]

    def _span(self, conversation: Conversation, index: int, text: str) -> _Span:
        """Where message `index` is in the rendered text, including its end token."""
        before = self.render(conversation, index, answer_next=True)
        upto = text if index == len(conversation.messages) - 1 else self.render(conversation, index + 1)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise _RewrittenError(
                "the model's chat template rewrites earlier turns, so responses cannot be located; choose another model"
            )
        said = upto[len(before) :]
        _, end = self._end(said, conversation.messages[index])
        return len(before), len(before) + end

    def _refuse_unwritten(self, conversation: Conversation, text: str) -> None:
        for field, number in self._template.unwritten(conversation, text):
            if field in _MEANT:
                role = conversation.messages[number - 1].role
                raise UserError(
                    f"the model's chat template leaves out the {field} of message {number} ({role}); remove the"
                    " conversation, or choose a model whose template writes it"
                )

    def _end(self, said: str, message: Message) -> tuple[str, int]:
        """The special token that ends a rendered message, the first after what it says, and where that token ends."""
        # A call's arguments are JSON.
        words = [without_reasoning(message.text).strip(), *called(message), *("}" for _ in called(message))]
        begin = max((said.rfind(word) + len(word) for word in words if word and word in said), default=0)
        places = ((said.find(token, begin), token) for token in self.special_tokens)
        place, end_token = min((found for found in places if found[0] >= 0), default=(0, ""))
        if not end_token:
            raise UserError("the model's chat template does not end responses with a special token; choose another")
        return end_token, place + len(end_token)

    @cached_property
    def end_token(self) -> str:
        """The special token with which the template ends a response; it need not be the tokenizer's own."""
        return self._end(self._said, ANSWERED)[0]

    @cached_property
    def _said(self) -> str:
        """What the template writes of a short answer, from where the model is asked for it."""
        asked = self.render(Conversation((ASKED,)), answer_next=True)
        return self.render(Conversation((ASKED, ANSWERED))).removeprefix(asked)

    @cached_property
    def _channel(self) -> str:
        """The special tokens and words with which an answer begins, and a reasoning does not; most have none."""
        lead = self._said.partition(ANSWERED.text)[0].strip()
        return lead if self._specials.match(lead) and not lead.endswith("</think>") else ""

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special_tokens)))

    @cached_property
    def end_ids(self) -> list[int]:
        """Ids of the tokens at which an answer ends: the template's, the tokenizer's and the model's."""
        ids = {self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(self.end_token)}
        path = self.folder / "generation_config.json"
        of_model = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
        return sorted(ids | set(of_model if isinstance(of_model, list) else [of_model]) - {None})

    def spoken(self, ids: Iterable[int], prompt: str = "") -> str:
        """The text of an answer's tokens after `prompt`, without special tokens and without reasoning."""
        ids = list(ids)
        whole = self.tokenizer.decode(ids, skip_special_tokens=False)
        if self._channel and self._channel in whole:
            return self._specials.split(whole.rpartition(self._channel)[2])[0].strip()
        if self._channel and self._channel.startswith(tuple(self._specials.findall(whole))):
            return ""
        # In some tokenizers these are special tokens too.
        if "</think>" in whole:
            return self._specials.sub("", without_reasoning(whole)).strip()
        if "<think>" in whole or prompt.rstrip().endswith("<think>"):
            return ""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


class _RewrittenError(UserError):
    """The template writes earlier turns otherwise once more follow."""


def _following(asked: str, text: str, message: Message) -> str:
    """The text with its last message after the reasoning with which the model is asked to begin, where the template
    leaves that out, as distilled DeepSeek R1's does.
    """
    opened = _OPENED.search(asked)
    if text.startswith(asked) or not opened or not text.startswith(asked[: opened.start()]):
        return text
    said = text[opened.start() :]
    if "</think>" in said:
        return text
    reasoning = message.text.rpartition("</think>")[0].strip().removeprefix("<think>").strip()
    return asked + ("" if opened[1] else f"{reasoning}\n</think>\n\n") + said.lstrip("\n")


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"the model's chat template rejects the conversation: {error or type(error).__name__}"
