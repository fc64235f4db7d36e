"""GGUF, the format of llama.cpp, written by llama.cpp's own converter.

The converter supports every architecture and tokenizer that llama.cpp runs, but no wheel includes it. It is extracted
from the source package of llama-cpp-python, which is downloaded once and verified; nothing is compiled.
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from filelock import FileLock

from stages.core import files, pypi
from stages.core.cli import UserError, notice, verbose

NAME = "model.gguf"
_PACKAGE = "llama-cpp-python==0.3.36"
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_SCRIPT = "convert_hf_to_gguf.py"
_EXTRACTED = (_SCRIPT, "conversion/", "gguf-py/gguf/")


def write(model: Path, path: Path, number_format: str) -> None:
    """Convert the model in the folder `model`; `number_format` is bf16, f16 or q8_0.

    Raises:
        UserError: the converter cannot be downloaded, or does not support the model or its tokenizer.
    """
    with files.replacing(path) as temporary:
        _convert(model, "--outfile", str(temporary), "--outtype", number_format)


def check(model: Path) -> None:
    """Let the converter read the model in the folder `model` without writing anything.

    Raises:
        UserError: as for `write`.
    """
    _convert(model, "--dry-run")


def _convert(model: Path, *options: str) -> None:
    command = [sys.executable, str(_converter() / _SCRIPT), str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if verbose():
        print(done.stdout + done.stderr)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"export.formats: llama.cpp's converter cannot write this model as GGUF: {reason}; remove gguf and ollama,"
            " or choose another unsloth.model"
        )


def _converter() -> Path:
    """Return the converter's folder, downloading it the first time."""
    folder = files.state_dir("converter") / _SHA256
    with FileLock(folder.with_name("lock")):
        if not folder.exists():
            notice(f"export: downloading llama.cpp's converter from the source package of {_PACKAGE} (once)")
            with files.scratch(files.state_dir("converter") / "making") as making:
                _extract(pypi.download(_PACKAGE, "source", _SHA256, making), making / "converter")
                (making / "converter").rename(folder)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _, found, name = member.name.partition("/vendor/llama.cpp/")
            if found and member.isfile() and name.startswith(_EXTRACTED):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None, "regular files have content"
                with (folder / name).open("wb") as out:
                    shutil.copyfileobj(content, out)
