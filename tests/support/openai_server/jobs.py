"""The service's jobs: created, advanced each time they are retrieved, and ended."""

import base64
import math
import time

from tests.support.openai_server.exchange import (
    ENDED,
    KEPT_CHECKPOINTS,
    LEAST_EXAMPLES,
    ORGANIZATION,
    TOKENS_PER_WORD,
    UNLISTED_STATUS,
    WINDING_DOWN,
    FileError,
    Json,
    Request,
    ServiceError,
)
from tests.support.openai_server.learning import (
    Work,
    check_file,
    learned,
    metrics,
    page,
    plain,
    resolve,
    step_message,
    table,
)


class Jobs:
    """Routes of fine-tuning jobs; the rest of the service is in `service`."""

    # Jobs

    def _create_job(self, request: Request) -> Json:
        body = request.body
        if "create_jobs" not in self.permissions:
            raise ServiceError(403, WINDING_DOWN, code="training_not_available")
        self._check_job(body)
        method = body.get("method") or {"type": "supervised"}
        asked = (method.get("supervised") or {}).get("hyperparameters") or body.get("hyperparameters") or {}
        asked = {name: asked.get(name, "auto") for name in ("n_epochs", "batch_size", "learning_rate_multiplier")}
        job = self._new_job(body, asked)
        self.jobs[job["id"]] = job
        self._work[job["id"]] = Work(asked, body.get("suffix") or "")
        self._event(job, f"Created fine-tuning job: {job['id']}")
        files = " and validation file: ".join(filter(None, (body["training_file"], body.get("validation_file"))))
        self._event(job, f"Validating training file: {files}")
        return job

    def _check_job(self, body: Json) -> None:
        """Reject a job with a model or file that cannot be used, or a method that this server cannot simulate."""
        model = body["model"]
        if model in self.retired or (model not in self.models and model not in self._tuned):
            message = f"Model {model} is not available for fine-tuning or does not exist."
            raise ServiceError(400, message, None, "model_not_available")
        for param in ("training_file", "validation_file"):
            file_id = body.get(param)
            if file_id is not None and self.files.get(file_id, {}).get("purpose") != "fine-tune":
                raise ServiceError(400, f"invalid {param}: {file_id}", param)
        if (body.get("method") or {}).get("type", "supervised") != "supervised":
            raise ServiceError(400, "This server fine-tunes by the supervised method only.", "method.type")

    def _new_job(self, body: Json, asked: Json) -> Json:
        """The response for a new job."""
        job_id = self._id("ftjob-")
        seed = body.get("seed")
        return {
            "object": "fine_tuning.job",
            "id": job_id,
            "model": body["model"],
            "created_at": int(time.time()),
            "finished_at": None,
            "estimated_finish": None,
            "fine_tuned_model": None,
            "organization_id": ORGANIZATION,
            "result_files": [],
            "status": "validating_files",
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "hyperparameters": asked,
            "method": {"type": "supervised", "supervised": {"hyperparameters": asked}},
            "trained_tokens": None,
            "error": None,
            "user_provided_suffix": body.get("suffix"),
            "seed": int(job_id[-7:], 16) if seed is None else seed,
            "integrations": body.get("integrations") or [],
            "metadata": body.get("metadata"),
        }

    def _event(self, job: Json, message: str, level: str = "info", data: Json | None = None) -> None:
        """Add an event to the job."""
        event = {"object": "fine_tuning.job.event", "id": self._id("ftevent-"), "created_at": int(time.time())}
        event |= {"level": level, "message": message, "type": "metrics" if data else "message", "data": data or {}}
        self._work[job["id"]].events.append(event)

    def _found(self, job_id: str) -> Json:
        """Return a job, or fail if it does not exist."""
        if job_id not in self.jobs:
            raise ServiceError(404, f"Could not find fine tune: {job_id}", "fine_tune_id", "fine_tune_not_found")
        return self.jobs[job_id]

    def _job(self, _: Request, job_id: str) -> Json:
        job = self._found(job_id)
        if job["status"] == "validating_files":
            self._validate(job)
        elif job["status"] == "queued":
            job["status"] = UNLISTED_STATUS if self.job_outcome == "unknown" else "running"
            job["estimated_finish"] = int(time.time()) + 600
            self._event(job, "Fine-tuning job started")
        elif job["status"] == "running":
            self._train(job)
        return job

    def _validate(self, job: Json) -> None:
        """Read the job's files and set its hyperparameters, or fail the job."""
        work = self._work[job["id"]]
        param = "training_file"
        try:
            examples = check_file(self.contents.get(job[param]), LEAST_EXAMPLES, "Training")
            param = "validation_file"
            if job[param]:
                work.validated = bool(check_file(self.contents.get(job[param]), 1, "Validation"))
        except FileError as error:
            self._end_failed(job, error.code or f"invalid_{param}", str(error), param)
            return
        settled = resolve(work.asked, len(examples))
        text = " ".join(plain(message.get("content")) for messages in examples for message in messages)
        work.learned, work.tokens = learned(examples), len(text.split()) * TOKENS_PER_WORD
        work.steps_per_epoch = math.ceil(len(examples) / settled["batch_size"])
        work.steps = work.steps_per_epoch * settled["n_epochs"]
        job |= {"hyperparameters": settled, "status": "queued"}
        job["method"] = {"type": "supervised", "supervised": {"hyperparameters": settled}}
        self._event(job, "Files validated, moving job to queued state")

    def _end_failed(self, job: Json, code: str, message: str, param: str | None) -> None:
        """End a job as failed; as in the service, only successful jobs have a finishing time."""
        job |= {"status": "failed", "error": {"code": code, "message": message, "param": param}}
        job["estimated_finish"] = None
        self._event(job, message, "error")

    def _train(self, job: Json) -> None:
        """Train some steps, then end the job if it is done or should end with another outcome."""
        work = self._work[job["id"]]
        if self.job_outcome == "unknown":
            job["status"] = UNLISTED_STATUS
            return
        done = len(work.rows)
        until = min(work.steps, done + (self.steps_per_poll or math.ceil(work.steps / 3)))
        for step in range(done + 1, until + 1):
            self._step(job, work, step)
        if self.job_outcome == "failed":
            self._end_failed(job, "server_error", "The job failed due to an internal error.", None)
        elif self.job_outcome == "cancelled":
            self._end_cancelled(job)
        elif until == work.steps:
            self._succeed(job, work)

    def _step(self, job: Json, work: Work, step: int) -> None:
        """Record a training step, and a checkpoint at the end of an epoch."""
        epoch_ends = step % work.steps_per_epoch == 0
        row = metrics(step, work.steps, epoch_ends, work.validated)
        work.rows.append(row)
        self._event(job, step_message(row, work.steps), data=row | {"total_steps": work.steps})
        if epoch_ends:
            self._save_checkpoint(job, work, row)

    def _save_checkpoint(self, job: Json, work: Work, row: Json) -> None:
        """Save a checkpoint; the last one is announced as the new model."""
        step = row["step"]
        name = f"{self._name(job, work)}:ckpt-step-{step}"
        checkpoint = {"object": "fine_tuning.job.checkpoint", "id": self._id("ftckpt_"), "created_at": int(time.time())}
        checkpoint |= {"fine_tuned_model_checkpoint": name, "fine_tuning_job_id": job["id"], "step_number": step}
        work.checkpoints.append(checkpoint | {"metrics": row})
        self._tuned[name] = work.learned
        for dropped in work.checkpoints[:-KEPT_CHECKPOINTS]:
            del self._tuned[dropped["fine_tuned_model_checkpoint"]]
        del work.checkpoints[:-KEPT_CHECKPOINTS]
        if step < work.steps:
            self._event(job, f"Checkpoint created at step {step}")

    def _name(self, job: Json, work: Work) -> str:
        """A new name for a model of this job."""
        return f"ft:{self._base(job['model'])}:{ORGANIZATION}:{work.suffix}:{self._id('', 8)}"

    def _succeed(self, job: Json, work: Work) -> None:
        """End the job with its model and result file."""
        name = self._name(job, work)
        self._tuned[name] = work.learned
        text = table(work.rows).encode()
        content = base64.b64encode(text) if self.result_encoding == "base64" else text
        result = self._keep_file("step_metrics.csv", content, "fine-tune-results")
        trained = round(work.tokens * job["hyperparameters"]["n_epochs"])
        job |= {"status": "succeeded", "fine_tuned_model": name, "result_files": [result["id"]]}
        job |= {"trained_tokens": trained, "finished_at": int(time.time()), "estimated_finish": None}
        self._event(job, "New fine-tuned model created")
        self._event(job, "The job has successfully completed")

    def _list_jobs(self, request: Request) -> Json:
        jobs = [] if self.lists_that_lag > 0 else list(reversed(self.jobs.values()))
        self.lists_that_lag -= 1
        if "metadata" in request.query and self.filters_metadata:
            wanted = request.query["metadata"]
            if wanted is None:
                jobs = [job for job in jobs if job["metadata"] is None]
            else:
                jobs = [job for job in jobs if wanted.items() <= (job["metadata"] or {}).items()]
        return self._page(jobs, request.query)

    def _page(self, items: list[Json], query: Json) -> Json:
        """A page; always the first where the service ignores `after`."""
        if self.profile.follows_after:
            return page(items, query, 20)
        return page(items, {"limit": query.get("limit", 20)}, 20)

    def _cancel(self, _: Request, job_id: str) -> Json:
        job = self._found(job_id)
        if job["status"] in ENDED:
            raise ServiceError(400, f"Job has already completed: {job_id}")
        self._end_cancelled(job)
        return job

    def _end_cancelled(self, job: Json) -> None:
        job |= {"status": "cancelled", "estimated_finish": None}
        self._event(job, "The job was cancelled")

    def _events(self, request: Request, job_id: str) -> Json:
        self._found(job_id)
        return self._page(self._work[job_id].events[::-1], request.query)

    def _checkpoints(self, request: Request, job_id: str) -> Json:
        self._found(job_id)
        return self._page(self._work[job_id].checkpoints[::-1], request.query)
