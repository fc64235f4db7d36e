"""One package per value of `backend`, all with the same modules (see `protocol`).

Each stage loads only the module that it needs, so that dvc.yaml can list its dependencies.
"""

import importlib
from pathlib import Path
from typing import Any

from stages.backends import protocol
from stages.params import Params


def base(knobs: Params) -> protocol.Base:
    """The selected backend's base model."""
    return _module(knobs.backend, "base")


def reader(knobs: Params) -> protocol.Reader:
    """The selected backend's tokenizer."""
    return _module(knobs.backend, "reader")


def training(knobs: Params) -> protocol.Training:
    """The selected backend's training."""
    return _module(knobs.backend, "training")


def inference(knobs: Params) -> protocol.Inference:
    """The selected backend's inference."""
    return _module(knobs.backend, "inference")


def export(knobs: Params) -> protocol.Export:
    """The selected backend's export."""
    return _module(knobs.backend, "export")


def doctor(name: str) -> protocol.Doctor:
    """The checks of the machine for the backend of this name."""
    return _module(name, "doctor")


def names() -> list[str]:
    """Return all backends in alphabetical order."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py"))


def _module(backend: str, name: str) -> Any:
    return importlib.import_module(f"stages.backends.{backend}.{name}")
