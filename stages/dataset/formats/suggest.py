"""The declaration that would read a file, found by trying the formats on its first records."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import yaml

from stages.core.cli import UserError
from stages.dataset.formats import exports, registry
from stages.dataset.formats.keys import Keys
from stages.dataset.formats.records import Record, decoded
from stages.dataset.source import Content, Source, Spec, Tried, TriedColumns, TriedTurns

# What columns are often called, the surest name first.
_USER = (
    "question", "instruction", "prompt", "query", "user", "human", "customer", "q", "utterance", "problem", "request",
    "inputs", "input", "message", "usermessage", "source", "frage", "pregunta", "dialogue", "article", "document",
)  # fmt: skip
_ASSISTANT = (
    "answer", "response", "output", "completion", "reply", "assistant", "bot", "a", "solution", "agent", "target",
    "targets", "outputs", "assistantmessage", "answers", "antwort", "respuesta", "summary", "highlights",
)  # fmt: skip
_CONTEXT = ("context", "input", "passage", "background", "document")
_SYSTEM = ("system", "systemprompt")
_CONVERSATION = (
    "conversationid", "conversation", "dialogueid", "dialogid", "dialogue", "chatid", "threadid", "sessionid",
    "session", "convid", "ticketid",
)  # fmt: skip
_ROLE = ("role", "speaker", "from", "author", "sender")
_CONTENT = ("content", "text", "message", "utterance", "value", "body")
_ORDER = (
    "order",
    "turn",
    "turnid",
    "position",
    "index",
    "messageindex",
    "seq",
    "step",
    "timestamp",
    "createdat",
    "time",
)
Rows = Sequence[tuple[int, Content]]


def declaration(first: Rows, source: Source) -> Tried | None:
    """What reads most of the first rows; what the source says of the file itself is kept.

    None where no declaration reads any of them.
    """
    looks = set[str]().union(*(registry.looks_like(content) for _, content in first[:2]))
    base = Tried(
        label=source.label,
        ignore=source.ignore,
        roles=source.roles,
        container=source.container,
        sheet=source.sheet,
        encoding=source.encoding,
        delimiter=source.delimiter,
        escape=source.escape,
    )
    counted = [
        (valid(first, tried), tried.format in looks, -place, tried)
        for place, tried in enumerate(_candidates(first, base))
    ]
    best = max(counted, key=lambda one: one[:3], default=None)
    return best[3] if best and best[0] else None


def valid(first: Rows, source: Source) -> int:
    """How many of the first rows are conversations by a declaration."""
    try:
        records = tried(first, source)
    except UserError:
        return 0
    return sum(one.conversation is not None and len(one.conversation.messages) > 1 for one in records)


def tried(first: Rows, source: Source) -> list[Record]:
    """The records of the first rows.

    Raises:
        UserError: they are not of the source's format at all.
    """
    contents = [content.copy() if isinstance(content, list) else content for _, content in first]
    rows = iter([(row, content) for (row, _), content in zip(first, contents, strict=True)])
    return list(registry.read(rows, source, Keys(source)))


def _candidates(first: Rows, base: Tried) -> Iterator[Tried]:
    """Declarations, the more particular ones first."""
    for name in ("messages", "sharegpt"):
        yield dataclasses.replace(base, format=name)
    for name in ("messages", "sharegpt"):
        yield dataclasses.replace(base, format=name, reasoning="drop")
    for name in ("oasst", "alpaca", "prompt_completion"):
        yield dataclasses.replace(base, format=name)
    for names in _names(first):
        if turns := _turns(names):
            yield dataclasses.replace(base, format="turns", turns=turns)
        if columns := _columns(names, _known(first) is None):
            yield dataclasses.replace(base, format="columns", columns=columns)


def by_names(first: Rows) -> list[Mapping[str, Any]]:
    """The first rows with their fields by name: of a table, or of JSON records."""
    contents = [content for _, content in first]
    if contents and isinstance(contents[0], list):
        return [dict(zip(contents[0], cells, strict=False)) for cells in contents[1:] if isinstance(cells, list)]
    found = []
    for content in contents:
        try:
            found.append(decoded(content, dict[str, Any]))
        except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError):
            continue
    return found


def _names(first: Rows) -> Iterator[list[str]]:
    """The names of the columns of a table, or of the keys of the first record."""
    if first and isinstance(first[0][1], list):
        yield first[0][1]
    elif records := by_names(first):
        yield list(records[0])


def _turns(names: list[str]) -> TriedTurns | None:
    conversation, role, content = (_find(names, known) for known in (_CONVERSATION, _ROLE, _CONTENT))
    if not (conversation and role and content):
        return None
    return TriedTurns(conversation, role, content, _find(names, _ORDER))


def _columns(names: list[str], of_any_name: bool) -> TriedColumns | None:
    user, assistant = _find(names, _USER), _find(names, _ASSISTANT)
    if of_any_name and not (user and assistant) and len(names) == 2 and all(names):
        user, assistant = names
    if not (user and assistant) or user == assistant:
        return None
    context = _find([name for name in names if name not in (user, assistant)], _CONTEXT)
    asked: Spec = user
    if context:
        braces = any(sign in user + context for sign in "{}")
        asked = [user, context] if braces else f"{{{user}}}\n\n{{{context}}}"
    history = "history" if "history" in names else None
    return TriedColumns(asked, assistant, _find(names, _SYSTEM), None, history)


def _find(names: list[str], known: Sequence[str]) -> str | None:
    """The name that is one of the known ones; or whose first word is."""
    plain = {re.sub(r"[\W_]+", "", name).lower(): name for name in reversed(names)}
    words = {found[0].lower(): name for name in reversed(names) if (found := re.match(r"[^\W_]+", name))}
    return next((where[one] for where in (plain, words) for one in known if one in where), None)


def settings(found: Source) -> dict[str, Any]:
    """A declaration as params.yaml has it, without what is not declared."""
    given: dict[str, Any] = {"format": found.format}
    for name in ("columns", "turns"):
        if section := getattr(found, name):
            given[name] = {key: value for key, value in vars(section).items() if value}
    for name in ("label", "ignore", "roles", "reasoning", "container", "sheet", "encoding", "delimiter", "escape"):
        if value := getattr(found, name):
            given[name] = list(value) if name == "ignore" else dict(value) if name == "roles" else value
    return given


class _Dumper(yaml.SafeDumper):
    """Writes line breaks as \\n, so that a template stays on its line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None)


_Dumper.add_representer(str, _text)


def as_yaml(given: Mapping[str, Any]) -> list[str]:
    """Settings as lines of YAML, a section in one line."""
    return [f"{name}: {_in_one_line(value)}" for name, value in given.items()]


def _in_one_line(value: Any) -> str:
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False
    )
    return text.strip()[1:-1]


def way_out(first: Rows, source: Source) -> str | None:
    """The lines that declare what reads the file, or where it is converted; None where neither is known."""
    found = declaration(first, source)
    if found is not None:
        place = source.key("format").rpartition(".")[0]
        return "\n".join([f"this reads it; in params.yaml, put under {place}:", *as_yaml(settings(found))])
    return _known(first)


def _known(first: Rows) -> str | None:
    return exports.known([content for _, content in first], by_names(first))
