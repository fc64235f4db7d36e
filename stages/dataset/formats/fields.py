"""Records whose fields hold a question and an answer: tables with named columns, alpaca, prompt and completion."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message
from stages.dataset.formats.cells import Cells, cells
from stages.dataset.formats.chats import Chats
from stages.dataset.formats.keys import Keys
from stages.dataset.formats.records import Record, Shaped, decoded, shaped
from stages.dataset.masking import excerpt
from stages.dataset.source import Content, Source, Spec

# For each role, and for earlier turns as history, what it is made of.
Roles = Mapping[str, Spec]
# Names that an error lists.
_NAMED = 20
_LISTS = ("user", "assistant")


@dataclass(frozen=True)
class _Shape:
    """How a source's fields become a conversation."""

    roles: dict[str, Cells]
    history: str | None
    constant: str | None
    label: str | None
    known: frozenset[str]
    chats: Chats

    def conversation(self, content: Any) -> Shaped:
        """The conversation in one record, and its label."""
        fields = decoded(content, dict[str, Any])
        # What the format reads is known; nothing else may be lost.
        if extras := fields.keys() - self.known:
            self.chats.keys.leave((name, fields[name]) for name in fields if name in extras)
        return self.of(fields), fields.get(self.label) if self.label else None

    def of(self, fields: Mapping[str, Any]) -> Conversation:
        """The conversation in fields whose names are all known."""
        system = self.constant or (self.roles["system"].text(fields) if "system" in self.roles else "")
        if any(isinstance(fields.get(self.roles[role].parts[0].name), list) for role in _LISTS):
            return self._of_lists(fields, system)
        user, assistant = (Message(role, self.roles[role].text(fields)) for role in ("user", "assistant"))
        # A system column may be empty in some rows; an empty question or answer is for the gate to see.
        first = (Message("system", system),) if system else ()
        return Conversation((*first, *self._earlier(fields), user, assistant))

    def _of_lists(self, fields: Mapping[str, Any], system: str) -> Conversation:
        """Fields that hold lists of messages, as trainers of prompt and completion take them."""
        said: list[Any] = []
        for role in _LISTS:
            value = fields.get(self.roles[role].parts[0].name)
            said += value if isinstance(value, list) else [{"role": role, "content": self.roles[role].text(fields)}]
        return self.chats.conversation({"messages": said, "system": system})

    def _earlier(self, fields: Mapping[str, Any]) -> Sequence[Message]:
        """Earlier turns, as a list of questions and answers or of messages, or as its JSON text."""
        given = fields.get(self.history) if self.history else None
        if given is None or given == [] or (isinstance(given, str) and given.strip() in ("", "[]")):
            return ()
        value = msgspec.json.decode(given) if isinstance(given, str) else given
        turns = [
            {"role": role, "content": text}
            for pair in (value if isinstance(value, list) else [value])
            for role, text in (zip(_LISTS, pair, strict=False) if isinstance(pair, list) and len(pair) == 2 else ())
        ]
        if isinstance(value, list) and all(isinstance(one, dict) for one in value):
            turns = value
        elif not isinstance(value, list) or len(turns) != 2 * len(value):
            raise msgspec.ValidationError(
                f"Expected a list of pairs of question and answer in field `{self.history}`, or of messages"
            )
        return self.chats.conversation(turns).messages


def shape(roles: Roles, source: Source, keys: Keys) -> _Shape:
    """How the source's fields are read, given what each role is made of."""
    made = {role: cells(spec) for role, spec in roles.items() if role != "history"}
    history = roles.get("history")
    past = (history if isinstance(history, str) else history[0]).removesuffix("?") if history else None
    constant = source.columns.system_prompt if source.columns else None
    known = {name for one in made.values() for name in one.names} | {past, source.label}
    return _Shape(made, past, constant, source.label, frozenset(name for name in known if name), Chats.of(source, keys))


def read(rows: Iterator[tuple[int, Content]], roles: Roles, source: Source, keys: Keys, look: Any) -> Iterator[Record]:
    """A record for each row of a table or each JSON record; a table's first row is its header.

    `look` names the format that a list of names looks like, for the error of a missing column.

    Raises:
        UserError: a column is missing or repeated.
    """
    made = shape(roles, source, keys)
    first = next(rows, None)
    if first is None:
        return
    if not isinstance(first[1], list):
        yield from _records(itertools.chain([first], rows), made, source)
        return
    header: list[str] = first[1]
    require(header, _needed(roles, source), source, look)
    extras = [name for name in dict.fromkeys(header) if name not in made.known]

    def of_row(content: dict[str, str]) -> Shaped:
        if extras:
            keys.leave((name, content[name]) for name in extras)
        return made.of(content), content[source.label] if source.label else None

    content: Any
    for row, content in rows:
        if reason := misfit(content, header):
            yield Record(row, None, reason, excerpt(" | ".join(content)))
        else:
            yield shaped(row, dict(zip(header, content, strict=True)), of_row, source)


def misfit(content: Any, header: list[str]) -> str | None:
    """Why a row does not fit under the header, if it does not."""
    if not content:
        return "a blank row between others; remove it"
    if len(content) == len(header):
        return None
    return f"{len(content)} columns where the header has {len(header)}"


def _records(rows: Iterator[tuple[int, Content]], made: _Shape, source: Source) -> Iterator[Record]:
    for row, content in rows:
        yield shaped(row, content, made.conversation, source)


def _needed(roles: Roles, source: Source) -> list[str]:
    """Columns that have to be there."""
    parts = [part for role, spec in roles.items() for part in cells(spec).parts if not part.name.endswith("?")]
    return [part.name for part in parts if not part.loose] + ([source.label] if source.label else [])


def require(header: list[str], names: list[str], source: Source, look: Any) -> None:
    """Refuse a header in which a needed name is missing or repeated.

    Raises:
        UserError: one is.
    """
    for name in names:
        if name not in header:
            found = look(header)
            hint = f"; it looks like format: {found}" if found else ""
            named = "columns" if source.columns else "turns" if source.turns else "format"
            key = source.key("label" if name == source.label else named)
            raise UserError(f"the source has no column '{name}'; its columns are: {listed(header)}{hint}; fix {key}")
        if header.count(name) > 1:
            raise UserError(
                f"the source has {header.count(name)} columns '{name}', of which one is meant; rename the others"
            )


def listed(header: Sequence[str]) -> str:
    """The first names; where a header is missing, they are a conversation's text."""
    more = f" and {len(header) - _NAMED} more" if len(header) > _NAMED else ""
    return ", ".join(map(excerpt, header[:_NAMED])) + more
