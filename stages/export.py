"""export: the tuned model for programs outside this project, in the forms that `export.formats` names; else nothing.

`models/export/safetensors` is a whole model for transformers, vLLM and the like, with a card;
`models/export/model.gguf` is for llama.cpp, and `models/export/Modelfile` is for Ollama.
"""

import json
import shutil
from pathlib import Path

from stages import backends, params
from stages.backends import model_card
from stages.core.cli import notice, run
from stages.core.paths import EXPORT, MEASURES, SPLIT_REPORT, TRAIN_METRICS
from stages.metrics.registry import REGISTRY


def main() -> None:
    knobs = params.load()
    shutil.rmtree(EXPORT, ignore_errors=True)
    EXPORT.mkdir(parents=True)
    if not knobs.export.formats:
        notice("export: nothing to do; export.formats is empty")
    elif written := backends.export(knobs).write(knobs, EXPORT, lambda folder: _write_card(folder, knobs)):
        notice(f"export: wrote {', '.join(written)} to {EXPORT}")


def _write_card(folder: Path, knobs: params.Params) -> None:
    splits = _json(SPLIT_REPORT)
    counts = {name: splits[name]["conversations"] for name in ("train", "validation")}
    tuned = _json(MEASURES)["test"]["tuned"]
    results = {name: (REGISTRY[name].label, found["value"]) for name, found in tuned.items()}
    model_card.write(folder, knobs, _json(TRAIN_METRICS), counts, adapter=False, results=results)


def _json(path: Path) -> dict:  # type: ignore[type-arg]
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    run(main)
