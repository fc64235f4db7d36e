"""Fine-tuning jobs: what a request becomes, and how a job changes until it ends."""

import csv
import io
import json
import math
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from stages.backends.unsloth.reader import Chat
from stages.core.paths import BASE, SPLITS
from stages.endpoint import validation
from stages.endpoint.catalog import BaseModel
from stages.endpoint.refusals import RefusedError
from stages.endpoint.store import ENDED, Json, Store, new_id
from stages.params import Params

ORGANIZATION = "local"
# What the training process reads and writes in the job's folder.
PLAN, RESULT = "plan.json", "result.json"
_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_RESULT_FILE = ("step", "train_loss", "valid_loss", "learning_rate")


@dataclass(frozen=True)
class Jobs:
    """The service's jobs. `recipe` decides what requests leave open; at most `longest` jobs wait."""

    store: Store
    recipe: Params
    bases: Mapping[str, BaseModel]
    longest: int
    max_bytes: int

    def create(self, body: Json) -> Json:
        """Add a job to the queue.

        Raises:
            RefusedError: it asks for something that is not here, or the queue or the disk is full.
        """
        self._refuse_impossible(body)
        base = self.bases[body["model"]]
        job_id = new_id("ftjob-")
        hyperparameters, resolved = self._resolved(body)
        seed = self.recipe.seed % 2**31 if body.get("seed") is None else body["seed"]
        knobs = self._knobs(base, hyperparameters, seed)
        record = {
            "object": "fine_tuning.job",
            "id": job_id,
            "model": body["model"],
            "served_by": base.said(),
            "created_at": int(time.time()),
            "finished_at": None,
            "estimated_finish": None,
            "fine_tuned_model": None,
            "organization_id": ORGANIZATION,
            "result_files": [],
            "status": "validating_files",
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "hyperparameters": hyperparameters,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "trained_tokens": None,
            "error": None,
            "user_provided_suffix": body.get("suffix"),
            "seed": seed,
            "integrations": [],
            "metadata": body.get("metadata"),
        }
        plan = {"knobs": knobs.model_dump(mode="json", by_alias=True), "base": base.folder.name}
        with self.store.transaction():
            self.store.add_job(record, plan)
            self.store.add_event(job_id, f"Created fine-tuning job: {job_id}")
            self.store.add_event(job_id, f"{body['model']} is served by {base.said()} on this machine")
            chosen = f"{', '.join(resolved)} auto, as this endpoint's recipe has it: " if resolved else ""
            numbers = ", ".join(f"{name} {value:g}" for name, value in hyperparameters.items())
            self.store.add_event(job_id, f"{chosen}{numbers} (learning rate {knobs.lr:g}), seed {seed}")
        return record

    def _refuse_impossible(self, body: Json) -> None:
        model = body["model"]
        if any(name == model for name, _, _ in self.store.models()):
            raise RefusedError(
                400, "Training a fine-tuned model further is not available here; name its base.", "model"
            )
        if model not in self.bases:
            message = f"Model {model} is not available for fine-tuning or does not exist."
            raise RefusedError(400, message, "model", "model_not_available")
        method = (body.get("method") or {}).get("type", "supervised")
        if method != "supervised":
            message = f"Fine-tuning with method '{method}' is not available for model {model}; supervised is."
            raise RefusedError(400, message, "method.type", "unsupported_method")
        if body.get("integrations"):
            raise RefusedError(400, "Integrations are not available here; nothing is sent anywhere.", "integrations")
        for param in ("training_file", "validation_file"):
            self._refuse_file(body.get(param), param)
        if len(self.store.with_status("validating_files", "queued", "running", "paused")) >= self.longest:
            message = (
                f"{self.longest} jobs are waiting already, as many as the queue holds; wait for one, or cancel one"
            )
            raise RefusedError(429, message, None, "rate_limit_exceeded")
        refuse_full(self.store, self.max_bytes)

    def _refuse_file(self, file_id: str | None, param: str) -> None:
        if file_id is None:
            return
        try:
            purpose = self.store.file(file_id)["purpose"]
        except RefusedError:
            purpose = None
        if purpose != "fine-tune":
            why = "no such file" if purpose is None else f"its purpose is {purpose}, not fine-tune"
            raise RefusedError(400, f"invalid {param}: {file_id} ({why})", param, "invalid_file")

    def _resolved(self, body: Json) -> tuple[Json, list[str]]:
        """All hyperparameters as numbers, and the names of those that the request left to the recipe."""
        asked = ((body.get("method") or {}).get("supervised") or {}).get("hyperparameters")
        asked = asked or body.get("hyperparameters") or {}
        epochs, batch_size = self.recipe.numbers
        auto = {"n_epochs": max(1, round(epochs)), "batch_size": batch_size, "learning_rate_multiplier": 1.0}
        given = {name: value for name in _HYPERPARAMETERS if (value := asked.get(name)) not in (None, "auto")}
        return auto | given, [name for name in _HYPERPARAMETERS if name not in given]

    def _knobs(self, base: BaseModel, hyperparameters: Json, seed: int) -> Params:
        """The recipe with what the request asks for.

        Raises:
            RefusedError: the values do not work together.
        """
        values = self.recipe.model_dump(mode="json", by_alias=True)
        values |= {"epochs": hyperparameters["n_epochs"], "batch_size": hyperparameters["batch_size"], "seed": seed}
        values["lr"] = values["lr"] * hyperparameters["learning_rate_multiplier"]
        # Longer conversations are refused when the files are checked, by line.
        values["unsloth"] |= {"model": base.model, "revision": base.revision, "overlong": "drop"}
        try:
            return Params.model_validate(values)
        except ValidationError as error:
            if "lr" in error.errors()[0]["loc"]:
                message = f"It makes the learning rate {values['lr']:g}, which must be above 0 and at most 1."
                raise RefusedError(400, message, "learning_rate_multiplier") from None
            raise RefusedError(400, "These hyperparameters do not work together.", "hyperparameters") from None

    def validate(self, job_id: str) -> None:
        """Check a job's files and put it into the queue, or end it as failed."""
        job, plan = self.store.job(job_id), self.store.plan(job_id)
        folder = self.store.folder_of(job_id)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base_of(job_id) / BASE, folder / BASE)
        try:
            size = validation.check(
                Chat.load(folder / BASE),
                plan["knobs"]["unsloth"]["max_length"],
                self._content(job, "training_file"),
                self._content(job, "validation_file") if job["validation_file"] else None,
                folder / SPLITS["train"],
                folder / SPLITS["validation"],
            )
        except validation.InvalidFileError as error:
            self.fail(job_id, f"invalid_{error.param}", str(error), error.param)
            return
        per_epoch = -(-size.examples // plan["knobs"]["batch_size"])
        steps = {"per_epoch": per_epoch, "steps": math.ceil(plan["knobs"]["epochs"] * per_epoch), "tokens": size.tokens}
        with self.store.transaction():
            if self.store.update_job(job_id, ("validating_files",), plan=steps, status="queued"):
                self.store.add_event(job_id, "Files validated, moving job to queued state")

    def base_of(self, job_id: str) -> Path:
        """The folder of a job's base as prepared; the project may have moved since."""
        return self.store.bases / str(self.store.plan(job_id)["base"])

    def _content(self, job: Json, param: str) -> Path:
        try:
            return self.store.content(self.store.file(job[param])["id"])
        except RefusedError:
            raise validation.InvalidFileError(param, f"{job[param]} was deleted") from None

    def start(self, job_id: str) -> None:
        """Write what the training process needs into the job's folder."""
        plan, folder = self.store.plan(job_id), self.store.folder_of(job_id)
        (folder / PLAN).write_text(json.dumps(plan["knobs"]), encoding="utf-8")
        self.store.add_event(job_id, "Fine-tuning job started", name="started")

    def log(self, job_id: str, row: Json) -> None:
        """Record a row of the training history; one that is known already is left out."""
        plan = self.store.plan(job_id)
        data = {"step": row["step"], "epoch": row["epoch"], "total_steps": plan["steps"]}
        place = f"Step {row['step']}/{plan['steps']}"
        if "train_loss" in row:
            data |= {"train_loss": row["train_loss"], "learning_rate": row["lr"]}
            text = f"{place}: training loss={row['train_loss']:.2f}, learning rate={row['lr']:.3g}"
            self.store.add_event(job_id, text, data=data, name=f"train-{row['step']}")
            return
        validated = self.store.job(job_id)["validation_file"]
        what = "full validation loss" if validated else "loss on the first training conversations"
        key = "full_valid_loss" if validated else "full_train_loss"
        text = f"{place}, epoch {row['epoch']:g}: {what}={row['validation_loss']:.2f}"
        # As in the service, metrics have the step's training loss too. Before the first step there is none.
        steps = [one for one in self.store.measured(job_id) if one["step"] == row["step"]]
        measured = {**steps[0], key: row["validation_loss"]} if steps else None
        self.store.add_event(job_id, text, data=measured, name=f"epoch-{row['step']}")

    def succeed(self, job_id: str, result: Json) -> None:
        """End a job with its model, checkpoint and result file."""
        job, plan = self.store.job(job_id), self.store.plan(job_id)
        metrics, measured = result["metrics"], self.store.measured(job_id)
        suffix = re.sub(r"[^A-Za-z0-9_-]+", "-", job["user_provided_suffix"] or "")
        name = f"ft:{job['model']}:{ORGANIZATION}:{suffix}:{new_id('', 8)}"
        part = self.store.contents / new_id("part-")
        part.write_text(_table(measured), encoding="utf-8")
        tokens = round(plan["tokens"] * metrics["steps"] / plan["per_epoch"])
        kept = f"epoch {metrics['best_epoch']:g}, which had the lowest loss on the"
        kept += " validation file" if job["validation_file"] else " first conversations of the training file"
        with self.store.transaction():
            changes = {"fine_tuned_model": name, "trained_tokens": tokens, "finished_at": int(time.time())}
            if not self.store.update_job(job_id, ("running",), status="succeeded", **changes):
                part.unlink()
                return
            file = self.store.add_file(part, "step_metrics.csv", "fine-tune-results")
            self.store.update_job(job_id, ("succeeded",), result_files=[file["id"]])
            self.store.add_model(name, job_id)
            self.store.update_job(job_id, ("succeeded",), plan={"checkpoint": _best(measured, metrics["best_epoch"])})
            self.store.add_event(job_id, f"New fine-tuned model created: {name}, from {kept}")
            self.store.add_event(job_id, "The job has successfully completed")

    def fail(self, job_id: str, code: str, message: str, param: str | None = None) -> None:
        """End a job as failed."""
        error = {"code": code, "message": message, "param": param}
        with self.store.transaction():
            if self.store.update_job(job_id, ("validating_files", "running"), status="failed", error=error):
                self.store.add_event(job_id, message, "error")

    def cancel(self, job_id: str) -> Json:
        """End a job before it is done.

        Raises:
            RefusedError: it has ended.
        """
        return self._change(job_id, "cancelled", ("validating_files", "queued", "running", "paused"), "was cancelled")

    def pause(self, job_id: str) -> Json:
        """Stop a job until it is resumed.

        Raises:
            RefusedError: it is neither queued nor running.
        """
        return self._change(job_id, "paused", ("queued", "running"), "was paused")

    def resume(self, job_id: str) -> Json:
        """Put a paused job back into its place in the queue.

        Raises:
            RefusedError: it is not paused.
        """
        return self._change(job_id, "queued", ("paused",), "was resumed")

    def _change(self, job_id: str, status: str, was: tuple[str, ...], done: str) -> Json:
        with self.store.transaction():
            job = self.store.job(job_id)
            if not self.store.update_job(job_id, was, status=status):
                state = f"Job has already completed: {job_id}" if job["status"] in ENDED else f"Job is {job['status']}"
                raise RefusedError(400, state, None, "invalid_job_state")
            self.store.add_event(job_id, f"The job {done}")
            return self.store.job(job_id)

    def checkpoints(self, job_id: str) -> list[Json]:
        """The one checkpoint that is kept: the epoch that became the tuned model; none before it exists."""
        job, plan = self.store.job(job_id), self.store.plan(job_id)
        if not job["fine_tuned_model"] or not plan.get("checkpoint"):
            return []
        metrics = plan["checkpoint"]
        checkpoint = {"object": "fine_tuning.job.checkpoint", "id": job_id.replace("ftjob-", "ftckpt_")}
        checkpoint |= {"created_at": job["finished_at"], "fine_tuning_job_id": job_id, "metrics": metrics}
        checkpoint["fine_tuned_model_checkpoint"] = f"{job['fine_tuned_model']}:ckpt-step-{metrics['step']}"
        return [checkpoint | {"step_number": metrics["step"]}]


def refuse_full(store: Store, max_bytes: int, more: int = 0) -> None:
    """Refuse where the service's folder takes all the disk that it may take.

    Raises:
        RefusedError: it would exceed `max_bytes` with `more` bytes.
    """
    if (used := store.used()) + more > max_bytes:
        message = (
            f"files and models take {used / 1e9:.1f} of {max_bytes / 1e9:g} GB here; delete some, or raise --max-disk"
        )
        raise RefusedError(413, message, None, "storage_limit_exceeded")


def _table(measured: list[Json]) -> str:
    """The result file: a line for each step, with the validation loss where an epoch ends."""
    rows: dict[int, Json] = {}
    for data in measured:
        cells = {"step": data["step"], "train_loss": data.get("train_loss"), "valid_loss": data.get("full_valid_loss")}
        cells["learning_rate"] = data.get("learning_rate")
        row = rows.setdefault(data["step"], dict.fromkeys(_RESULT_FILE, ""))
        row |= {name: value for name, value in cells.items() if value is not None}
    out = io.StringIO()
    writer = csv.DictWriter(out, _RESULT_FILE, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for _, row in sorted(rows.items()))
    return out.getvalue()


def _best(measured: list[Json], epoch: float) -> Json:
    """Metrics at the step that ended an epoch, as a checkpoint has them."""
    for data in measured:
        if data["epoch"] == epoch and data.keys() & {"full_valid_loss", "full_train_loss"}:
            return {key: data[key] for key in ("step", "train_loss", "full_valid_loss") if key in data}
    return {}
