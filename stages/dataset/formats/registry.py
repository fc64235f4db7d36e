"""The formats that a source can have. Nothing is repaired.

A format is one entry: what params.yaml allows, the documentation and the hints of errors follow from it.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from stages.dataset.formats import fields, grouped, messages, tabled, trees
from stages.dataset.formats.chats import LISTS, Chats
from stages.dataset.formats.fields import Roles
from stages.dataset.formats.keys import Keys
from stages.dataset.formats.records import Record, Shaped, decoded
from stages.dataset.source import Content, Source


@dataclass(frozen=True)
class Format:
    """How a record holds a conversation.

    `meaning` describes it for people. It is recognised by `marks`, names of keys or columns. A format has `record`,
    which turns one JSON record into a conversation and the value of its label, or `columns`, or `rows`, which reads
    whole tables; or else the source names its columns itself, in the section `named`.
    """

    name: str
    meaning: str
    marks: tuple[str, ...] = ()
    record: Callable[..., Shaped] | None = None
    columns: Roles = field(default_factory=dict)
    rows: Callable[[Iterator[tuple[int, Content]], Source, Keys, Any], Iterator[Record]] | None = None
    named: str = ""

    @property
    def of_named_columns(self) -> bool:
        """Whether a source of this format has to name its columns."""
        return self.named == "columns"


_ALL = (
    Format("messages", "JSON chat records with messages", ("messages",), record=messages.messages),
    Format("columns", "a table whose columns are named", named="columns"),
    Format("sharegpt", "JSON records with conversations of from and value", ("conversations",), messages.sharegpt),
    Format(
        "alpaca",
        "instruction, input and output",
        ("instruction", "output"),
        columns={
            "system": ["system?"],
            "history": ["history?"],
            "user": ["instruction", "input?"],
            "assistant": ["output"],
        },
    ),
    Format(
        "prompt_completion",
        "prompt and completion",
        ("prompt", "completion"),
        columns={"system": ["system?"], "user": ["prompt"], "assistant": ["completion"]},
    ),
    Format("turns", "a table with a row for each message", rows=grouped.read, named="turns"),
    Format("oasst", "trees of messages", ("message_id", "parent_id"), rows=trees.read),
)
REGISTRY = {form.name: form for form in _ALL}


def looks_like(content: Content) -> set[str]:
    """The formats that a header or a record may be of by its names, as far as they show it."""
    if isinstance(content, list) and len(content) > 1:
        return {found} if (found := format_of(content)) else set()
    try:
        record = decoded(content[0] if isinstance(content, list) else content, dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError, IndexError):
        return set()
    if isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]:
        return {"oasst"}
    found = format_of(record)
    said = next((record[name] for name in LISTS if isinstance(record.get(name), list)), None)
    # These two differ in the names of keys, and each reads the other's messages.
    if found == "sharegpt" and isinstance(said, list) and any("role" in one for one in said if isinstance(one, dict)):
        return {"sharegpt", "messages"}
    return {found} if found else set()


def format_of(names: Container[str]) -> str | None:
    """The format whose marks are all among the names."""
    marked = [form for form in REGISTRY.values() if form.marks]
    return next((form.name for form in marked if all(mark in names for mark in form.marks)), None)


def read(rows: Iterator[tuple[int, Content]], source: Source, keys: Keys) -> Iterator[Record]:
    """A record for each row, conversation or tree.

    Raises:
        UserError: a column that the format or the label needs is missing.
    """
    form = REGISTRY[source.format]
    if form.rows:
        return form.rows(rows, source, keys, format_of)
    if form.record:
        return tabled.read(rows, partial(form.record, chats=Chats.of(source, keys)), source, keys, format_of)
    return fields.read(rows, roles(source), source, keys, format_of)


def roles(source: Source) -> Roles:
    """What each role is made of in a source whose records are fields."""
    if (columns := source.columns) is None:
        return REGISTRY[source.format].columns
    named = {"system": columns.system, "history": columns.history, "user": columns.user, "assistant": columns.assistant}
    return {role: spec for role, spec in named.items() if spec}


def column_names(source: Source) -> dict[str, str]:
    """For each role the source's columns, in words."""
    if source.turns:
        return dict.fromkeys(("user", "assistant", "system"), source.turns.content)
    if REGISTRY[source.format].rows:
        return dict.fromkeys(("user", "assistant"), "text")
    return {
        role: " and ".join(part.name for part in fields.cells(spec).parts)
        for role, spec in roles(source).items()
        if role != "history"
    }
