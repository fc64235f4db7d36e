"""The tuned model for other programs: merged in 16 bit, as GGUF, and with a Modelfile for Ollama."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.core import files
from stages.params import Params


def write(knobs: Params, folder: Path, write_card: Callable[[Path], Any]) -> list[str]:
    """Write the tuned model to `folder` in each of `export.formats`; return the formats written.

    `write_card` writes the model card into a merged model's folder.

    Raises:
        UserError: the model cannot be written in one of the formats.
    """
    from stages.backends.unsloth.export import gguf, merged, ollama

    formats = knobs.export.formats
    state = files.state_dir("export")
    with FileLock(state / "lock"), files.scratch(state / "merged") as scratch:
        # The other formats are made from the merged model, which is only kept if requested.
        merged_folder = folder / "safetensors" if "safetensors" in formats else scratch
        merged.write(merged_folder)
        write_card(merged_folder)
        if "gguf" in formats or "ollama" in formats:
            gguf.write(merged_folder, folder / gguf.NAME, knobs.export.gguf_type)
        if "ollama" in formats:
            ollama.write(merged_folder, folder / "Modelfile", gguf.NAME)
    return list(formats)
