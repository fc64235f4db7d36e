"""Results of a finished job: loss curves and the tuned model. Nothing here may lose a model that is paid."""

import base64
import binascii
import csv
import io
import math
from typing import Any

import httpx2
import openai
from openai.types.fine_tuning import FineTuningJob

from stages.backends.openai.base.client import describe, message, not_offered, one_line
from stages.backends.openai.base.replies import field, listed, number
from stages.core.cli import UserError, notice

Row = dict[str, Any]
_AUTO = "auto"
# Of a result file, whose row for each step takes about 50.
_MOST_BYTES = 100 * 2**20


def curves(client: openai.OpenAI, job: FineTuningJob) -> list[Row]:
    """Return `step`, `epoch`, `train_loss` and, where measured, `validation_loss` for each step.

    They come from the job's result file, or from its events if there is no readable file. The loss over the whole
    validation split, which only events report, replaces that over single batches. `epoch` is None where the service
    does not say how many there were. A service that has none of it gives no rows.
    """
    measured = _measured(client, job)
    files = [file for file in field(job, "result_files", list) or [] if isinstance(file, str)]
    rows = [row for file in files for row in _from_file(client, file)]
    rows = rows or sorted(filter(None, map(_row, measured)), key=lambda row: int(row["step"]))
    whole = {int(step): loss for one in measured
             if (loss := number(one, "full_valid_loss")) is not None and (step := _step(one)) is not None}  # fmt: skip
    for row in rows if whole else []:
        row.pop("validation_loss", None)
        if row["step"] in whole:
            row["validation_loss"] = round(whole[row["step"]], 4)
    if not rows:
        notice(f"openai: {job.id} has no loss curves; this does not affect the model")
    epochs = _epochs(job)
    last = max((row["step"] for row in rows), default=0)
    for row in rows:
        computed = round(row["step"] * epochs / last, 4) if epochs and last else None
        row["epoch"] = computed if row.get("epoch") is None else row["epoch"]
    return rows


def _epochs(job: FineTuningJob) -> float | None:
    """How often the job saw the data; None if the service does not say."""
    supervised = getattr(getattr(job, "method", None), "supervised", None)
    places = (getattr(job, "hyperparameters", None), getattr(supervised, "hyperparameters", None))
    return next((epochs for place in places if (epochs := number(place, "n_epochs"))), None)


def _from_file(client: openai.OpenAI, file: str) -> list[Row]:
    try:
        text = _decoded(_content(client, file))
        rows = [row for cells in csv.DictReader(io.StringIO(text)) if (row := _row(cells))]
        if not rows:
            raise ValueError("no step has a training loss")
    # While a body is streamed, the SDK passes on what its HTTP library raises.
    except (openai.OpenAIError, httpx2.HTTPError, UnicodeDecodeError, ValueError, TypeError, csv.Error) as error:
        notice(
            f"openai: cannot read the result file {one_line(file)} ({type(error).__name__}); using the job's events"
            " instead"
        )
        return []
    return rows


def _content(client: openai.OpenAI, file: str) -> bytes:
    """The file's bytes, of which no more than the limit are taken.

    Raises:
        ValueError: it has more.
    """
    found = bytearray()
    with client.files.with_streaming_response.content(file) as response:
        for part in response.iter_bytes():
            found += part
            if len(found) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return bytes(found)


def _decoded(content: bytes) -> str:
    """Decode the file, which some services encode in base64 (recognized by the lack of commas)."""
    if b"," not in content[:200]:
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error:
            raise ValueError("neither CSV nor base64") from None
    return content.decode("utf-8")


def _measured(client: openai.OpenAI, job: FineTuningJob) -> list[dict[str, Any]]:
    """Metrics from the job's events; none if the service has no events."""
    try:
        found = list(listed(client.fine_tuning.jobs.list_events(job.id, limit=100)))
    except openai.OpenAIError as error:
        if not not_offered(error):
            notice(f"openai: events cannot be read ({describe(error, job.id)}); this does not affect the model")
        return []
    metrics = (field(event, "data", dict) for event in found if field(event, "type", str) == "metrics")
    return [data for data in metrics if data is not None]


def _step(cells: dict[str, Any]) -> int | None:
    step = number(cells, "step")
    return None if step is None or step % 1 else int(step)


def _row(cells: dict[str, Any]) -> Row | None:
    """A step's losses, which may be 0.0; None if it has no number or no training loss."""
    step, loss = _step(cells), number(cells, "train_loss")
    if step is None or loss is None:
        return None
    row: Row = {"step": step, "train_loss": round(loss, 4)}
    if (validation := number(cells, "valid_loss")) is not None:
        row["validation_loss"] = round(validation, 4)
    if (epoch := number(cells, "epoch")) is not None:
        row["epoch"] = round(epoch, 4)
    return row


def model(client: openai.OpenAI, job: FineTuningJob, which: int | str, chat: str) -> tuple[str, int | None]:
    """Return the name to chat with the tuned model at the chosen checkpoint, and its step (None for `last`).

    `chat` is `openai.chat_model`; unless auto, it is the name, whatever the job says.

    Raises:
        UserError: the job has no such checkpoint, or names no model.
    """
    if which == "last":
        name = field(job, "fine_tuned_model", str) if chat == _AUTO else chat
        if not name:
            raise UserError(
                f"job {job.id} has succeeded, but the service does not name its model; set openai.chat_model to the"
                " name under which the service chats with it. The job is not paid again"
            )
        return name, None
    checkpoints = _checkpoints(client, job)
    measured = _comparable(checkpoints)
    if which == "best" and not measured:
        raise UserError(f"job {job.id} has no checkpoint with a validation loss; set openai.checkpoint to last")
    step = min(measured, key=lambda one: measured[one]) if which == "best" else int(which)
    if step not in checkpoints:
        steps = ", ".join(map(str, sorted(checkpoints))) or "none"
        raise UserError(f"openai.checkpoint: job {job.id} has no checkpoint at step {step}; available: {steps}")
    name = field(checkpoints[step], "fine_tuned_model_checkpoint", str) if chat == _AUTO else chat
    if not name:
        raise UserError(f"the checkpoint at step {step} of job {job.id} names no model; set openai.checkpoint to last")
    return name, step


def _checkpoints(client: openai.OpenAI, job: FineTuningJob) -> dict[int, Any]:
    """The job's checkpoints by step."""
    try:
        found = list(listed(client.fine_tuning.jobs.checkpoints.list(job.id)))
    except openai.APIStatusError as error:
        if not not_offered(error):
            raise
        raise UserError(
            f"openai.checkpoint: the service lists no checkpoints ({error.status_code}: {message(error)}); set it to"
            f" last. Job {job.id} is not paid again"
        ) from error
    steps = {number(one, "step_number"): one for one in found}
    return {int(step): one for step, one in steps.items() if step is not None}


def _comparable(checkpoints: dict[int, Any]) -> dict[int, float]:
    """Validation losses of one kind: over the whole split where any checkpoint has it, or else over a batch."""
    for kind in ("full_valid_loss", "valid_loss"):
        losses = {step: number(getattr(one, "metrics", None), kind) for step, one in checkpoints.items()}
        if known := {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}:
            return known
    return {}
