"""Creates a job exactly once, and finds it again by its fingerprint.

The fingerprint is stored in a state file outside DVC's outs, written before the job is requested; in the job's
metadata; in the name of the training file; and in the report of the run, which is committed. Each of them leads back to
the job, all but the first from any machine.
"""

import json
import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
from filelock import FileLock, Timeout
from openai.types.fine_tuning import FineTuningJob
from platformdirs import user_state_path

from stages.backends.openai.base.client import below, describe, may_have_run, message, readable_errors
from stages.backends.openai.base.replies import Optional, field, number
from stages.backends.openai.training import guarantee, status, uploads
from stages.backends.openai.training.order import FINGERPRINT, Order
from stages.core import files
from stages.core.cli import UserError, notice
from stages.core.paths import RUN

# A list may lag behind a creation: how often to read it, and the pause in between, before concluding that it has none.
_LOOKS, _LOOK_SECONDS = 4, 2.0
# How long to keep looking for a job whose creation got no response, and for an earlier one of another machine. Services
# do not document how far lists lag; even a minute was never observed, but waiting is free and a second job is not.
SETTLE_SECONDS = 300.0
_LOCK_SECONDS = 300
_JOB_ID = re.compile(r"[\w.:-]{1,200}")


def find_or_create(
    client: openai.OpenAI, order: Order, before: Callable[[], None], offers: Optional | None = None
) -> FineTuningJob:
    """Return the order's existing job, or create one after calling `before`.

    Raises:
        UserError: the endpoint is unreachable, rejects the request, or leaves unknown whether it created the job.
    """
    offers = offers or Optional()
    with _locked(order), readable_errors(order.endpoint):
        job = find(client, order, offers) or _await_lost(client, order, offers)
        if job is None:
            before()
            job = _create(client, order, offers)
            save(order, job.id)
            job = first(client, order, job, offers)
        else:
            notice(f"openai: using job {job.id} of the same training ({status.of(job)}); no new job is created")
        save(order, job.id)
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


def _await_lost(client: openai.OpenAI, order: Order, offers: Optional) -> FineTuningJob | None:
    """Look for a job that an earlier run requested without learning the outcome, until it must be listed.

    Raises:
        UserError: there is none, but the service's lists do not prove it.
    """
    saved = order.saved()
    if (saved.get("asked") or saved.get("job")) and saved.get("guarantee") == "none":
        raise UserError(_unprovable(order, saved))
    asked = saved.get("asked")
    if asked is None:
        return None
    # A clock that was set back must not make the wait longer.
    left = min(SETTLE_SECONDS, asked + SETTLE_SECONDS - time.time())
    if left > 0:
        notice(
            f"openai: an earlier run requested this job and got no response; looking for it for another {left:.0f} s"
            " before creating one"
        )
    job = find(client, order, offers, looks=max(_LOOKS, math.ceil(left / _LOOK_SECONDS)))
    unnamed = [one.id for one in guarantee.all_jobs(client, offers) if not _is_named(one)] if job is None else []
    if job is None and (unnamed or guarantee.JOBS in offers.missing):
        raise UserError(_unprovable(order, saved, unnamed))
    return job


def _is_named(job: Any) -> bool:
    """Whether a job says whose it is."""
    return bool(field(job, "training_file", str) or field(job, "metadata", dict))


def _unprovable(order: Order, saved: dict[str, Any], unnamed: list[str] | None = None) -> str:
    file = field(field(saved, "files", dict) or {}, "train", str)
    lists = f"jobs that may be it ({', '.join(unnamed[:5])})" if unnamed else "nothing by which the job could be found"
    what = f"had job {saved['job']} for it" if saved.get("job") else "requested this job and got no response"
    return (
        f"outcome unknown: an earlier run {what}, and {order.endpoint} lists {lists}\n"
        "it may be paid already, so no other job is created; look for it in the service's own console"
        f"{f' (training file {file})' if file else ''}\n"
        f'if it is there, write {{"job": "ITS ID"}} into {order.state}; if not, raise openai.attempt by one'
    )


def find(client: openai.OpenAI, order: Order, offers: Optional | None = None, looks: int = 1) -> FineTuningJob | None:
    """Find the order's job by state file, report, metadata or training file; succeeded ones first, then running."""
    offers = offers or Optional()
    for known in filter(None, (order.saved().get("job"), _reported(order))):
        try:
            return client.fine_tuning.jobs.retrieve(known)
        except openai.NotFoundError:
            notice(f"openai: job {known} no longer exists at {order.endpoint}")
    for look in range(looks):
        time.sleep(_LOOK_SECONDS if look else 0)
        if jobs := _by_metadata(client, order, offers) or _by_training_file(client, order, offers):
            return min(jobs, key=lambda job: (_rank(job), *_age(job)))
        if guarantee.JOBS in offers.missing:
            break
    return None


def _reported(order: Order) -> str | None:
    """The order's job in the last commit's report, by which a service that lists nothing is asked on any machine."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{RUN.as_posix()}"], capture_output=True)
        report = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError):
        return None
    job = field(report, "job", str) if field(report, "fingerprint", str) == order.fingerprint else None
    return job if job and _JOB_ID.fullmatch(job) else None


def _rank(job: FineTuningJob) -> int:
    return {"succeeded": 0, "waiting": 1, "unsuccessful": 2}[status.outcome(job)]


def _age(job: FineTuningJob) -> tuple[float, str]:
    """Sorts the oldest job first."""
    created = number(job, "created_at")
    return math.inf if created is None else created, job.id


def _by_metadata(client: openai.OpenAI, order: Order, offers: Optional) -> list[Any]:
    # Some services ignore the filter, so check.
    jobs = guarantee.all_jobs(client, offers, metadata={FINGERPRINT: order.fingerprint})
    return [job for job in jobs if (field(job, "metadata", dict) or {}).get(FINGERPRINT) == order.fingerprint]


def _by_training_file(client: openai.OpenAI, order: Order, offers: Optional) -> list[Any]:
    ids = {file.id for file in uploads.named(client, order.file_name("train"), offers)}
    ids |= {field(field(order.saved(), "files", dict) or {}, "train", str)} - {None}
    if not ids:
        return []
    return [job for job in guarantee.all_jobs(client, offers) if field(job, "training_file", str) in ids]


def _create(client: openai.OpenAI, order: Order, offers: Optional) -> FineTuningJob:
    """Upload the splits and request the job once. If the response is lost, look for the job at the endpoint."""
    uploaded = {split: uploads.upload(client, order, split, offers) for split in order.contents}
    holds = guarantee.found_out(client, order, offers, _LOOKS, _LOOK_SECONDS)
    notice(f"openai: paid once: {guarantee.MEANINGS[holds]}")
    asked = {"job": None, "asked": time.time(), "files": uploaded, "guarantee": holds}
    files.write_json(order.state, asked)
    try:
        job = _request(client, order, uploaded)
    except KeyboardInterrupt:
        notice(
            "openai: interrupted while creating the job, so it may be running. Run again to find it, or look for the"
            f" metadata {FINGERPRINT}={order.fingerprint} in: {curl(order, '')}"
        )
        raise
    except openai.OpenAIError as error:
        if not may_have_run(error):
            order.state.unlink()
            raise
        return _after_lost_response(client, order, error, offers)
    if not field(job, "id", str):
        raise UserError(_unprovable(order, asked))
    notice(f"openai: created job {job.id}")
    return job


def _request(client: openai.OpenAI, order: Order, uploaded: dict[str, str]) -> FineTuningJob:
    """Request the job once; once more without metadata if the service rejects it because of them."""
    # Otherwise the SDK would repeat the request if the response was lost, and create a second job.
    create = client.with_options(max_retries=0).fine_tuning.jobs.create
    body: dict[str, Any] = {
        "model": order.model,
        "training_file": uploaded["train"],
        "validation_file": uploaded["validation"],
        **order.settings,
        "seed": order.seed,
        "suffix": order.suffix or openai.omit,
    }
    try:
        return create(**body, metadata={FINGERPRINT: order.fingerprint})
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        if "metadata" not in message(error).lower():
            raise
        notice(f"openai: {describe(error, order.endpoint)}. Requesting the job without metadata")
        return create(**body)


def _after_lost_response(
    client: openai.OpenAI, order: Order, error: openai.OpenAIError, offers: Optional
) -> FineTuningJob:
    notice(f"openai: {describe(error, order.endpoint)}. Checking whether the job was created")
    saved = order.saved()
    if saved["guarantee"] == "none":
        raise UserError(_unprovable(order, saved)) from error
    try:
        job = find(client, order, offers, looks=_LOOKS)
    except openai.OpenAIError as second:
        job, error = None, second
    if job is None:
        raise UserError(
            f"outcome unknown: {describe(error, order.endpoint)}, after the job was requested\n"
            f"the endpoint does not list a job with the metadata {FINGERPRINT}={order.fingerprint} yet\n"
            f"run again to look for that job; a new one is created only if there is none after"
            f" {SETTLE_SECONDS / 60:g} minutes"
        ) from error
    notice(f"openai: found the job, {job.id}")
    return job


def first(client: openai.OpenAI, order: Order, job: FineTuningJob, offers: Optional) -> FineTuningJob:
    """The order's oldest job; if another machine created one at the same time, cancel the later one."""
    try:
        others = [one for one in _by_metadata(client, order, offers) if status.outcome(one) != "unsuccessful"]
    except openai.OpenAIError as error:
        # The job is paid, and another machine's is looked for again while this one is followed.
        notice(f"openai: {describe(error, order.endpoint)}. Looking for other machines' jobs later")
        return job
    oldest = min([job, *others], key=_age)
    if oldest.id != job.id:
        save(order, oldest.id)
        _cancel(client, order, job.id, oldest.id)
    return oldest


def _cancel(client: openai.OpenAI, order: Order, later: str, oldest: str) -> None:
    try:
        client.fine_tuning.jobs.cancel(later)
        notice(f"openai: another machine created job {oldest} first; cancelled {later}")
    except openai.OpenAIError as error:
        notice(
            f"openai: another machine created job {oldest} first, which is used, but {later} could not be cancelled"
            f" ({describe(error, order.endpoint)}); cancel it, or both are paid: {cancelling(order, later)}"
        )


def save(order: Order, job: str) -> None:
    """Record the order's job and model, and keep what is known of the endpoint's guarantee."""
    known = order.saved().get("guarantee")
    files.write_json(order.state, {"job": job, "model": order.model} | ({"guarantee": known} if known else {}))


def curl(order: Order, path: str, method: str = "") -> str:
    """A command that asks the service about the order's jobs."""
    url = below(order.endpoint, f"/fine_tuning/jobs{path}")
    return f'curl {method}{url} -H "Authorization: Bearer $OPENAI_API_KEY"'


def cancelling(order: Order, job: str) -> str:
    """The command that cancels a job."""
    return curl(order, f"/{job}/cancel", "-X POST ")
