"""The parameters of the data: where it comes from, what the gate refuses, and how it is split."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer, model_validator

from stages.core.flatten import CREDENTIALS, address, has_credentials
from stages.core.text import printable
from stages.dataset import formats
from stages.dataset.source import CONTAINERS
from stages.params.kinds import Number, ReadBy, Section, Text, knob, nearest

if TYPE_CHECKING:
    Format = str
    Container = str
else:
    # The registered formats: a new one is known here as soon as it is there.
    Format = Literal[tuple(formats.REGISTRY)]
    Container = Literal[CONTAINERS]

_NAME = re.compile(r"[\w-]+")
_DOWNLOAD = ReadBy(("download",))
_READING = ReadBy(("parse", "validate"))
_Role = Literal["system", "user", "assistant", "tool"]
# Declarations that few sources need; a report lists them only where they are made.
_RARE = ("turns", "ignore", "roles", "reasoning", "sheet", "escape")
_FORMATS = ", ".join(f"{one.name} ({one.meaning})" for one in formats.REGISTRY.values())


class Columns(Section):
    """Which columns of a table hold what."""

    user: list[Text] | Text = knob(
        "Column of the user's message, a list of columns, or a template such as '{question}\\n\\n{context}'. An empty"
        " cell takes the words before it along."
    )
    assistant: list[Text] | Text = knob("Column of the assistant's response, a list of columns, or a template.")
    system: list[Text] | Text | None = knob(
        "Column of the system prompt, a list, or a template; cells may be empty.", default=None
    )
    system_prompt: Text | None = knob("One system prompt for all rows, in place of a system column.", default=None)

    history: Text | None = knob(
        "Column of earlier turns: JSON, a list of pairs of question and answer, or of messages.", default=None
    )

    @model_validator(mode="after")
    def _some_columns(self) -> "Columns":
        for role in ("user", "assistant", "system"):
            if getattr(self, role) == []:
                raise ValueError(f"{role} is an empty list; name a column")
        return self

    @model_validator(mode="after")
    def _one_system(self) -> "Columns":
        if self.system and self.system_prompt:
            raise ValueError("system and system_prompt exclude each other: keep one")
        return self

    @model_validator(mode="after")
    def _different(self) -> "Columns":
        if self.user == self.assistant:
            raise ValueError(
                f"user and assistant both name '{self.user}', so each answer would repeat its question; name the column"
                " of the responses as assistant"
            )
        return self


class Turns(Section):
    """Which columns of a table with a row for each message hold what."""

    conversation: Text = knob("Column with the same value in all rows of a conversation.")
    role: Text = knob("Column of who speaks: user, assistant, system, tool, or a name that roles declares.")
    content: Text = knob("Column of the message's text.")
    order: Text | None = knob(
        "Column of numbers or ISO dates that sort a conversation's messages; null takes them as they follow.",
        default=None,
    )


class Source(Section):
    """One place that data comes from, and its form."""

    url: Text = knob("Where the file is: a path, http(s)://, or an fsspec address such as s3://.", _DOWNLOAD)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = knob(
        "Checksum that the file must have; null accepts any content.", ReadBy(("download",), decides="nothing")
    )
    format: Format = knob(f"How a record holds a conversation: {_FORMATS}.")
    columns: Columns | None = knob("Which columns hold what; for format: columns, and only there.", default=None)
    turns: Turns | None = knob("Which columns hold what; for format: turns, and only there.", default=None)
    label: Text | None = knob(
        "Column or key with each conversation's label: splits keep the shares of the labels, and each gets its own"
        " metrics.",
        default=None,
    )
    ignore: list[Text] = knob(
        "Keys or columns that are metadata and ignored; others that are not read are named once with their count.",
        default=[],
    )
    roles: dict[str, _Role] = knob(
        "What speakers are called beyond user, human, assistant, gpt, bot, model and the like, such as {Agent:"
        " assistant}.",
        default={},
    )
    reasoning: Literal["drop", "learn"] | None = knob(
        "What becomes of an assistant's reasoning beside its text: drop leaves it out, learn trains on it as <think>"
        " before the answer; null refuses it.",
        default=None,
    )
    container: Container | None = knob("Type of the file; null detects it.", default=None)
    sheet: Text | None = knob("Name of the sheet of a spreadsheet; null takes the first.", default=None)
    encoding: Text | None = knob("Encoding of the text, such as utf-8 or cp1252; null detects it.", default=None)
    delimiter: Annotated[str, Field(strict=True, min_length=1, max_length=1)] | None = knob(
        "Character between the cells of a CSV; null detects it.", default=None
    )
    escape: Literal["doubled", "backslash"] | None = knob(
        "How quotes within a quoted cell of a CSV are written: doubled, or after a backslash; null is doubled.",
        default=None,
    )
    _name: str = PrivateAttr("*")

    @model_validator(mode="after")
    def _columns_for_tables(self) -> "Source":
        named = formats.REGISTRY[self.format].named
        if (named == "columns") != (self.columns is not None):
            raise ValueError("columns (user, assistant, ...) go with format: columns, and only with it")
        if (named == "turns") != (self.turns is not None):
            raise ValueError("turns (conversation, role, content, ...) goes with format: turns, and only with it")
        return self

    @model_validator(mode="after")
    def _ignores_metadata_only(self) -> "Source":
        for name in self.ignore:
            if advice := formats.CHANGING.get(name):
                raise ValueError(f"ignore: '{name}' changes the conversation and is never ignored: {advice}")
        return self

    @model_serializer(mode="wrap")
    def _without_rare(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if values.get("columns") and values["columns"].get("history") is None:
            values["columns"].pop("history", None)
        return {name: value for name, value in values.items() if value or name not in _RARE}

    def key(self, field: str) -> str:
        """The full name of a parameter of this source, for messages."""
        return f"data.sources.{self._name}.{field}"


class Data(Section):
    source: Text = knob("Name of the source to use.", ReadBy(("base", "download", "parse", "validate")))
    max_mb: Annotated[Number, Field(gt=0)] = knob(
        "Largest file to download, and largest content to unpack, in megabytes; more stops the run.",
        ReadBy(("download", "parse", "validate"), decides="nothing"),
    )
    sources: dict[str, Source] = knob(
        "Where data comes from, by name; `python -m stages.commands.inspect FILE` writes one. A source has url, sha256"
        " and format; everything else is optional (see docs/params.md).",
        _READING,
    )

    @model_validator(mode="after")
    def _known_source(self) -> "Data":
        for name, source in self.sources.items():
            # DVC finds a source's parameters by its name, in which a dot would part two keys.
            if not _NAME.fullmatch(name):
                raise ValueError(f"data.sources: '{name}' is not a name of a source; use letters, digits, _ and -")
            source._name = name
            if has_credentials(source.url):
                raise ValueError(f"{source.key('url')}: {CREDENTIALS}")
        if self.source not in self.sources:
            raise ValueError(f"data.source: '{self.source}' is not in data.sources{nearest(self.source, self.sources)}")
        url = self.chosen.url
        try:
            urlsplit(url if "://" in url else "")
        except ValueError:
            shown = printable(address(url))
            raise ValueError(
                f"{self.chosen.key('url')}: '{shown}' is not an address; expected a path, http(s)://, or an fsspec"
                " address such as s3://"
            ) from None
        return self

    @property
    def max_bytes(self) -> int:
        """`max_mb` in bytes."""
        return round(self.max_mb * 1_000_000)

    @property
    def chosen(self) -> Source:
        """The source that `data.source` names."""
        return self.sources[self.source]


class Gate(Section):
    on_error: Literal["stop", "quarantine"] = knob(
        "What happens to rows that break a critical rule of data/expectations.yaml: stop lists them and stops the run,"
        " quarantine moves them to data/quarantine.csv and continues with the rest."
    )
    max_quarantined: Annotated[Number, Field(ge=0, le=1)] = knob(
        "Largest share of the rows that may be quarantined; more stops the run."
    )

    @property
    def quarantines(self) -> bool:
        """Whether rows with critical findings are set aside and the rest is used."""
        return self.on_error == "quarantine"


class Split(Section):
    validation: Annotated[Number, Field(gt=0, lt=1)] = knob(
        "Share of the conversations held out to choose the best checkpoint; at least one conversation."
    )
    test: Annotated[Number, Field(gt=0, lt=1)] = knob(
        "Share of the conversations held out to measure the result. A larger one narrows the intervals and lengthens"
        " the evaluation."
    )

    @model_validator(mode="after")
    def _leaves_train(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave nothing to train on: their sum must be below 1")
        return self
