"""Results of a finished job: loss curves and the tuned model."""

import base64
import binascii
import csv
import io
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from stages.core.cli import UserError, notice

Row = dict[str, Any]


def curves(client: openai.OpenAI, job: FineTuningJob) -> list[Row]:
    """Return `step`, `epoch`, `train_loss` and, where measured, `validation_loss` for each step.

    They come from the job's result file, or from its events if there is no readable file. The loss over the whole
    validation split, which only events report, replaces that over single batches.
    """
    measured = _measured(client, job)
    rows = [row for file in job.result_files for row in _from_file(client, file)]
    rows = rows or sorted((_row(one) for one in measured), key=lambda row: int(row["step"]))
    whole = {int(one["step"]): one["full_valid_loss"] for one in measured if one.get("full_valid_loss") is not None}
    for row in rows if whole else []:
        row.pop("validation_loss", None)
        if row["step"] in whole:
            row["validation_loss"] = round(float(whole[row["step"]]), 4)
    if not rows:
        notice(f"openai: {job.id} has no loss curves; this does not affect the model")
    epochs = job.hyperparameters.n_epochs if job.hyperparameters else None
    last = max((row["step"] for row in rows), default=0)
    for row in rows:
        row["epoch"] = round(row["step"] * epochs / last, 4) if isinstance(epochs, int) else None
    return rows


def _from_file(client: openai.OpenAI, file: str) -> list[Row]:
    try:
        text = _decoded(client.files.content(file).read())
        return [_row(cells) for cells in csv.DictReader(io.StringIO(text))]
    except (openai.OpenAIError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        notice(f"openai: cannot read the result file {file} ({type(error).__name__}); using the job's events instead")
        return []


def _decoded(content: bytes) -> str:
    """Decode the file, which some services encode in base64 (recognized by the lack of commas)."""
    if b"," not in content[:200]:
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error:
            raise ValueError("neither CSV nor base64") from None
    return content.decode("utf-8")


def _measured(client: openai.OpenAI, job: FineTuningJob) -> list[dict[str, Any]]:
    """Metrics from the job's events."""
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    return [event.data for event in events if event.type == "metrics" and isinstance(event.data, dict)]


def _row(cells: dict[str, Any]) -> Row:
    row: Row = {"step": int(cells["step"]), "train_loss": round(float(cells["train_loss"]), 4)}
    if cells.get("valid_loss") not in (None, ""):
        row["validation_loss"] = round(float(cells["valid_loss"]), 4)
    return row


def model(client: openai.OpenAI, job: FineTuningJob, which: int | str) -> tuple[str, int | None]:
    """Return the name of the tuned model at the chosen checkpoint, and its step (None for `last`).

    Raises:
        UserError: the job has no such checkpoint.
    """
    if which == "last":
        if not job.fine_tuned_model:
            raise UserError(f"job {job.id} succeeded, but names no model; contact the service")
        return job.fine_tuned_model, None
    checkpoints = {one.step_number: one for one in client.fine_tuning.jobs.checkpoints.list(job.id)}
    measured = {step: loss for step, one in checkpoints.items() if (loss := _validation_loss(one)) is not None}
    if which == "best" and not measured:
        raise UserError(f"job {job.id} has no checkpoint with a validation loss; set openai.checkpoint to last")
    step = min(measured, key=lambda one: measured[one]) if which == "best" else int(which)
    if step not in checkpoints:
        steps = ", ".join(map(str, sorted(checkpoints))) or "none"
        raise UserError(f"openai.checkpoint: job {job.id} has no checkpoint at step {step}; available: {steps}")
    return checkpoints[step].fine_tuned_model_checkpoint, step


def _validation_loss(checkpoint: FineTuningJobCheckpoint) -> float | None:
    """Loss over the whole validation split if measured, else over a batch."""
    whole = checkpoint.metrics.full_valid_loss
    return checkpoint.metrics.valid_loss if whole is None else whole
