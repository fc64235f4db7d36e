"""What the readers and formats need to know of a source, and what a row of its file holds."""

from typing import Any, Protocol

# Types of files that are read.
CONTAINERS = ("csv", "json", "jsonl", "parquet")
# What a row holds: cells of a CSV, the bytes of a JSON record, or a decoded record.
Content = list[str] | bytes | Any


class Columns(Protocol):
    """Which columns of a table hold what; `system_prompt` is one constant prompt in place of a system column."""

    @property
    def user(self) -> str: ...
    @property
    def assistant(self) -> str: ...
    @property
    def system(self) -> str | None: ...
    @property
    def system_prompt(self) -> str | None: ...


class Source(Protocol):
    """How a source is declared: the format of its records, and its file where that is not left to be detected."""

    @property
    def format(self) -> str: ...
    @property
    def columns(self) -> Columns | None: ...
    @property
    def label(self) -> str | None: ...
    @property
    def container(self) -> str | None: ...
    @property
    def encoding(self) -> str | None: ...
    @property
    def delimiter(self) -> str | None: ...

    def key(self, field: str) -> str:
        """The full name of one of these declarations, for messages."""
