"""Works off the queue: one thread checks files, and one for each device trains, a job after the other."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import stages
from stages.core import files
from stages.core.cli import notice
from stages.core.paths import BASE
from stages.endpoint.jobs import RESULT, Jobs
from stages.endpoint.store import ENDED

_ROOT = Path(stages.__file__).parents[1]
LOG = "train.log"
# What a job's folder keeps once the job has succeeded.
_KEPT = {BASE.parts[0], RESULT, LOG}


class Training(Protocol):
    """A training process."""

    def lines(self) -> Iterator[str]:
        """Its lines of JSON, until it ends."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self) -> int:
        """Its exit status."""


Launch = Callable[[Path, Mapping[str, str]], Training]


class Process:
    """A training process on this machine; it ends with this one."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stages.endpoint.train"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                # So that its own children end with it, and Ctrl-C reaches the service alone.
                start_new_session=True,
            )

    def lines(self) -> Iterator[str]:
        """Its lines of JSON, until it ends."""
        assert self._process.stdout
        yield from self._process.stdout

    def kill(self) -> None:
        """End it and its children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait()


class Workers:
    """The threads that work off the queue of `jobs`; `devices` has the environment of each device's process."""

    def __init__(self, jobs: Jobs, devices: Sequence[Mapping[str, str]], launch: Launch = Process) -> None:
        self._jobs, self._store, self._launch = jobs, jobs.store, launch
        self._changed = threading.Condition()
        self._stopping = False
        self._running: dict[str, Training] = {}
        works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(self._validate_all, ())]
        works += [(self._train_all, (device,)) for device in devices]
        self._threads = [threading.Thread(target=work, args=given, daemon=True) for work, given in works]

    def start(self) -> None:
        """Take up what an earlier service left, in the order of the queue."""
        for job_id in self._store.with_status("running"):
            self._store.update_job(job_id, ("running",), status="queued")
            self._store.add_event(job_id, "The endpoint was restarted; the job resumes from its last checkpoint")
        for job_id in self._store.with_status(*ENDED):
            self._tidy(job_id)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the training processes; their jobs resume with the next service."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            for training in self._running.values():
                training.kill()
        for thread in self._threads:
            thread.join()

    def wake(self) -> None:
        """Look at the queue again."""
        with self._changed:
            self._changed.notify_all()

    def end(self, job_id: str) -> None:
        """End the process of a job that was cancelled or paused, if it has one; else remove what the job left."""
        with self._changed:
            if training := self._running.get(job_id):
                training.kill()
        if not training:
            self._tidy(job_id)

    def _validate_all(self) -> None:
        for job_id in self._each("validating_files", None):
            self._guarded(job_id, self._jobs.validate)
            if self._store.job(job_id)["status"] == "failed":
                notice(f"serve: {job_id} failed: its files cannot be trained on")
            self._tidy(job_id)
            self.wake()

    def _train_all(self, device: Mapping[str, str]) -> None:
        for job_id in self._each("queued", "running"):
            self._guarded(job_id, lambda job_id: self._train(job_id, device))
            self._tidy(job_id)

    def _each(self, status: str, claimed: str | None) -> Iterator[str]:
        """The first job with this status, again and again, until the service stops; it gets the status `claimed`."""
        while True:
            with self._changed:
                while not self._stopping and not self._store.with_status(status):
                    self._changed.wait()
                if self._stopping:
                    return
                job_id = self._store.with_status(status)[0]
                if claimed and not self._store.update_job(job_id, (status,), status=claimed):
                    continue
            yield job_id

    def _guarded(self, job_id: str, work: Callable[[str], None]) -> None:
        """Do the work; a fault of this program fails the job and not the service."""
        try:
            work(job_id)
        except Exception as error:
            notice(f"serve: {job_id}: unexpected {type(error).__name__}: {error}")
            self._jobs.fail(job_id, "server_error", f"The endpoint failed ({type(error).__name__}).")

    def _train(self, job_id: str, device: Mapping[str, str]) -> None:
        folder = self._store.folder_of(job_id)
        error, status = None, 0
        # A killed service may have left a finished training.
        if not (folder / RESULT).exists():
            with self._changed:
                if self._stopping or self._store.job(job_id)["status"] != "running":
                    return
                self._jobs.start(job_id)
                _share_weights(folder)
                training = self._running[job_id] = self._launch(folder, {**device, "DVC_ROOT": str(folder)})
            notice(f"serve: {job_id} is training")
            try:
                error = self._follow(job_id, training)
            finally:
                training.kill()
                status = training.wait()
                with self._changed:
                    if self._running.get(job_id) is training:
                        del self._running[job_id]
        self._finish(job_id, folder / RESULT, error, status)

    def _follow(self, job_id: str, training: Training) -> str | None:
        """Record what the process says until it ends; return its error."""
        error = None
        for text in training.lines():
            try:
                line = json.loads(text)
            # The last line of a process that was killed.
            except ValueError:
                continue
            error = line.get("error", error)
            if "row" in line:
                self._jobs.log(job_id, line["row"])
        return error

    def _finish(self, job_id: str, result: Path, error: str | None, status: int) -> None:
        if self._stopping or self._store.job(job_id)["status"] != "running":
            return
        if result.exists() and not error:
            self._jobs.succeed(job_id, json.loads(result.read_text(encoding="utf-8")))
            notice(f"serve: {job_id} succeeded")
            return
        reason = error or f"The training process ended with {status}; it may have run out of memory."
        # It may quote what a client sent.
        shown = "".join(letter if letter.isprintable() else " " for letter in reason)
        notice(f"serve: {job_id} failed: {shown}; its log is {result.with_name(LOG)}")
        self._jobs.fail(job_id, "training_failed", reason)

    def _tidy(self, job_id: str) -> None:
        """Remove what an ended job needs no more: all but the model, or all but the log."""
        status, folder = self._store.job(job_id)["status"], self._store.folder_of(job_id)
        kept = _KEPT if status == "succeeded" else {LOG} if status == "failed" else set()
        if status in ENDED and folder.exists():
            for path in folder.iterdir():
                if path.name not in kept:
                    remove(path)
        if status == "cancelled":
            remove(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _share_weights(folder: Path) -> None:
    """Let the job's own state hold its checkpoints; converted weights are those of the pipeline."""
    own = folder / ".state"
    own.mkdir(exist_ok=True)
    for name in ("weights", "unsloth"):
        if not (own / name).is_symlink():
            (own / name).symlink_to(files.state_dir(name), target_is_directory=True)


def devices() -> list[Mapping[str, str]]:
    """The environment that gives a process each device: every visible GPU, or else the CPU."""
    from stages.backends.unsloth.common import device

    if device.kind() != "cuda":
        return [{}]
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
