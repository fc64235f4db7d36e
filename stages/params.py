"""params.yaml as typed models: unknown keys refused, numbers checked for range, all errors of the file at once.

`python -m stages.params` prints the README's table of parameters, made from params.yaml and these models.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.command import UserError, run
from stages.measures import LABELS

PARAMS = Path("params.yaml")


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Text = Annotated[str, Field(strict=True, min_length=1)]


Auto = Literal["auto"]
Flag = Annotated[bool, Field(strict=True)]


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from None
    return text


Pattern = Annotated[Text, AfterValidator(_regular_expression)]


class Section(BaseModel):
    """A group of keys of which none may be unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Section):
    """Which columns of a table hold what. `system_prompt` is one constant prompt in place of a system column."""

    user: Text
    assistant: Text
    system: Text | None = None
    system_prompt: Text | None = None

    @model_validator(mode="after")
    def _one_system(self) -> "Columns":
        if self.system and self.system_prompt:
            raise ValueError("system and system_prompt exclude each other: keep one")
        return self


class Source(Section):
    """One place that data comes from, and its shape."""

    url: Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    format: Literal["messages", "columns", "sharegpt", "alpaca", "prompt_completion"]
    columns: Columns | None = None
    label: Text | None = None
    container: Literal["csv", "json", "jsonl", "parquet"] | None = None
    encoding: Text | None = None
    delimiter: Annotated[str, Field(strict=True, min_length=1, max_length=1)] | None = None

    @model_validator(mode="after")
    def _columns_for_tables(self) -> "Source":
        if (self.format == "columns") != (self.columns is not None):
            raise ValueError("columns (user, assistant, ...) go with format: columns, and only with it")
        return self


class Data(Section):
    source: Text
    max_mb: Annotated[Number, Field(gt=0)]
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _known_source(self) -> "Data":
        if self.source not in self.sources:
            raise ValueError(f"source: '{self.source}' is not in data.sources{_nearest(self.source, self.sources)}")
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
    on_error: Literal["stop", "quarantine"]
    max_quarantined: Annotated[Number, Field(ge=0, le=1)]

    @property
    def quarantines(self) -> bool:
        """Whether rows with critical findings are set aside and the rest goes on."""
        return self.on_error == "quarantine"


class Split(Section):
    validation: Annotated[Number, Field(gt=0, lt=1)]
    test: Annotated[Number, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_train(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave nothing to train on: their sum must be below 1")
        return self


class Schedule(Section):
    """What single schedulers need besides lr and warm-up."""

    num_cycles: Annotated[Count, Field(le=1000)]
    power: Annotated[Number, Field(gt=0, le=10)]
    decay_ratio: Annotated[Number, Field(gt=0, le=1)]


class Lora(Section):
    r: Annotated[Count, Field(le=1024)]
    alpha: Annotated[Number, Field(gt=0, le=4096)]
    target_modules: Annotated[list[Text], Field(min_length=1)] | Pattern
    bias: Literal["none", "lora_only", "all"]
    use_rslora: Flag
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "pissa", "olora"]
    layers_to_transform: Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)] | None
    loraplus_lr_ratio: Annotated[Number, Field(ge=1, le=1000)]

    @model_validator(mode="after")
    def _possible(self) -> "Lora":
        if isinstance(self.target_modules, str) and self.layers_to_transform:
            raise ValueError("layers_to_transform goes with a list of target_modules: a pattern names layers itself")
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(f"init_lora_weights: orthogonal needs an even r, not {self.r}")
        return self


class Layers(Section):
    """Learning rates that differ between layers: multipliers of lr."""

    lr_decay: Annotated[Number, Field(gt=0, le=1)]
    lr: dict[Pattern, Annotated[Number, Field(ge=0, le=1000)]]


class Adversarial(Section):
    method: Literal["none", "neftune", "fgm", "pgd", "freelb"]
    epsilon: Annotated[Number, Field(gt=0, le=1000)]
    steps: Annotated[Count, Field(le=100)]
    step_size: Annotated[Number, Field(gt=0, le=1000)]


class Checkpoint(Section):
    every: Annotated[Count, Field(le=1_000_000)]


class Unsloth(Section):
    model: Text
    revision: Text | None
    max_length: Annotated[Count, Field(ge=16, le=1_000_000)]
    overlong: Literal["stop", "drop"]


class OpenAI(Section):
    model: Text
    base_url: Text | None
    learning_rate_multiplier: Annotated[Number, Field(gt=0, le=100)] | Auto
    suffix: Annotated[str, Field(strict=True, min_length=1, max_length=64)] | None
    checkpoint: Count | Literal["last", "best"]
    attempt: Count
    max_cost_usd: Annotated[Number, Field(ge=0)] | None
    timeout: Annotated[Number, Field(gt=0)]
    poll_seconds: Annotated[Number, Field(gt=0, le=3600)]


class Evaluate(Section):
    batch_size: Annotated[Count, Field(le=4096)]
    max_new_tokens: Annotated[Count, Field(le=8192)]
    resamples: Annotated[Count, Field(ge=100, le=100_000)]
    confidence: Annotated[Number, Field(ge=0.5, lt=1)]
    epsilon: Annotated[Number, Field(gt=0, le=1000)] | None


class Export(Section):
    formats: list[Literal["safetensors", "gguf", "ollama"]]
    gguf_type: Literal["bf16", "f16", "q8_0"]


class Review(Section):
    regressions: dict[str, Annotated[Number, Field(ge=0)]]

    @model_validator(mode="after")
    def _known_metrics(self) -> "Review":
        for name in self.regressions:
            if name not in LABELS:
                raise ValueError(f"regressions: '{name}' is no metric{_nearest(name, LABELS)}")
        return self


class Params(Section):
    """The whole file."""

    backend: Literal["unsloth", "openai"]
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)]
    lr: Annotated[Number, Field(gt=0, le=1)]
    epochs: Annotated[Number, Field(gt=0, le=1000)] | Auto
    early_stopping_patience: Annotated[Count, Field(le=1000)] | None
    batch_size: Annotated[Count, Field(le=4096)] | Auto
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    attention_dropout: Annotated[Number, Field(ge=0, lt=1)]
    weight_decay: Annotated[Number, Field(ge=0, le=1)]
    scheduler: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay"
    ]
    warmup_ratio: Annotated[Number, Field(ge=0, lt=1)]
    label_smoothing_factor: Annotated[Number, Field(ge=0, lt=1)]
    optim: Literal["adamw_torch", "adamw_8bit", "adafactor", "sgd"]
    max_grad_norm: Annotated[Number, Field(gt=0, le=1000)] | None
    gradient_checkpointing: Flag
    packing: Flag | Auto
    method: Literal["lora", "qlora", "dora", "full"]
    data: Data
    # pydantic has a method of this name, so the section's attribute has another.
    gate: Gate = Field(alias="validate")
    split: Split
    schedule: Schedule
    lora: Lora
    layers: Layers
    adversarial: Adversarial
    checkpoint: Checkpoint
    unsloth: Unsloth
    openai: OpenAI
    evaluate: Evaluate
    export: Export
    review: Review

    @model_validator(mode="after")
    def _numbers_for_the_backend(self) -> "Params":
        for name in ("epochs", "batch_size"):
            if self.backend == "unsloth" and getattr(self, name) == "auto":
                raise ValueError(f"{name}: auto is for backend: openai; give a number")
        if self.backend == "openai" and self.epochs != "auto" and self.epochs % 1:
            raise ValueError(
                f"epochs: {self.epochs} is not allowed with backend: openai; expected a whole number or auto"
            )
        return self

    @model_validator(mode="after")
    def _possible_together(self) -> "Params":
        """Refuse what cannot work whatever the machine and the model; those are asked when training starts."""
        if self.scheduler == "warmup_stable_decay" and self.warmup_ratio + self.schedule.decay_ratio > 1:
            raise ValueError("warmup_ratio + schedule.decay_ratio exceed 1: warm-up and decay do not fit in one run")
        if self.method == "full" and (idle := self._idle_in_full()):
            raise ValueError(f"{', '.join(idle)}: for the adapters of LoRA, and method: full has none; leave it out")
        start = self.lora.init_lora_weights
        if start in ("pissa", "olora") and self.method not in ("lora", "full"):
            raise ValueError(
                f"lora.init_lora_weights: {start} changes the base's weights, which method:"
                f" {self.method} keeps; choose default, gaussian or orthogonal"
            )
        if start in ("pissa", "olora") and self.lora.bias != "none":
            raise ValueError(
                f"lora.bias: {self.lora.bias} is not allowed with lora.init_lora_weights: {start}, whose adapters are"
                " given away without biases; set it to none, or choose another initialisation"
            )
        return self

    def _idle_in_full(self) -> list[str]:
        changed = {
            "dropout": self.dropout > 0,
            "lora.bias": self.lora.bias != "none",
            "lora.use_rslora": self.lora.use_rslora,
            "lora.init_lora_weights": self.lora.init_lora_weights != "default",
            "lora.layers_to_transform": self.lora.layers_to_transform is not None,
            "lora.loraplus_lr_ratio": self.lora.loraplus_lr_ratio != 1,
        }
        return [name for name, is_set in changed.items() if is_set]

    @property
    def numbers(self) -> tuple[float, int]:
        """`epochs` and `batch_size` where neither is auto, as with `backend: unsloth`."""
        assert self.epochs != "auto" and self.batch_size != "auto"
        return self.epochs, self.batch_size

    @property
    def whole_epochs(self) -> int | Auto:
        """`epochs` as a hosted service takes them."""
        return "auto" if self.epochs == "auto" else int(self.epochs)


def load(path: Path = PARAMS) -> Params:
    """Read and check the parameters.

    Raises:
        UserError: the file is missing, not YAML, or wrong; all its faults are listed, one a line.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing here; run from the project's top folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, such as `lr: 0.001`")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # A key that may be of several kinds has a fault for each of them.
        faults = list(dict.fromkeys(_fault(fault) for fault in error.errors()))
        count = f"{len(faults)} error{'s' if len(faults) > 1 else ''}"
        raise UserError("\n".join([f"{path} has {count}; mend it, or the -S that set it", *faults])) from None


def read_yaml(path: Path) -> Any:
    """A YAML file's content, read as params.yaml is: no key twice, `1e-05` is a number.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    return parse_yaml(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """Text in YAML, read as params.yaml is.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that stands twice is refused, and `1e-05` is a number as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# `dvc exp run -S lr=1e-5` writes `1e-05`, which YAML 1.1 takes for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$"), list("+-.0123456789")
)


def _fault(fault: Any) -> str:
    """One line for one of pydantic's errors: key, value, what is allowed."""
    # Where a key may be of several kinds, pydantic adds the kind that it tried.
    place = [str(part) for part in fault["loc"] if not _LIST_TRIED.fullmatch(str(part))]
    if fault["type"] != "extra_forbidden" and place and _KIND_TRIED.fullmatch(place[-1]):
        place.pop()
    key = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(place[-1], _field_names(place[:-1]), prefix=place[:-1])}"
    if fault["type"] == "missing":
        return f"{key}: missing; expected {_allowed(place)}"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}".removeprefix(": ")
    return f"{key}: {fault['input']!r} is not allowed; expected {_allowed(place)}"


def _nearest(name: str, names: Any, prefix: list[str] | None = None) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    # A long word for a short name (rank for r) or the reverse is nobody's close match: list what there is.
    hint = f"did you mean '{'.'.join([*(prefix or []), near[0]])}'?" if near else f"known: {', '.join(sorted(names))}"
    return f"; {hint}"


def _field_names(place: list[str]) -> list[str]:
    return sorted(_schema_at(place).get("properties", {}))


@cache
def _schema() -> dict[str, Any]:
    return Params.model_json_schema()


def _schema_at(place: list[str]) -> dict[str, Any]:
    """The JSON schema of the key at `place`, found by walking down from the top."""
    whole = _schema()
    schema = whole
    for part in place:
        # Of several kinds only a list holds something.
        schema = next((option for option in schema.get("anyOf", []) if "items" in option), schema)
        if "items" in schema:
            schema = schema["items"]
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        else:
            schema = schema.get("additionalProperties") or {}
        options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
        schema = options[0] if len(options) == 1 else schema
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


_LIST_TRIED = re.compile(r"list\[.*\]")
_KIND_TRIED = re.compile(r"constrained-\w+|literal\[.*\]|int|float|str")
_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a section",
}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _allowed(place: list[str]) -> str:
    """What the key at `place` takes, in words: `a number > 0 and <= 1`, `one of stop, drop`."""
    schema = _schema_at(place)
    return " or ".join(_in_words(option) for option in schema.get("anyOf", [schema]))


def _in_words(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema.get("pattern", "").endswith("{64}$"):
        return "64 hexadecimal digits or null"
    bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join(filter(None, [_KINDS.get(schema.get("type", ""), "a value"), " and ".join(bounds)]))


def table(path: Path = PARAMS) -> str:
    """All parameters as a Markdown table: key, shipped value, what is allowed, and params.yaml's own comment."""
    lines = ["| parameter | value | allowed | what it does and what it costs |", "| --- | --- | --- | --- |"]
    lines += [f"| `{key}` | {value} | {_allowed(key.split('.'))} | {text} |" for key, value, text in _documented(path)]
    return "\n".join(lines)


def _documented(path: Path) -> Iterator[tuple[str, str, str]]:
    """Key, value and comment of each knob, in the file's order."""
    section, comment = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( {0,2})#\s?(.*)", line):
            comment.append(match[2])
        elif match := re.match(r"( {0,2})(\w+):\s*(.*)", line):
            if not match[1] and not match[3]:
                section = match[2] + "."
            elif comment:
                key = (section if match[1] else "") + match[2]
                yield key, f"`{match[3]}`" if match[3] else "see the file", " ".join(comment)
            comment = []
        elif not line:
            comment = []


if __name__ == "__main__":
    run(lambda: print(table()))
