"""The base models that the service has, by the names under which clients ask for them."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages import backends, params
from stages.core import files
from stages.core.cli import UserError, notice
from stages.core.paths import BASE
from stages.params import Params

# The first part of a tuned model's name ends at a colon.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


@dataclass(frozen=True)
class BaseModel:
    """A base model as `unsloth.model` and `unsloth.revision` name it, prepared in a folder as by the base stage."""

    model: str
    revision: str | None
    folder: Path

    @property
    def prepared(self) -> Path:
        """The folder with its tokenizer and record."""
        return self.folder / BASE

    def said(self) -> str:
        """What it really is, in a few words; of a folder only the name, because clients are shown it."""
        if Path(self.model).is_dir():
            return f"the model in the folder {Path(self.model).name}"
        return f"{self.model}@{self.revision[:12]}" if self.revision else self.model


def recipe() -> Params:
    """params.yaml, read for training on this machine: what a request leaves open comes from here.

    Raises:
        UserError: params.yaml is wrong.
    """
    knobs = params.load()
    if knobs.backend == "unsloth":
        return knobs
    values = knobs.model_dump(mode="json", by_alias=True)
    shipped = {name: params.DEFAULTS[name] for name in ("epochs", "batch_size") if values[name] == "auto"}
    return Params.model_validate(values | {"backend": "unsloth"} | shipped)


def catalog(knobs: Params, mapped: Sequence[str], folder: Path) -> Mapping[str, BaseModel]:
    """The recipe's base under its own name, and those that `NAME=BASE` in `mapped` adds, each prepared in `folder`.

    Raises:
        UserError: a mapping is malformed, or a base cannot be had.
    """
    own = _prepared(knobs, knobs.unsloth.model, knobs.unsloth.revision, folder)
    found = {own_name(own.model): own}
    for text in mapped:
        name, _, base = text.partition("=")
        if not _NAME.fullmatch(name) or not base:
            raise UserError(
                f"--model: '{text}' is not allowed; expected NAME=BASE, such as"
                f" gpt-3.5-turbo-0125={knobs.unsloth.model}"
            )
        model, _, revision = base.partition("@")
        model = str(Path(model).absolute()) if Path(model).is_dir() else model
        same = model == own.model and not revision
        found[name] = own if same else _prepared(knobs, model, revision or None, folder)
        notice(f"serve: {name} is {found[name].said()}")
    return found


def own_name(model: str) -> str:
    """A name for a base: the wheel's package, the Hub's OWNER/NAME, or the folder's name."""
    name = model.removeprefix("pypi:").partition("==")[0]
    name = Path(name).name if Path(name).is_dir() else name
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", name).strip("-./") or "base"


def _prepared(knobs: Params, model: str, revision: str | None, folder: Path) -> BaseModel:
    """Prepare a base as the base stage does, in a folder of its own."""
    model = str(Path(model).absolute()) if Path(model).is_dir() else model
    chosen = knobs.unsloth.model_copy(update={"model": model, "revision": revision})
    identity = json.dumps([model, revision, chosen.enable_thinking])
    home = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
    (home / BASE).mkdir(parents=True, exist_ok=True)
    # The backend's places are relative to the current folder. Nothing else runs yet.
    with contextlib.chdir(home):
        backends.base(knobs).prepare(knobs.model_copy(update={"unsloth": chosen}))
    return BaseModel(model, revision, home)


def use_root(root: Path) -> None:
    """Keep converted weights with those of the pipeline in `root`, whatever folder is the current one."""
    os.environ["DVC_ROOT"] = str(root)
    for name in ("weights", "unsloth"):
        files.state_dir(name)
