"""Fine-tuning by a hosted service: create one paid job and follow it until it ends."""

import shutil
import time
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from stages import params
from stages.backends.openai.base import RECORD, endpoint_of
from stages.backends.openai.base.client import connect, readable_errors
from stages.backends.openai.common import prices
from stages.backends.openai.reader import HostedChat
from stages.backends.openai.training import jobs, preflight, results
from stages.backends.protocol import Log, Result
from stages.core import files
from stages.core.cli import notice
from stages.core.paths import TUNED
from stages.params import Params

HISTORY: tuple[str, ...] = ("step", "epoch", "train_loss")
VALIDATION_HISTORY: tuple[str, ...] = ("step", "epoch", "validation_loss")
_TUNED_RECORD = TUNED / "model.json"


def finetune(knobs: Params, log: Log) -> Result:
    """Have the service train on the splits, once, and record the hosted model in `models/tuned`.

    Raises:
        UserError: the data is invalid, the price exceeds the limit, or the job does not succeed.
    """
    url, begin = endpoint_of(RECORD, knobs), time.perf_counter()
    *ignored, last = params.grouped(params.ignored_by("finetune", "openai"))
    notice(f"openai: ignoring {', '.join(ignored)} and {last}, which the service does not support")
    examples, tokens = preflight.check(knobs, HostedChat(knobs.openai.model))
    order, client = jobs.Order.make(url, knobs), connect(url)
    job = jobs.find_or_create(
        client,
        order,
        before=lambda: prices.estimate(
            knobs.openai.model, tokens, prices.estimated_epochs(knobs.whole_epochs, examples), knobs.openai
        ),
    )
    job = jobs.follow(client, order, job, knobs.openai.timeout, knobs.openai.poll_seconds)
    with readable_errors(url):
        curves = results.curves(client, job)
        name, step = results.model(client, job, knobs.openai.checkpoint)
    _log(curves, log)
    shutil.rmtree(TUNED, ignore_errors=True)
    record = {"model": name, "base": job.model, "endpoint": url, "job": job.id, "fingerprint": order.fingerprint}
    files.write_json(_TUNED_RECORD, record)
    notice(f"tuned: {name} from job {job.id}, recorded in {_TUNED_RECORD}")
    return Result(_metrics(curves, tokens, step), _facts(job, name, time.perf_counter() - begin))


def _log(curves: list[results.Row], log: Log) -> None:
    for row in curves:
        for columns in (HISTORY, VALIDATION_HISTORY):
            if row.keys() >= set(columns):
                log({name: row[name] for name in columns})


def _metrics(curves: list[results.Row], tokens: int, step: int | None) -> dict[str, Any]:
    """Reproducible metrics: steps, tokens of the train split, validation loss at the chosen checkpoint."""
    until = [row for row in curves if step is None or row["step"] <= step]
    metrics: dict[str, Any] = {"steps": until[-1]["step"]} if until else {}
    measured = [row["validation_loss"] for row in until if "validation_loss" in row]
    return metrics | {"tokens": tokens} | ({"validation_loss": measured[-1]} if measured else {})


def _facts(job: FineTuningJob, model: str, seconds: float) -> dict[str, Any]:
    trained = job.trained_tokens
    return {
        "seconds": round(seconds, 1),
        "job": job.id,
        "model": model,
        "trained_tokens": trained,
        "price_usd": prices.training(job.model, trained) if trained else None,
        "job_seconds": job.finished_at - job.created_at if job.finished_at else None,
        "hyperparameters": job.hyperparameters.to_dict() if job.hyperparameters else None,
        "versions": {"openai": openai.__version__},
    }
