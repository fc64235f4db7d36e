"""What a finished job gives: its curves, its checkpoints, and the model to use."""

import base64
import binascii
import csv
import io
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from stages.command import UserError, notice

Row = dict[str, Any]


def curves(client: openai.OpenAI, job: FineTuningJob) -> list[Row]:
    """For each step `step`, `epoch`, `train_loss`, and `validation_loss` where it was measured.

    They come from the job's result file; where a service gives none that can be read, from its events. A loss over the
    whole validation split, which stands in events alone, takes the place of those over single batches.
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
        notice(f"openai: {job.id} has no curves; the model is there all the same")
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
        notice(f"openai: the result file {file} cannot be read ({type(error).__name__}); its events take its place")
        return []


def _decoded(content: bytes) -> str:
    """The file as text: some services give it as base64, which has no comma."""
    if b"," not in content[:200]:
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error:
            raise ValueError("neither CSV nor base64") from None
    return content.decode("utf-8")


def _measured(client: openai.OpenAI, job: FineTuningJob) -> list[dict[str, Any]]:
    """What the job's events tell of its steps."""
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    return [event.data for event in events if event.type == "metrics" and isinstance(event.data, dict)]


def _row(cells: dict[str, Any]) -> Row:
    row: Row = {"step": int(cells["step"]), "train_loss": round(float(cells["train_loss"]), 4)}
    if cells.get("valid_loss") not in (None, ""):
        row["validation_loss"] = round(float(cells["valid_loss"]), 4)
    return row


def model(client: openai.OpenAI, job: FineTuningJob, which: int | str) -> tuple[str, int | None]:
    """The name of the tuned model at the chosen checkpoint, and its step; None for the step of the last.

    Raises:
        UserError: the job has no such checkpoint.
    """
    if which == "last":
        if not job.fine_tuned_model:
            raise UserError(f"job {job.id} succeeded, but names no model; ask the service for it")
        return job.fine_tuned_model, None
    checkpoints = {one.step_number: one for one in client.fine_tuning.jobs.checkpoints.list(job.id)}
    measured = {step: loss for step, one in checkpoints.items() if (loss := _validation_loss(one)) is not None}
    if which == "best" and not measured:
        raise UserError(f"job {job.id} has no checkpoint with a validation loss; set openai.checkpoint to last")
    step = min(measured, key=lambda one: measured[one]) if which == "best" else int(which)
    if step not in checkpoints:
        steps = ", ".join(map(str, sorted(checkpoints))) or "none"
        raise UserError(f"openai.checkpoint: job {job.id} has none at step {step}; there are: {steps}")
    return checkpoints[step].fine_tuned_model_checkpoint, step


def _validation_loss(checkpoint: FineTuningJobCheckpoint) -> float | None:
    """Over the whole validation split where that was measured, else over a batch."""
    whole = checkpoint.metrics.full_valid_loss
    return checkpoint.metrics.valid_loss if whole is None else whole
