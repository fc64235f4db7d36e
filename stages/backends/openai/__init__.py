"""Hosted models behind OpenAI's fine-tuning API, or one that is compatible with it."""

import datetime
import json
import shutil
import time
from pathlib import Path
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from stages import files
from stages.backends import Log, Pair, Reader, Result
from stages.backends.openai import checks, jobs, prices, results
from stages.backends.openai.answers import HostedPair
from stages.backends.openai.chat import HostedChat
from stages.backends.openai.client import connect, describe, endpoint, in_words
from stages.command import UserError, notice
from stages.params import Params
from stages.paths import BASE, TUNED

HISTORY = ("step", "epoch", "train_loss")
VALIDATION_HISTORY = ("step", "epoch", "validation_loss")
_RECORD = BASE / "base.json"
_TUNED_RECORD = TUNED / "model.json"
_IGNORED = (
    "lr, early_stopping_patience, dropout, attention_dropout, weight_decay, scheduler, schedule, warmup_ratio,"
    " label_smoothing_factor, optim, max_grad_norm, gradient_checkpointing, packing, method, lora, layers, adversarial"
    " and checkpoint"
)


def prepare(knobs: Params) -> str:
    """Ask the endpoint about the model and record both.

    Raises:
        UserError: the model is unknown there, shut down, or closed to the key's owner.
    """
    url, model = endpoint(knobs), knobs.openai.model
    client = connect(url)
    with in_words(url):
        try:
            client.models.retrieve(model)
        except openai.NotFoundError as error:
            raise UserError(_not_found(model, url, error)) from error
        # Who may not even list jobs may create none: better known now than after the uploads.
        client.fine_tuning.jobs.list(limit=1)
    end = prices.shut_down(model)
    if end and end > datetime.date.today():
        notice(f"openai: {model} will be shut down by OpenAI on {end}")
    files.write_json(_RECORD, {"model": model, "endpoint": url})
    return f"{model} at {url}"


def _not_found(model: str, url: str, error: openai.NotFoundError) -> str:
    if error.code != "model_not_found":
        return f"{describe(error, url)}; is openai.base_url the whole address, /v1 or the like included?"
    end = prices.shut_down(model)
    if end and end <= datetime.date.today():
        return f"{url} does not serve {model}: OpenAI shut it down on {end}; choose another openai.model or base_url"
    return f"{url} knows no model '{model}', or does not show it to this key; check openai.model and openai.base_url"


def reader() -> Reader:
    """How the hosted model counts tokens."""
    return HostedChat.load()


def finetune(knobs: Params, log: Log) -> Result:
    """Have the service train on the splits, once, and record the hosted model in `models/tuned`.

    Raises:
        UserError: the data or the price is not right, or the service does not finish the job.
    """
    url, begin = _endpoint_of(_RECORD, knobs), time.perf_counter()
    notice(f"openai: the service has no {_IGNORED}; they are ignored")
    examples, tokens = checks.check(knobs, HostedChat(knobs.openai.model))
    order, client = jobs.Order.make(url, knobs), connect(url)
    job = jobs.find_or_create(
        client,
        order,
        before=lambda: prices.estimate(
            knobs.openai.model, tokens, prices.guessed_epochs(knobs.whole_epochs, examples), knobs.openai
        ),
    )
    job = jobs.follow(client, order, job, knobs.openai.timeout, knobs.openai.poll_seconds)
    with in_words(url):
        curves = results.curves(client, job)
        name, step = results.model(client, job, knobs.openai.checkpoint)
    _log(curves, log)
    shutil.rmtree(TUNED, ignore_errors=True)
    record = {"model": name, "base": job.model, "endpoint": url, "job": job.id, "fingerprint": order.fingerprint}
    files.write_json(_TUNED_RECORD, record)
    notice(f"tuned: {name} of job {job.id}, recorded in {_TUNED_RECORD}")
    return Result(_metrics(curves, tokens, step), _facts(job, name, time.perf_counter() - begin))


def _log(curves: list[results.Row], log: Log) -> None:
    for row in curves:
        for columns in (HISTORY, VALIDATION_HISTORY):
            if row.keys() >= set(columns):
                log({name: row[name] for name in columns})


def _metrics(curves: list[results.Row], tokens: int, step: int | None) -> dict[str, Any]:
    """What repeats: steps, tokens of the train split, and the validation loss at the chosen checkpoint."""
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


def pair(knobs: Params) -> Pair:
    """The base model and the tuned one, at the endpoint where it was trained.

    Raises:
        UserError: there is no hosted model, or the environment or the parameters name another endpoint by now.
    """
    if not _TUNED_RECORD.exists():
        raise UserError(
            f"{_TUNED_RECORD} is missing: {TUNED} holds no hosted model, and backend is openai; set backend back, or"
            " run `dvc repro`"
        )
    url = _endpoint_of(_TUNED_RECORD, knobs)
    record = json.loads(_TUNED_RECORD.read_text(encoding="utf-8"))
    return HostedPair(connect(url), url, record["base"], record["model"], knobs.evaluate.batch_size, knobs.seed)


def _endpoint_of(record: Path, knobs: Params) -> str:
    """The endpoint, which must still be the one where the recorded model is: DVC does not see the environment."""
    recorded, url = json.loads(record.read_text(encoding="utf-8")), endpoint(knobs)
    if recorded["endpoint"] != url:
        raise UserError(
            f"{recorded['model']} lives at {recorded['endpoint']}, and openai.base_url or OPENAI_BASE_URL names {url};"
            " set it back, or go on there with `dvc repro -f base`"
        )
    return url
