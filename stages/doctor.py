"""doctor: what this machine can do for the pipeline, in ten lines, and for what is missing the command that mends it.

    make doctor

Nothing is changed, downloaded or sent; the endpoint is asked whether it answers, without the key. Works before the
packages are there, with the standard library alone, and says then what it cannot tell yet. Exit status 1 where
something is missing that the chosen parameters need.
"""

# An older Python must come as far as to be told so.
from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from stages.params import Params

_PYTHON = (3, 11)
_SETUP = "make setup"
_CONSTRAINTS = ("constraints.txt", "constraints-dev.txt")
_AGAIN = f"rm -r .venv; {_SETUP}"
_GIB = 1 << 30
# The default run: its packages, the base as wheel and as safetensors, DVC's cache; and the peak of its training.
_DISK_GIB, _MEMORY_GIB = 5, 5
# Measured with the shipped parameters on 2 cores of an AMD EPYC without a GPU, see docs/log.md.
_DEFAULT_MINUTES, _DEFAULT_GFLOPS = 6.0, 405.0
_RATE_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
# Longest text of an error that nobody expected, and the findings that a run can do without.
_WHY = 200
_OPTIONAL = ("device", "bf16", "endpoint", "time")


@dataclass(frozen=True)
class Finding:
    """What was found; `mend` is the command that helps, and empty where all is well.

    `needed` tells whether a run with the chosen parameters cannot do without it.
    """

    text: str
    mend: str = ""
    needed: bool = True


def main() -> None:
    findings = {name: _look(name, look) for name, look in _LOOKS.items()}
    for name, finding in findings.items():
        mark = "ok" if not finding.mend else "!!" if finding.needed else "--"
        print(f"{mark} {name:<9} {finding.text}" + (f"; {finding.mend}" if finding.mend else ""))
    if any(finding.mend and finding.needed for finding in findings.values()):
        sys.exit(1)


def _look(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:
        # An older Python cannot read the modules that this one would import, whatever it says about them.
        if isinstance(error, ModuleNotFoundError) or sys.version_info < _PYTHON:
            return Finding("not known before the packages are there", _SETUP)
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_WHY]
        return Finding(f"could not be told ({why})", _AGAIN, needed=name not in _OPTIONAL)


def _python() -> Finding:
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < _PYTHON:
        return Finding(f"{text}; 3.11 or newer is needed", "make setup PYTHON=/path/to/python3.11")
    return Finding(text)


def _packages() -> Finding:
    from packaging.utils import canonicalize_name

    pins = {canonicalize_name(pin.name): pin.specifier for file in _CONSTRAINTS for pin in _pinned(file)}
    wanted = [canonicalize_name(one.name) for name in _requirements() for one in _pinned(name)]
    found = {name: _version(name) for name in wanted}
    wrong = [f"{name} {found[name] or 'missing'}" for name in wanted if not (found[name] and found[name] in pins[name])]
    if not any(found.values()):
        return Finding("not there yet", _SETUP)
    if wrong:
        return Finding(f"{len(wrong)} of {len(wanted)} not as pinned: {', '.join(wrong[:4])}", _AGAIN)
    return Finding(f"all {len(wanted)} as pinned in {' and '.join(_CONSTRAINTS)}")


def _requirements() -> list[str]:
    # Those for CUDA are added where make finds nvidia-smi.
    cuda = [] if shutil.which("nvidia-smi") is None else ["requirements-cuda.txt"]
    return ["requirements.txt", "requirements-dev.txt", "requirements-unsloth.txt", *cuda]


def _pinned(file: str) -> list[Requirement]:
    """The requirements of a file that concern this Python and system."""
    from packaging.requirements import Requirement

    lines = (line.split("#")[0].strip() for line in Path(file).read_text(encoding="utf-8").splitlines())
    requirements = [Requirement(line) for line in lines if line]
    return [one for one in requirements if one.marker is None or one.marker.evaluate()]


def _version(name: str) -> str:
    try:
        # Builds for one kind of device carry its name: 2.13.0+cpu.
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(f"{torch.cuda.get_device_name()}, {_gib(free)} free of {_gib(total)}")
    import psutil

    memory = psutil.virtual_memory()
    text = f"no GPU; {torch.get_num_threads()} CPU threads, {_gib(memory.available)} free of {_gib(memory.total)}"
    if shutil.which("nvidia-smi"):
        return Finding(f"{text}, though nvidia-smi is there: this torch has no CUDA", "pip install torch", needed=False)
    if memory.available < _MEMORY_GIB * _GIB:
        return Finding(text, f"close programs: the default run needs {_MEMORY_GIB} GiB", needed=False)
    return Finding(text)


def _bf16() -> Finding:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Finding("yes, the GPU computes in it" if native else "no, float16 takes its place")
    # Builds of torch for some processors come without mkldnn.
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return Finding("emulated: this processor has no fast path, so training is slow")
    return Finding("yes, the processor computes in it")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    text = f"{_gib(free)} free here"
    # What is set up already has taken its part.
    if free < _DISK_GIB * _GIB and not Path(".venv/complete").exists():
        return Finding(text, f"make room: the default run needs {_DISK_GIB} GiB")
    return Finding(text)


def _knobs() -> Params | Finding:
    from stages import params
    from stages.command import UserError

    try:
        return params.load()
    except UserError as error:
        return Finding(str(error).splitlines()[0], "python -m stages.params lists what is allowed")


def _model() -> Finding:
    knobs = _knobs()
    if isinstance(knobs, Finding):
        return knobs
    if knobs.backend == "openai":
        return _hosted_model(knobs.openai.model)
    from stages.backends.unsloth import weights
    from stages.command import UserError

    model = knobs.unsloth.model
    try:
        folder = weights.at_hand(model, knobs.unsloth.revision)
    except UserError as error:
        return Finding(str(error), "mend unsloth.model and unsloth.revision in params.yaml")
    return Finding(f"{model}, {f'in {os.path.relpath(folder)}' if folder else 'which the base stage will fetch'}")


def _hosted_model(name: str) -> Finding:
    import datetime

    from stages.backends.openai import prices

    end = prices.shut_down(name)
    if end and end <= datetime.date.today():
        return Finding(f"{name}, which OpenAI shut down on {end}", "see docs/hosted-models.md", needed=False)
    return Finding(f"{name}, hosted" + (f"; OpenAI ends it on {end}" if end else ""))


def _data() -> Finding:
    knobs = _knobs()
    if isinstance(knobs, Finding):
        return knobs
    from stages.download import shown

    source, url = knobs.data.source, knobs.data.chosen.url
    if "://" in url:
        return Finding(f"{source}: {shown(url)}; the download stage will fetch it")
    if not Path(url).is_file():
        return Finding(f"{source}: {url} is missing", "put it there, or name another with data.source")
    return Finding(f"{source}: {url}, {Path(url).stat().st_size / 1000:,.0f} kB")


def _key() -> Finding:
    if os.environ.get("OPENAI_API_KEY", "").strip():
        return Finding("OPENAI_API_KEY is set")
    return Finding("OPENAI_API_KEY is not set", "export OPENAI_API_KEY=... for backend: openai", needed=_hosted())


def _endpoint() -> Finding:
    knobs = _knobs()
    if isinstance(knobs, Finding):
        return knobs
    import httpx

    from stages.backends.openai.client import endpoint
    from stages.command import UserError

    try:
        url = endpoint(knobs)
        status = httpx.get(f"{url}/models", timeout=_ANSWER_SECONDS).status_code
    except UserError as error:
        return Finding(str(error), "mend openai.base_url or OPENAI_BASE_URL", needed=_hosted())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"{url} does not answer ({error})"
        return Finding(why, "check network and address for backend: openai", needed=_hosted())
    return Finding(f"{url} answers (HTTP {status} without a key)")


def _hosted() -> bool:
    knobs = _knobs()
    return not isinstance(knobs, Finding) and knobs.backend == "openai"


def _default_run() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("not timed on a GPU; without one about 6 minutes")
    minutes = math.ceil(_DEFAULT_MINUTES * _DEFAULT_GFLOPS / gflops())
    unit = "minute" if minutes == 1 else "minutes"
    return Finding(f"about {minutes} {unit} for the default parameters, as busy as this machine is now")


def gflops(seconds: float = _RATE_SECONDS) -> float:
    """How fast this machine multiplies matrices of the default model's size in bf16, in 1e9 operations a second."""
    import torch

    tokens, width, inner = 1024, 576, 1536
    left, right = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((tokens, width), (width, inner)))
    left @ right
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        left @ right
        count += 1
    return 2e-9 * tokens * width * inner * count / spent


def _gib(number: float) -> str:
    return f"{number / _GIB:.1f} GiB"


_LOOKS = {
    "python": _python,
    "packages": _packages,
    "device": _device,
    "bf16": _bf16,
    "disk": _disk,
    "model": _model,
    "data": _data,
    "key": _key,
    "endpoint": _endpoint,
    "time": _default_run,
}


if __name__ == "__main__":
    main()
