"""What the readers and formats need to know of a source, and what a row of its file holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# Types of files that are read.
CONTAINERS = ("csv", "json", "jsonl", "parquet", "xlsx")
# What a row holds: cells of a table, the bytes of a JSON record, or a decoded record.
Content = list[str] | bytes | Any
# What a role's text is made of: a column, several, or a template with {column} in it.
Spec = str | Sequence[str]


class Columns(Protocol):
    """Which columns of a table hold what; `system_prompt` is one constant prompt in place of a system column."""

    @property
    def user(self) -> Spec: ...
    @property
    def assistant(self) -> Spec: ...
    @property
    def system(self) -> Spec | None: ...
    @property
    def system_prompt(self) -> str | None: ...
    @property
    def history(self) -> str | None: ...


class Turns(Protocol):
    """Which columns of a table with one row for each message hold what; `order` sorts a conversation's messages."""

    @property
    def conversation(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def order(self) -> str | None: ...


class Source(Protocol):
    """How a source is declared: the format of its records, and its file where that is not left to be detected."""

    @property
    def format(self) -> str: ...
    @property
    def columns(self) -> Columns | None: ...
    @property
    def turns(self) -> Turns | None: ...
    @property
    def label(self) -> str | None: ...
    @property
    def ignore(self) -> Sequence[str]: ...
    @property
    def roles(self) -> Mapping[str, str]: ...
    @property
    def reasoning(self) -> str | None: ...
    @property
    def container(self) -> str | None: ...
    @property
    def sheet(self) -> str | None: ...
    @property
    def encoding(self) -> str | None: ...
    @property
    def delimiter(self) -> str | None: ...
    @property
    def escape(self) -> str | None: ...

    def key(self, field: str) -> str:
        """The full name of one of these declarations, for messages."""


@dataclass(frozen=True)
class TriedColumns:
    """Columns that are tried on a file."""

    user: Spec
    assistant: Spec
    system: Spec | None = None
    system_prompt: str | None = None
    history: str | None = None


@dataclass(frozen=True)
class TriedTurns:
    """Columns of a table of messages that are tried on a file."""

    conversation: str
    role: str
    content: str
    order: str | None = None


@dataclass(frozen=True)
class Tried:
    """A declaration that is tried on a file; fields are those of a source."""

    format: str = "messages"
    columns: Columns | None = None
    turns: Turns | None = None
    label: str | None = None
    ignore: Sequence[str] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    reasoning: str | None = None
    container: str | None = None
    sheet: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    escape: str | None = None
    name: str = "NAME"

    def key(self, field: str) -> str:
        """The full name of one of these declarations, for messages."""
        return f"data.sources.{self.name}.{field}"
