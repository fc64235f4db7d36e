"""Fine-tuning by a hosted service: create one paid job and follow it until it ends."""

import json
import shutil
import time
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from stages import params
from stages.backends.openai.base import RECORD, endpoint_of, require_served
from stages.backends.openai.base.client import connect, readable_errors
from stages.backends.openai.base.replies import Optional, field, number
from stages.backends.openai.common import prices
from stages.backends.openai.common.prices import Plan, Prices
from stages.backends.openai.reader import HostedChat
from stages.backends.openai.training import jobs, preflight, results
from stages.backends.openai.training.following import follow
from stages.backends.openai.training.order import Order
from stages.backends.protocol import Log, Result
from stages.core import files
from stages.core.cli import notice
from stages.core.paths import SPLIT_REPORT, TUNED
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
    order, client, paid = Order.make(url, knobs), connect(url), Prices.of(url, knobs.openai)

    def before_paying() -> None:
        require_served(knobs.openai.model)
        prices.check(_plan(knobs, tokens, examples), paid, url, knobs.openai)

    offers = Optional()
    job = jobs.find_or_create(client, order, before_paying, offers)
    job = follow(client, order, job, knobs.openai.timeout, knobs.openai.poll_seconds, offers)
    jobs.save(order, job.id)
    with readable_errors(url):
        name, step = results.model(client, job, knobs.openai.checkpoint, knobs.openai.chat_model)
    curves = results.curves(client, job)
    _log(curves, log)
    facts = _facts(job, name, paid, time.perf_counter() - begin) | _identity(order)
    shutil.rmtree(TUNED, ignore_errors=True)
    files.write_json(_TUNED_RECORD, _record(name, job, order, paid, knobs) | {"price_usd": facts["price_usd"]})
    notice(f"tuned: {name} from job {job.id}, recorded in {_TUNED_RECORD}")
    return Result(_metrics(curves, tokens, step), facts)


def _plan(knobs: Params, tokens: int, examples: int) -> Plan:
    """What will be paid, if the test split of the last split report is evaluated."""
    test = json.loads(SPLIT_REPORT.read_text(encoding="utf-8"))["test"]
    return Plan(
        tokens=tokens,
        epochs=prices.estimated_epochs(knobs.whole_epochs, examples),
        prompts=test["tokens"],
        answers=test["conversations"] * knobs.evaluate.max_new_tokens,
        base=knobs.openai.base_chat_model is not None,
    )


def _record(name: str, job: FineTuningJob, order: Order, paid: Prices, knobs: Params) -> dict[str, Any]:
    """What evaluate needs of the tuned model: the names to chat with, where, and the prices."""
    base = knobs.openai.base_chat_model
    return {
        "model": name,
        "base": (field(job, "model", str) or order.model) if base == "auto" else base,
        "endpoint": order.endpoint,
        "job": job.id,
        "fingerprint": order.fingerprint,
        "prices": vars(paid),
    }


def _identity(order: Order) -> dict[str, Any]:
    """By what the job is found again, and what protects against paying twice."""
    return {"fingerprint": order.fingerprint, "paid_once": order.saved().get("guarantee")}


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


def _facts(job: FineTuningJob, model: str, paid: Prices, seconds: float) -> dict[str, Any]:
    trained, begin, end = (number(job, name) for name in ("trained_tokens", "created_at", "finished_at"))
    chosen: Any = getattr(job, "hyperparameters", None)
    return {
        "seconds": round(seconds, 1),
        "job": job.id,
        "model": model,
        "trained_tokens": None if trained is None else int(trained),
        "price_usd": paid.of_training(trained) if trained else None,
        "job_seconds": int(end - begin) if begin and end else None,
        "hyperparameters": chosen.to_dict() if hasattr(chosen, "to_dict") else None,
        "versions": {"openai": openai.__version__},
    }
