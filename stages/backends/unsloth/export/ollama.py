"""Ollama's Modelfile: weights, chat template and stop token.

Ollama renders conversations with a Go template, the tokenizer with a Jinja template. The text that the latter puts
around each role's content is found by rendering test conversations, and the Go equivalent is verified on several more.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.backends.unsloth.reader import Chat
from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import SPLITS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message

# Texts that occur in no template.
_MARKS = ("\u2060one\u2060", "\u2060two\u2060", "\u2060three\u2060")
_COMPARED = 20
# A text in triple quotes ends at the first line that ends in such quotes, which nothing escapes: what follows would be
# instructions. In the template, texts are Go's strings, where quotes are escaped.
_QUOTES_END = re.compile(r"\"\"\"[^\S\r\n]*[\r\n]")


@dataclass(frozen=True)
class Wrapping:
    """The text around messages: `head` if there is no system message, and before and after each role's content."""

    head: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]

    @classmethod
    def of(cls, chat: Chat) -> "Wrapping":
        """Derive it by rendering test conversations."""
        one, two, three = _MARKS
        asked = _written(chat, ("user", one))
        before_first, after_user = asked.split(one)
        turns = _written(chat, ("user", one), ("assistant", two), ("user", three))
        between, rest = turns.split(one)[1].split(two)
        after_assistant = _written(chat, ("user", one), ("assistant", two)).split(two)[1]
        before_user = rest.split(three)[0].removeprefix(after_assistant)
        before_system, after_system = _written(chat, ("system", one), ("user", two)).split(two)[0].split(one)
        begin = _begin(chat.tokenizer)
        return cls(
            head=before_first.removesuffix(before_user).removeprefix(begin),
            system=(before_system.removeprefix(begin), after_system.removesuffix(before_user)),
            user=(before_user, after_user),
            assistant=(between.removeprefix(after_user), after_assistant),
        )

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation up to the assistant's next message, without a begin token."""
        head = "" if messages[0].role == "system" else self.head
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        turns = (around[one.role][0] + one.text + around[one.role][1] for one in messages)
        return head + "".join(turns) + self.assistant[0]

    def template(self) -> str:
        """The equivalent Go template. Texts are quoted strings, in which Go keeps white space."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        turns = "{{ else }}".join(
            f'{{{{ if eq .Role "{role}" }}}}{_quoted(before)}{{{{ .Content }}}}{_quoted(after)}'
            for role, (before, after) in roles.items()
        )
        head = '{{ if ne (index .Messages 0).Role "system" }}' + _quoted(self.head) + "{{ end }}" if self.head else ""
        return f"{head}{{{{ range .Messages }}}}{turns}{'{{ end }}' * (len(roles) + 1)}{_quoted(self.assistant[0])}"


def write(model: Path, path: Path, weights: str) -> None:
    """Write the Modelfile for the weights file `weights` in the same folder; `model` is the folder of the tokenizer.

    Raises:
        UserError: the chat template does more than wrap each message.
    """
    chat = Chat.load(model)
    train = list(conversations.read_jsonl(SPLITS["train"]))
    wrapping, system = _trusted(chat, train), conversations.shared_system(train)
    quotable = not _QUOTES_END.search(system or "")
    if system and not quotable:
        wrapping = replace(wrapping, head=system.join(wrapping.system))
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{wrapping.template()}"""',
        f"PARAMETER stop {json.dumps(chat.end_token)}",
    ]
    if system and quotable:
        lines.append(f'SYSTEM """{system}"""')
    files.write_text(path, "\n".join(lines) + "\n")


def _trusted(chat: Chat, talks: Sequence[Conversation]) -> Wrapping:
    try:
        wrapping = Wrapping.of(chat)
        question, answer = Message("user", _MARKS[0]), Message("assistant", _MARKS[1])
        prompts = [(question,), (question, answer, question), *(talk.prompt for talk in talks[:_COMPARED])]
        same = all(
            chat.render(Conversation(prompt), answer_next=True).removeprefix(_begin(chat.tokenizer))
            == wrapping.render(prompt)
            for prompt in prompts
        )
    except (KeyError, ValueError):
        same = False
    if not same:
        raise UserError(
            "export.formats: the model's chat template does more than wrap each message, which a Modelfile cannot"
            " express; remove ollama, and use the GGUF in a program that runs the template itself"
        )
    return wrapping


def _written(chat: Chat, *turns: tuple[Any, str]) -> str:
    return chat.render(Conversation(tuple(Message(role, text) for role, text in turns)))


def _begin(tokenizer: Any) -> str:
    """The begin token if the tokenizer adds it, because Ollama then adds it too."""
    adds = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if adds else ""


def _quoted(text: str) -> str:
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
