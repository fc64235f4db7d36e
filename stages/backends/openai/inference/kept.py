"""Answers of hosted models, each paid once: kept beside DVC's outs as they arrive, and in an out for colleagues.

A service may shut a model down. Whoever has `reports/eval/answers.jsonl`, from this machine or by `dvc pull`, repeats
the evaluation without it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec

from stages.core import files, revisions
from stages.core.cli import UserError, notice
from stages.core.paths import ANSWERS

Answer = dict[str, Any]
# Longest line that is read back, in bytes: a thousand times the longest answer.
_LONGEST_LINE = 50_000_000


class _Answer(msgspec.Struct, omit_defaults=True):
    text: str
    cut: bool
    prompt: Annotated[int, msgspec.Meta(ge=0)] | None = None
    answer: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Line(msgspec.Struct):
    """A line of either file; the out also has the endpoint and the model, for people."""

    request: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    answer: _Answer


class _KeptLine(_Line):
    endpoint: str
    model: str


class AnswerCache:
    """Answers by request, in a file to which each is appended at once, so that a killed run pays for none twice."""

    def __init__(self, endpoint: str, model: str) -> None:
        self._endpoint, self._model = endpoint, model
        name = hashlib.sha256(f"{endpoint} {model}".encode()).hexdigest()[:32]
        self._path: Path = files.state_dir("openai", "answers") / f"{name}.jsonl"
        self._lock = threading.Lock()
        text = self._path.read_bytes() if self._path.exists() else b""
        # A line may be truncated by a killed run.
        self._answers = {line.request: msgspec.to_builtins(line.answer) for line in _lines(text, _Line)}

    def get(self, request: dict[str, Any]) -> Answer | None:
        """Return the answer to an identical request, given here or in a run whose out is in DVC's cache."""
        name = key(request)
        return self._answers.get(name) or self._colleagues.get(name)

    @cached_property
    def _colleagues(self) -> dict[str, Answer]:
        """Answers of the same model in the kept out."""
        found = {
            line.request: msgspec.to_builtins(line.answer)
            for line in kept()
            if (line.endpoint, line.model) == (self._endpoint, self._model)
        }
        if found:
            notice(f"openai: {ANSWERS} of an earlier run has {len(found)} answers of {self._model}")
        return found

    def add(self, request: dict[str, Any], answer: Answer) -> Answer:
        """Store an answer and return it."""
        line = json.dumps({"request": key(request), "answer": answer})
        with self._lock, self._path.open("a", encoding="utf-8") as out:
            # The newline comes first, to end a line truncated by a killed run.
            out.write(f"\n{line}")
        return answer


def key(request: dict[str, Any]) -> str:
    """Identifies a request; 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def kept() -> list[_KeptLine]:
    """The lines of the out, as the last run in this workspace and the last commit made it; none where it is not here.

    DVC deletes the file itself before the stage runs, but keeps it in its cache.
    """
    found: list[_KeptLine] = []
    for checksum in dict.fromkeys(filter(None, map(_checksum, (revisions.WORKSPACE, revisions.HEAD)))):
        if path := revisions.cached(checksum):
            found += _lines(path.read_bytes(), _KeptLine)
    return found


def _checksum(revision: revisions.Revision) -> str | None:
    try:
        return revision.checksums().get(ANSWERS.as_posix())
    except UserError:
        # A damaged dvc.lock is reported by who needs it.
        return None


def _lines(content: bytes, kind: type[Any]) -> Iterator[Any]:
    for line in content.split(b"\n"):
        if line.strip() and len(line) <= _LONGEST_LINE:
            try:
                yield msgspec.json.decode(line, type=kind)
            except msgspec.MsgspecError:
                continue
