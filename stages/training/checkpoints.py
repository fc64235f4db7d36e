"""Checkpoints that a killed training goes on from: which of them are whole, and what they say."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import files

# Written last: a folder without it, or whose files are not those that it lists, was torn.
_MANIFEST = "manifest.json"
_STATE = "trainer_state.json"
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder and the trainer's state in it."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["global_step"])

    def callback(self, name: str) -> dict[str, Any]:
        """What the callback of this class name kept."""
        return dict(self.state["stateful_callbacks"][name]["attributes"])


def folder_of(parent: Path, step: int) -> Path:
    """Where the trainer puts the checkpoint of a step."""
    return parent / f"{_PREFIX}{step}"


def seal(folder: Path) -> None:
    """Write down size and digest of each file of a checkpoint: from now on it is whole, also after a power cut."""
    for path in _contents(folder):
        files.sync(path)
    files.write_json(folder / _MANIFEST, {path.name: _mark(path) for path in _contents(folder)})


def recover(parent: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None; torn ones after it are removed."""
    for step in _steps(parent):
        folder = folder_of(parent, step)
        if _whole(folder):
            return Checkpoint(folder, json.loads((folder / _STATE).read_text(encoding="utf-8")))
        shutil.rmtree(folder)
    return None


def drop_after(parent: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for late in _steps(parent):
        if late > step:
            shutil.rmtree(folder_of(parent, late))


def _steps(parent: Path) -> list[int]:
    """Steps that have a checkpoint, the newest first."""
    steps = (path.name.removeprefix(_PREFIX) for path in parent.glob(f"{_PREFIX}*"))
    return sorted((int(step) for step in steps if step.isdigit()), reverse=True)


def _whole(folder: Path) -> bool:
    try:
        listed = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(listed == {path.name: _mark(path) for path in _contents(folder)})
    except (OSError, ValueError):
        return False


def _mark(path: Path) -> list[Any]:
    return [path.stat().st_size, files.sha256(path)]


def _contents(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != _MANIFEST)
