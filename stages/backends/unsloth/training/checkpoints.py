"""Checkpoints of a killed training run: which are complete, and their state."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import files

# Written last: without it, or with files that differ from those listed, a checkpoint is incomplete.
_MANIFEST = "manifest.json"
_STATE = "trainer_state.json"
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the trainer's state."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps taken."""
        return int(self.state["global_step"])

    def callback(self, name: str) -> dict[str, Any]:
        """Saved state of the callback with this class name."""
        return dict(self.state["stateful_callbacks"][name]["attributes"])


def folder_of(parent: Path, step: int) -> Path:
    """The folder of the checkpoint after `step`."""
    return parent / f"{_PREFIX}{step}"


def seal(folder: Path) -> None:
    """Record size and digest of each file; from now on the checkpoint is complete, even after a power cut."""
    for path in _contents(folder):
        files.sync(path)
    files.write_json(folder / _MANIFEST, {path.name: _size_and_digest(path) for path in _contents(folder)})


def recover(parent: Path) -> Checkpoint | None:
    """Return the latest complete checkpoint or None; delete incomplete ones after it."""
    for step in _steps(parent):
        folder = folder_of(parent, step)
        if _complete(folder):
            return Checkpoint(folder, json.loads((folder / _STATE).read_text(encoding="utf-8")))
        shutil.rmtree(folder)
    return None


def drop_after(parent: Path, step: int) -> None:
    """Delete the checkpoints of later steps."""
    for late in _steps(parent):
        if late > step:
            shutil.rmtree(folder_of(parent, late))


def _steps(parent: Path) -> list[int]:
    """Steps that have a checkpoint, latest first."""
    steps = (path.name.removeprefix(_PREFIX) for path in parent.glob(f"{_PREFIX}*"))
    return sorted((int(step) for step in steps if step.isdigit()), reverse=True)


def _complete(folder: Path) -> bool:
    try:
        listed = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(listed == {path.name: _size_and_digest(path) for path in _contents(folder)})
    except (OSError, ValueError):
        return False


def _size_and_digest(path: Path) -> list[Any]:
    return [path.stat().st_size, files.sha256(path)]


def _contents(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != _MANIFEST)
