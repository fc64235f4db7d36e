"""Creates a job exactly once, finds it again by its fingerprint, and follows it until it ends.

The fingerprint is stored in a state file outside DVC's outs, written before the job is requested; in the job's
metadata; and in the name of the training file. Each of them leads back to the job, the last two from any machine.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai
from filelock import FileLock, Timeout
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from platformdirs import user_state_path
from tqdm import tqdm

from stages.backends.openai.base.client import describe, may_have_run, readable_errors
from stages.core import files
from stages.core.cli import UserError, notice
from stages.core.paths import SPLITS
from stages.params import Params

_METADATA_KEY = "fingerprint"
_PURPOSE: Literal["fine-tune"] = "fine-tune"
_UNSUCCESSFUL = ("failed", "cancelled")
_STATUSES = ("validating_files", "queued", "running", "succeeded", *_UNSUCCESSFUL)
_LAST_EVENTS = 5
# A list may lag behind a creation: how often to read it, and the pause in between, before concluding that it has none.
_LOOKS, _LOOK_SECONDS = 4, 2.0
# How long to keep looking for a job whose creation got no response. Services do not document how far lists lag; even a
# minute was never observed, but waiting is free and a second job is not.
_SETTLE_SECONDS = 300.0
_UPLOAD_TRIES = 3
_LOCK_SECONDS = 300


@dataclass(frozen=True)
class Order:
    """A request to the service: everything that determines the result."""

    endpoint: str
    model: str
    method: dict[str, Any]
    seed: int
    suffix: str | None
    attempt: int
    contents: dict[str, str]  # sha256 of each uploaded split

    @classmethod
    def make(cls, endpoint: str, knobs: Params) -> "Order":
        """Build the order from the parameters and the splits."""
        hyperparameters = {
            "n_epochs": knobs.whole_epochs,
            "batch_size": knobs.batch_size,
            "learning_rate_multiplier": knobs.openai.learning_rate_multiplier,
        }
        return cls(
            endpoint,
            knobs.openai.model,
            {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            knobs.seed,
            knobs.openai.suffix,
            knobs.openai.attempt,
            {split: files.sha256(SPLITS[split]) for split in ("train", "validation")},
        )

    @property
    def fingerprint(self) -> str:
        """Identifies the order; 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()

    def file_name(self, split: str) -> str:
        """The name under which a split is uploaded; identifies order and content."""
        return f"{split}-{self.fingerprint[:16]}-{self.contents[split][:16]}.jsonl"

    @property
    def state(self) -> Path:
        """The state file, which records the order's files and job."""
        return files.state_dir("openai") / f"{self.fingerprint}.json"

    def saved(self) -> dict[str, Any]:
        """Contents of the state file: the `job`, or the time when one was `asked` for whose outcome is unknown."""
        return dict(json.loads(self.state.read_text(encoding="utf-8"))) if self.state.exists() else {}


def find_or_create(client: openai.OpenAI, order: Order, before: Callable[[], None]) -> FineTuningJob:
    """Return the order's existing job, or create one after calling `before`.

    Raises:
        UserError: the endpoint is unreachable, rejects the request, or leaves unknown whether it created the job.
    """
    with _locked(order), readable_errors(order.endpoint):
        job = find(client, order) or _await_lost(client, order)
        if job is None:
            before()
            job = _first(client, order, _create(client, order))
        else:
            notice(f"openai: using job {job.id} of the same training ({job.status}); no new job is created")
        files.write_json(order.state, {"job": job.id})
    return job


@contextmanager
def _locked(order: Order) -> Iterator[None]:
    """Allow only one process of this user, across clones, to look for the order's job and create it."""
    folder = user_state_path("dvc-finetune", ensure_exists=True)
    try:
        with FileLock(folder / f"{order.fingerprint}.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError("another run is creating the same job; wait for it, then run again") from None


def _await_lost(client: openai.OpenAI, order: Order) -> FineTuningJob | None:
    """Look for a job that an earlier run requested without learning the outcome, until it must be listed."""
    asked = order.saved().get("asked")
    if asked is None:
        return None
    # A clock that was set back must not make the wait longer.
    left = min(_SETTLE_SECONDS, asked + _SETTLE_SECONDS - time.time())
    if left > 0:
        notice(
            f"openai: an earlier run requested this job and got no response; looking for it for another {left:.0f} s"
            " before creating one"
        )
    return find(client, order, looks=max(_LOOKS, math.ceil(left / _LOOK_SECONDS)))


def find(client: openai.OpenAI, order: Order, looks: int = 1) -> FineTuningJob | None:
    """Find the order's job by state file, metadata or training file; prefer succeeded jobs, then running ones."""
    if saved := order.saved().get("job"):
        try:
            return client.fine_tuning.jobs.retrieve(saved)
        except openai.NotFoundError:
            notice(f"openai: job {saved} no longer exists at {order.endpoint}")
    for look in range(looks):
        time.sleep(_LOOK_SECONDS if look else 0)
        if jobs := [*_by_metadata(client, order)] or [*_by_training_file(client, order)]:
            return min(jobs, key=lambda job: (_rank(job), job.created_at, job.id))
    return None


def _rank(job: FineTuningJob) -> int:
    return 0 if job.status == "succeeded" else 2 if job.status in _UNSUCCESSFUL else 1


def _by_metadata(client: openai.OpenAI, order: Order) -> Iterator[FineTuningJob]:
    wanted = {_METADATA_KEY: order.fingerprint}
    for job in client.fine_tuning.jobs.list(metadata=wanted, limit=100):
        # Some services ignore the filter, so check.
        if (job.metadata or {}).get(_METADATA_KEY) == order.fingerprint:
            yield job


def _by_training_file(client: openai.OpenAI, order: Order) -> Iterator[FineTuningJob]:
    name = order.file_name("train")
    ids = {file.id for file in client.files.list(purpose=_PURPOSE) if file.filename == name}
    if ids:
        yield from (job for job in client.fine_tuning.jobs.list(limit=100) if job.training_file in ids)


def _create(client: openai.OpenAI, order: Order) -> FineTuningJob:
    """Upload the splits and request the job once. If the response is lost, look for the job at the endpoint."""
    uploaded = {split: _upload(client, order, split) for split in order.contents}
    files.write_json(order.state, {"job": None, "asked": time.time(), "files": uploaded})
    try:
        # Otherwise the SDK would repeat the request if the response was lost, and create a second job.
        job = client.with_options(max_retries=0).fine_tuning.jobs.create(
            model=order.model,
            training_file=uploaded["train"],
            validation_file=uploaded["validation"],
            method=order.method,  # type: ignore[arg-type]
            seed=order.seed,
            suffix=order.suffix or openai.omit,
            metadata={_METADATA_KEY: order.fingerprint},
        )
    except KeyboardInterrupt:
        notice(
            "openai: interrupted while creating the job, so it may be running. Run again to find it, or look for the"
            f" metadata {_METADATA_KEY}={order.fingerprint} in: {_curl(order, '')}"
        )
        raise
    except openai.OpenAIError as error:
        if not may_have_run(error):
            order.state.unlink()
            raise
        return _after_lost_response(client, order, error)
    notice(f"openai: created job {job.id}")
    return job


def _after_lost_response(client: openai.OpenAI, order: Order, error: openai.OpenAIError) -> FineTuningJob:
    notice(f"openai: {describe(error, order.endpoint)}. Checking whether the job was created")
    try:
        job = find(client, order, looks=_LOOKS)
    except openai.OpenAIError as second:
        job, error = None, second
    if job is None:
        raise UserError(
            f"outcome unknown: {describe(error, order.endpoint)}, after the job was requested\n"
            f"the endpoint does not list a job with the metadata {_METADATA_KEY}={order.fingerprint} yet\n"
            f"run again to look for that job; a new one is created only if there is none after"
            f" {_SETTLE_SECONDS / 60:g} minutes"
        ) from error
    notice(f"openai: found the job, {job.id}")
    return job


def _first(client: openai.OpenAI, order: Order, job: FineTuningJob) -> FineTuningJob:
    """The order's oldest job; if another machine created one at the same time, cancel the later one."""
    others = [one for one in _by_metadata(client, order) if one.status not in _UNSUCCESSFUL]
    first = min([job, *others], key=lambda one: (one.created_at, one.id))
    if first.id != job.id:
        client.fine_tuning.jobs.cancel(job.id)
        notice(f"openai: another machine created job {first.id} first; cancelled {job.id}")
    return first


def _upload(client: openai.OpenAI, order: Order, split: str) -> str:
    """Upload a split and return its id, reusing an earlier upload of the same content."""
    name = order.file_name(split)
    for tries_left in reversed(range(_UPLOAD_TRIES)):
        for file in client.files.list(purpose=_PURPOSE):
            if file.filename == name and file.bytes == SPLITS[split].stat().st_size and file.status != "error":
                return file.id
        try:
            with SPLITS[split].open("rb") as content:
                upload = client.with_options(max_retries=0).files.create(file=(name, content), purpose=_PURPOSE)
                return upload.id
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            if not tries_left:
                raise
            notice(f"openai: {describe(error, order.endpoint)}. Retrying the upload of {split}")
            time.sleep(_LOOK_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def follow(client: openai.OpenAI, order: Order, job: FineTuningJob, hours: float, poll_seconds: float) -> FineTuningJob:
    """Wait until the job has succeeded; print its events and show a progress bar.

    Raises:
        UserError: the job failed or was cancelled, the timeout expired, or the endpoint rejects requests.
        KeyboardInterrupt: on Ctrl-C, after printing how to reconnect to the job or cancel it.
    """
    cancel = _curl(order, f"/{job.id}/cancel", "-X POST ")
    still_running = f"job {job.id} is still running; run again to reconnect, or cancel it: {cancel}"
    deadline = time.monotonic() + hours * 3600
    notice_once = _NoticeOnce()
    try:
        with tqdm(desc="openai", unit="step", disable=None) as bar:
            events = _Events(client, job.id, bar)
            while True:
                try:
                    job = client.fine_tuning.jobs.retrieve(job.id)
                    events.show()
                except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                    notice_once(f"openai: {describe(error, order.endpoint)}. Still waiting for {job.id}")
                if job.status == "succeeded":
                    return job
                if job.status in _UNSUCCESSFUL:
                    raise UserError(_failure(job, events.messages))
                if job.status not in _STATUSES:
                    notice_once(f"openai: {job.id} has the unknown status '{job.status}'; still waiting")
                if time.monotonic() > deadline:
                    raise UserError(f"openai.timeout: {hours:g} hours exceeded; {still_running}")
                time.sleep(poll_seconds)
    except KeyboardInterrupt:
        notice(f"openai: {still_running}")
        raise
    except openai.OpenAIError as error:
        raise UserError(f"{describe(error, order.endpoint)}\n{still_running}") from error


class _NoticeOnce:
    """Prints each distinct text once."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            notice(text)


class _Events:
    """Shows each of the job's events once: messages as lines, metrics as progress."""

    def __init__(self, client: openai.OpenAI, job: str, bar: Any) -> None:
        self._client, self._job, self._bar = client, job, bar
        self._seen: set[str] = set()
        self.messages: list[str] = []

    def show(self) -> None:
        new = list(_until(self._client.fine_tuning.jobs.list_events(self._job, limit=100), self._is_old))
        for event in reversed(new):
            self._seen.add(event.id)
            if event.type == "metrics" and isinstance(event.data, dict):
                self._bar.total = event.data.get("total_steps")
                self._bar.update(event.data.get("step", 0) - self._bar.n)
            else:
                self.messages.append(event.message)
                tqdm.write(f"openai: {event.message}")

    def _is_old(self, event: FineTuningJobEvent) -> bool:
        return event.id in self._seen


def _until(events: Any, is_old: Callable[[FineTuningJobEvent], bool]) -> Iterator[FineTuningJobEvent]:
    for event in events:
        if is_old(event):
            return
        yield event


def _curl(order: Order, path: str, method: str = "") -> str:
    return f'curl {method}{order.endpoint}/fine_tuning/jobs{path} -H "Authorization: Bearer $OPENAI_API_KEY"'


def _failure(job: FineTuningJob, messages: list[str]) -> str:
    error = job.error
    why = f": {error.message} (code {error.code}, parameter {error.param})" if error and error.message else ""
    lines = [f"job {job.id} is {job.status}{why}", *messages[-_LAST_EVENTS:]]
    return "\n".join([*lines, "it is not resubmitted; fix the cause, or increase openai.attempt by one"])
