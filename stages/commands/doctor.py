"""doctor: what this machine can do for the pipeline, in ten lines, with the command that fixes what is missing.

    make doctor

Nothing is changed, downloaded or sent; the endpoint is asked whether it answers, without the key. Works before the
packages are there, with the standard library alone, and then says what it does not know yet. Exit status 1 where
something is missing that the chosen parameters need.
"""

# An older Python must be able to say that it is too old.
from __future__ import annotations

import argparse
import importlib.metadata
import math
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.diagnosis import Diagnosis

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
_DEFAULT_MINUTES, _DEFAULT_GFLOPS = 3.8, 405.0
_SMI_SECONDS = 20
_RATE_SECONDS = 1.0
# Longest text of an error that nobody expected, and the findings that a run can do without.
_WHY = 200
_OPTIONAL = ("device", "bf16", "endpoint", "time")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    looks = {**_MACHINE, **_access(), "time": _default_run}
    findings = {name: _look(name, look) for name, look in looks.items()}
    for name, finding in findings.items():
        mark = "ok" if not finding.fix else "!!" if finding.needed else "--"
        print(f"{mark} {name:<9} {finding.text}" + (f"; {finding.fix}" if finding.fix else ""))
    if any(finding.fix and finding.needed for finding in findings.values()):
        sys.exit(1)


def _look(name: str, look: Callable[[], Diagnosis]) -> Diagnosis:
    try:
        return look()
    except Exception as error:
        # An older Python cannot read the modules that this one would import, whatever it says about them.
        if isinstance(error, ModuleNotFoundError) or sys.version_info < _PYTHON:
            return Diagnosis("not known before the packages are installed", _SETUP)
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_WHY]
        return Diagnosis(f"could not be found out ({why})", _AGAIN, needed=name not in _OPTIONAL)


def _python() -> Diagnosis:
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < _PYTHON:
        return Diagnosis(f"{text}; 3.11 or newer is needed", "make setup PYTHON=/path/to/python3.11")
    return Diagnosis(text)


def _packages() -> Diagnosis:
    from packaging.utils import canonicalize_name

    pins = {canonicalize_name(pin.name): pin.specifier for file in _CONSTRAINTS for pin in _pinned(file)}
    wanted = [canonicalize_name(one.name) for name in _requirements() for one in _pinned(name)]
    found = {name: _version(name) for name in wanted}
    wrong = [f"{name} {found[name] or 'missing'}" for name in wanted if not (found[name] and found[name] in pins[name])]
    if not any(found.values()):
        return Diagnosis("not installed yet", _SETUP)
    if wrong:
        return Diagnosis(f"{len(wrong)} of {len(wanted)} not as pinned: {', '.join(wrong[:4])}", _AGAIN)
    return Diagnosis(f"all {len(wanted)} as pinned in {' and '.join(_CONSTRAINTS)}")


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


def _device() -> Diagnosis:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        missing, fix = _for_triton()
        return Diagnosis(f"{torch.cuda.get_device_name()}, {_gib(free)} free of {_gib(total)}{missing}", fix)
    import psutil

    memory = psutil.virtual_memory()
    text = f"no GPU; {torch.get_num_threads()} CPU threads, {_gib(memory.available)} free of {_gib(memory.total)}"
    if shutil.which("nvidia-smi"):
        return _unused_gpu(text)
    if memory.available < _MEMORY_GIB * _GIB:
        return Diagnosis(text, f"close programs: the default run needs {_MEMORY_GIB} GiB", needed=False)
    return Diagnosis(text)


def _unused_gpu(text: str) -> Diagnosis:
    """Why torch sees no GPU though nvidia-smi is installed: Unsloth refuses to start then."""
    import torch

    if torch.version.cuda is None:
        return Diagnosis(f"{text}, though nvidia-smi is there: this torch has no CUDA", "pip install torch")
    shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=False).stdout
    most = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", shown)
    if most and (int(most[1]), int(most[2])) < tuple(map(int, torch.version.cuda.split("."))):
        driver = f"{most[1]}.{most[2]}"
        return Diagnosis(
            f"{text}: the NVIDIA driver is for CUDA {driver} at most, and this torch for {torch.version.cuda}",
            f"update the driver, or install a torch that is built for CUDA {driver}",
        )
    return Diagnosis(
        f"{text}, though nvidia-smi is there, and torch has CUDA {torch.version.cuda}",
        "look at CUDA_VISIBLE_DEVICES and at what nvidia-smi says",
    )


def _for_triton() -> tuple[str, str]:
    """What is missing to compile Unsloth's kernels when they are first used, and what to do; both empty if nothing."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return ", but no C compiler to build its kernels", "install gcc, as by apt install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        package = f"python3.{sys.version_info.minor}-dev"
        return ", but no Python.h to build its kernels", f"install it, as by apt install {package}"
    return "", ""


def _bf16() -> Diagnosis:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Diagnosis("yes, the GPU computes in it" if native else "no, float16 takes its place")
    # Builds of torch for some processors come without mkldnn.
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return Diagnosis("emulated: this processor has no fast path, so training is slow")
    return Diagnosis("yes, the processor computes in it")


def _disk() -> Diagnosis:
    free = shutil.disk_usage(".").free
    text = f"{_gib(free)} free here"
    # What is set up already has taken its part.
    if free < _DISK_GIB * _GIB and not Path(".venv/complete").exists():
        return Diagnosis(text, f"make room: the default run needs {_DISK_GIB} GiB")
    return Diagnosis(text)


def _knobs() -> Params | Diagnosis:
    from stages import params
    from stages.core.cli import UserError

    try:
        return params.load()
    except UserError as error:
        return Diagnosis(str(error).splitlines()[0], "docs/params.md lists what is allowed")


def _model() -> Diagnosis:
    knobs = _knobs()
    if isinstance(knobs, Diagnosis):
        return knobs
    from stages import backends

    return backends.doctor(knobs.backend).model(knobs)


def _data() -> Diagnosis:
    knobs = _knobs()
    if isinstance(knobs, Diagnosis):
        return knobs
    from stages.core.flatten import address
    from stages.core.text import printable

    source, url = knobs.data.source, knobs.data.chosen.url
    if "://" in url:
        return Diagnosis(f"{source}: {printable(address(url))}; the download stage will fetch it")
    if not Path(url).is_file():
        return Diagnosis(f"{source}: {url} is missing", "put it there, or name another with data.source")
    return Diagnosis(f"{source}: {url}, {Path(url).stat().st_size / 1000:,.0f} kB")


def _access() -> dict[str, Callable[[], Diagnosis]]:
    """What each backend needs besides its model; a run can do without what another than the chosen one needs."""
    try:
        from stages import backends

        knobs = _knobs()
    except Exception:
        # Whatever it is, looking at it again says it in a line.
        return {"access": _knobs}  # type: ignore[dict-item]
    if isinstance(knobs, Diagnosis):
        return {"access": lambda: knobs}

    def needed(name: str, look: Callable[[Params], Diagnosis]) -> Diagnosis:
        found = look(knobs)
        return replace(found, needed=found.needed and name == knobs.backend)

    return {
        what: partial(needed, name, look)
        for name in backends.names()
        for what, look in backends.doctor(name).ACCESS.items()
    }


def _default_run() -> Diagnosis:
    import torch

    if torch.cuda.is_available():
        return Diagnosis("not timed on a GPU; without one about 4 minutes")
    minutes = math.ceil(_DEFAULT_MINUTES * _DEFAULT_GFLOPS / gflops())
    unit = "minute" if minutes == 1 else "minutes"
    return Diagnosis(f"about {minutes} {unit} for the default parameters, as busy as this machine is now")


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


_MACHINE = {
    "python": _python,
    "packages": _packages,
    "device": _device,
    "bf16": _bf16,
    "disk": _disk,
    "model": _model,
    "data": _data,
}


if __name__ == "__main__":
    main()
