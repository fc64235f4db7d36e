"""export: the tuned model for programs outside this project, in the forms that `export.formats` names; else nothing.

`models/export/safetensors` is a whole model for transformers, vLLM and the like, with a card;
`models/export/model.gguf` is for llama.cpp, and `models/export/Modelfile` tells Ollama how to use it.
"""

import json
import shutil
import tempfile
from pathlib import Path

from stages import files, params
from stages.command import notice, run
from stages.paths import EXPORT, METRICS, SPLIT_REPORT, TRAIN_METRICS


def main() -> None:
    knobs = params.load()
    shutil.rmtree(EXPORT, ignore_errors=True)
    EXPORT.mkdir(parents=True)
    formats = knobs.export.formats
    if not formats:
        notice("export: nothing is asked for; name formats with export.formats")
    elif knobs.backend == "openai":
        notice("export: a hosted model stays with its service, so there is nothing to write")
    else:
        _export(knobs)
        notice(f"export: wrote {', '.join(formats)} to {EXPORT}")


def _export(knobs: params.Params) -> None:
    from stages.exporting import gguf, merged, ollama

    formats = knobs.export.formats
    with tempfile.TemporaryDirectory(dir=files.state_dir("export")) as scratch:
        # The other formats are made from the whole model, which is only kept where it is asked for.
        whole = EXPORT / "safetensors" if "safetensors" in formats else Path(scratch)
        merged.write(whole, knobs, _json(TRAIN_METRICS), _json(SPLIT_REPORT), _json(METRICS)["test"]["tuned"])
        if "gguf" in formats or "ollama" in formats:
            gguf.write(whole, EXPORT / gguf.NAME, knobs.export.gguf_type)
        if "ollama" in formats:
            ollama.write(whole, EXPORT / "Modelfile", gguf.NAME)


def _json(path: Path) -> dict:  # type: ignore[type-arg]
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    run(main)
