"""A job that is created once: found again by its fingerprint after whatever happened, and followed to its end.

The fingerprint stands in three places: in a state file outside DVC's outs, written before the job is asked for; in the
job's metadata; and in the name of the training file. Any of them leads back to the job, also from another machine.
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

from stages import files
from stages.backends.openai.client import describe, in_words, reached
from stages.command import UserError, notice
from stages.params import Params
from stages.paths import SPLITS

_METADATA_KEY = "fingerprint"
_PURPOSE: Literal["fine-tune"] = "fine-tune"
_ENDED_BADLY = ("failed", "cancelled")
_STATUSES = ("validating_files", "queued", "running", "succeeded", *_ENDED_BADLY)
_LAST_EVENTS = 5
# A list may lag behind what was just created: how often and how long apart it is read before it is believed.
_LOOKS, _LOOK_SECONDS = 4, 2.0
# How long after a job was asked for and the answer was lost, no list that lacks it is believed. No service says how far
# its list may lag; a minute was never seen, and waiting costs nothing, where a second job would be paid.
_SETTLE_SECONDS = 300.0
_UPLOAD_TRIES = 3
_LOCK_SECONDS = 300


@dataclass(frozen=True)
class Order:
    """What is asked of the service: all that decides the result."""

    endpoint: str
    model: str
    method: dict[str, Any]
    seed: int
    suffix: str | None
    attempt: int
    contents: dict[str, str]  # sha256 of each uploaded split

    @classmethod
    def make(cls, endpoint: str, knobs: Params) -> "Order":
        """The order that the parameters and the splits make."""
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
        """64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()

    def file_name(self, split: str) -> str:
        """The name under which a split is uploaded: it names the order and the content."""
        return f"{split}-{self.fingerprint[:16]}-{self.contents[split][:16]}.jsonl"

    @property
    def state(self) -> Path:
        """The state file: which files and job belong to the order."""
        return files.state_dir("openai") / f"{self.fingerprint}.json"

    def saved(self) -> dict[str, Any]:
        """What the state file says: the `job`, or when one was `asked` for whose outcome is not known."""
        return dict(json.loads(self.state.read_text(encoding="utf-8"))) if self.state.exists() else {}


def find_or_create(client: openai.OpenAI, order: Order, before: Callable[[], None]) -> FineTuningJob:
    """The order's job: the one that there is, or else a new one, for which `before` is asked first.

    Raises:
        UserError: the endpoint cannot be asked, refuses, or leaves open whether it created a job.
    """
    with _alone(order), in_words(order.endpoint):
        job = find(client, order) or _await_lost(client, order)
        if job is None:
            before()
            job = _first(client, order, _create(client, order))
        else:
            notice(f"openai: job {job.id} of this very training is {job.status}; nothing is submitted again")
        files.write_json(order.state, {"job": job.id})
    return job


@contextmanager
def _alone(order: Order) -> Iterator[None]:
    """Let one process of this user at a time look for the order's job and create it, in whatever clone it runs."""
    folder = user_state_path("dvc-finetune", ensure_exists=True)
    try:
        with FileLock(folder / f"{order.fingerprint}.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError("another run is creating this very job; wait for it, then run again") from None


def _await_lost(client: openai.OpenAI, order: Order) -> FineTuningJob | None:
    """The job that a former run asked for without learning its outcome, looked for until the lists must have it."""
    asked = order.saved().get("asked")
    if asked is None:
        return None
    # A clock that was set back must not make the wait longer.
    left = min(_SETTLE_SECONDS, asked + _SETTLE_SECONDS - time.time())
    if left > 0:
        notice(
            f"openai: a former run asked for this job and never learned the outcome; looking for it for another"
            f" {left:.0f} s before one is created"
        )
    return find(client, order, looks=max(_LOOKS, math.ceil(left / _LOOK_SECONDS)))


def find(client: openai.OpenAI, order: Order, looks: int = 1) -> FineTuningJob | None:
    """The order's job by state file, metadata or training file: one that succeeded, else one that runs, else any."""
    if saved := order.saved().get("job"):
        try:
            return client.fine_tuning.jobs.retrieve(saved)
        except openai.NotFoundError:
            notice(f"openai: {order.endpoint} knows no job {saved} any more")
    for look in range(looks):
        time.sleep(_LOOK_SECONDS if look else 0)
        if jobs := [*_by_metadata(client, order)] or [*_by_training_file(client, order)]:
            return min(jobs, key=lambda job: (_rank(job), job.created_at, job.id))
    return None


def _rank(job: FineTuningJob) -> int:
    return 0 if job.status == "succeeded" else 2 if job.status in _ENDED_BADLY else 1


def _by_metadata(client: openai.OpenAI, order: Order) -> Iterator[FineTuningJob]:
    wanted = {_METADATA_KEY: order.fingerprint}
    for job in client.fine_tuning.jobs.list(metadata=wanted, limit=100):
        # Not every service filters: what it lists is looked at.
        if (job.metadata or {}).get(_METADATA_KEY) == order.fingerprint:
            yield job


def _by_training_file(client: openai.OpenAI, order: Order) -> Iterator[FineTuningJob]:
    name = order.file_name("train")
    ids = {file.id for file in client.files.list(purpose=_PURPOSE) if file.filename == name}
    if ids:
        yield from (job for job in client.fine_tuning.jobs.list(limit=100) if job.training_file in ids)


def _create(client: openai.OpenAI, order: Order) -> FineTuningJob:
    """Upload the splits and ask for the job, once. Whether it was created after a lost answer, the endpoint tells."""
    uploaded = {split: _upload(client, order, split) for split in order.contents}
    files.write_json(order.state, {"job": None, "asked": time.time(), "files": uploaded})
    try:
        # The SDK would send the request again after a lost answer, and create a second job.
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
            "openai: the job was being asked for, so it may run. Run again to find it, or look for the metadata"
            f" {_METADATA_KEY}={order.fingerprint} in: {_curl(order, '')}"
        )
        raise
    except openai.OpenAIError as error:
        if not reached(error):
            order.state.unlink()
            raise
        return _after_lost_answer(client, order, error)
    notice(f"openai: created job {job.id}")
    return job


def _after_lost_answer(client: openai.OpenAI, order: Order, error: openai.OpenAIError) -> FineTuningJob:
    notice(f"openai: {describe(error, order.endpoint)}. Looking whether the job was created")
    try:
        job = find(client, order, looks=_LOOKS)
    except openai.OpenAIError as second:
        job, error = None, second
    if job is None:
        raise UserError(
            f"outcome unknown: {describe(error, order.endpoint)}, after the job was asked for\n"
            f"the endpoint lists no job with the metadata {_METADATA_KEY}={order.fingerprint} so far\n"
            f"run again: it looks for that job first, and creates one only when there is still none after"
            f" {_SETTLE_SECONDS / 60:g} minutes"
        ) from error
    notice(f"openai: it was, as {job.id}")
    return job


def _first(client: openai.OpenAI, order: Order, job: FineTuningJob) -> FineTuningJob:
    """The oldest job of the order: another machine may have asked for the same at the same moment."""
    others = [one for one in _by_metadata(client, order) if one.status not in _ENDED_BADLY]
    first = min([job, *others], key=lambda one: (one.created_at, one.id))
    if first.id != job.id:
        client.fine_tuning.jobs.cancel(job.id)
        notice(f"openai: job {first.id} of another machine was there before; {job.id} is cancelled")
    return first


def _upload(client: openai.OpenAI, order: Order, split: str) -> str:
    """The id of the uploaded split. A file that is there already is used; a second one would cost nothing but order."""
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
            notice(f"openai: {describe(error, order.endpoint)}. Uploading {split} again")
            time.sleep(_LOOK_SECONDS)
    raise AssertionError("the last try returns or raises")


def follow(client: openai.OpenAI, order: Order, job: FineTuningJob, hours: float, poll_seconds: float) -> FineTuningJob:
    """Wait until the job has succeeded, with its events as lines and its steps as a bar.

    Raises:
        UserError: it failed or was cancelled; the time is over; or the endpoint does not answer any more.
        KeyboardInterrupt: Ctrl-C; the job goes on, and a line says how to come back or to cancel.
    """
    cancel = _curl(order, f"/{job.id}/cancel", "-X POST ")
    come_back = f"job {job.id} goes on; run again to come back to it, or cancel it: {cancel}"
    deadline = time.monotonic() + hours * 3600
    told = _Once()
    try:
        with tqdm(desc="openai", unit="step", disable=None) as bar:
            events = _Events(client, job.id, bar)
            while True:
                try:
                    job = client.fine_tuning.jobs.retrieve(job.id)
                    events.show()
                except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                    told(f"openai: {describe(error, order.endpoint)}. Still waiting for {job.id}")
                if job.status == "succeeded":
                    return job
                if job.status in _ENDED_BADLY:
                    raise UserError(_bad_end(job, events.messages))
                if job.status not in _STATUSES:
                    told(f"openai: {job.id} has the status '{job.status}', which this version does not know; waiting")
                if time.monotonic() > deadline:
                    raise UserError(f"openai.timeout: {hours:g} hours are over; {come_back}")
                time.sleep(poll_seconds)
    except KeyboardInterrupt:
        notice(f"openai: {come_back}")
        raise
    except openai.OpenAIError as error:
        raise UserError(f"{describe(error, order.endpoint)}\n{come_back}") from error


class _Once:
    """Prints each text once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            notice(text)


class _Events:
    """The job's events, each shown once: messages as lines, metrics as the bar's steps."""

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


def _bad_end(job: FineTuningJob, messages: list[str]) -> str:
    error = job.error
    why = f": {error.message} (code {error.code}, parameter {error.param})" if error and error.message else ""
    lines = [f"job {job.id} is {job.status}{why}", *messages[-_LAST_EVENTS:]]
    return "\n".join([*lines, "it is not submitted again by itself; mend the cause, or raise openai.attempt by one"])
