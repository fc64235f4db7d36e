"""The base model at its endpoint, recorded in `models/base`."""

import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import openai

from stages.backends.openai.base import models
from stages.backends.openai.base.client import connect, describe, endpoint, message, not_offered, readable_errors
from stages.backends.openai.base.replies import field, listed
from stages.core import files
from stages.core.cli import UserError, notice
from stages.core.paths import BASE
from stages.params import Params

RECORD = BASE / "base.json"

# A job that does not exist, to see whether the endpoint has jobs at all.
_NO_JOB = "ftjob-none"
# How many jobs are looked through for one of a model that is no longer served.
_MOST_JOBS = 1000


def prepare(knobs: Params) -> str:
    """Check that the endpoint fine-tunes and serves the model, and record both.

    Raises:
        UserError: the model is unknown, shut down, or not accessible with this key, or the endpoint does not fine-tune.
    """
    url, model = endpoint(knobs), knobs.openai.model
    client = connect(url)
    with readable_errors(url):
        served, found = _look_up(client, url, model)
        # A key that cannot list jobs cannot create one either: fail now, not after the uploads.
        _require_jobs(client, url, looked_up=found is not None)
    if not served and not _was_tuned(client, model):
        raise UserError(_not_served(model, url, found))
    if not served:
        notice(f"openai: {url} serves {model} no more; only jobs that exist already can be used")
    end = models.shut_down(model, url, found)
    if served and end and end >= datetime.date.today():
        notice(f"openai: {model} will be shut down on {end}")
    record = {"model": model, "endpoint": url}
    files.write_json(RECORD, record if served else record | {"served": False})
    return f"{model} at {url}"


def _look_up(client: openai.OpenAI, url: str, model: str) -> tuple[bool, Any]:
    """Whether the model is served, as far as known, and what the service says of it; None if it looks up no models."""
    try:
        return True, client.models.retrieve(model)
    except openai.APIStatusError as error:
        if _is_unknown_model(error):
            return False, error
        if not not_offered(error):
            raise
        notice(f"openai: {describe(error, url)}. The service looks up no models, so {model} is taken as it is")
        return True, None


def _is_unknown_model(error: openai.APIStatusError) -> bool:
    """Whether the service says that the model does not exist; a 404 alone may mean that there is no such page."""
    said = message(error).lower()
    named = "model" in said and any(word in said for word in ("not exist", "not found", "unknown", "shut down"))
    return error.code == "model_not_found" or (error.status_code in (404, 410) and named)


def _require_jobs(client: openai.OpenAI, url: str, looked_up: bool) -> None:
    """Check that the endpoint has fine-tuning jobs; listing them is optional.

    Raises:
        UserError: it has none.
    """
    try:
        client.fine_tuning.jobs.list(limit=1)
    except openai.APIStatusError as error:
        if not not_offered(error):
            raise
        if error.status_code == 404 and message(error) == _about_no_job(client):
            end = "" if looked_up else "; check that openai.base_url is complete, including /v1 or similar"
            raise UserError(f"{describe(error, url)}; this endpoint has no fine-tuning jobs{end}") from error
        notice(f"openai: {describe(error, url)}. The service lists no jobs")


def _about_no_job(client: openai.OpenAI) -> str | None:
    """What the service says about a job that does not exist: the same as about any page if it has no jobs."""
    try:
        client.fine_tuning.jobs.retrieve(_NO_JOB)
    except openai.APIStatusError as error:
        return message(error)
    return None


def _was_tuned(client: openai.OpenAI, model: str) -> bool:
    """Whether a job tuned the model before it was shut down, as the service or this machine knows."""
    try:
        jobs = itertools.islice(listed(client.fine_tuning.jobs.list(limit=100)), _MOST_JOBS)
        if any(field(job, "model", str) == model for job in jobs):
            return True
    except openai.OpenAIError:
        pass
    states = (json.loads(path.read_text(encoding="utf-8")) for path in files.state_dir("openai").glob("*.json"))
    return any(state.get("model") == model and state.get("job") for state in states)


def _not_served(model: str, url: str, error: openai.APIStatusError) -> str:
    end = models.shut_down(model, url)
    if end and end <= datetime.date.today():
        return f"openai.model: {model} was shut down by OpenAI on {end}, and {url} does not serve it; choose another"
    return (
        f"openai.model: '{model}' does not exist at {url}, or not for this key ({message(error)}); check openai.model"
        " and openai.base_url"
    )


def endpoint_of(record: Path, knobs: Params) -> str:
    """Return the endpoint; it must be the recorded one, because DVC does not track the environment.

    Raises:
        UserError: the endpoint has changed.
    """
    recorded, url = json.loads(record.read_text(encoding="utf-8")), endpoint(knobs)
    if recorded["endpoint"] != url:
        raise UserError(
            f"{recorded['model']} is at {recorded['endpoint']}, but openai.base_url or OPENAI_BASE_URL is {url};"
            " set it back, or run `dvc repro -f base` to use the new endpoint"
        )
    return url


def require_served(model: str) -> None:
    """Refuse a new job if the base stage found that the model is served no more.

    Raises:
        UserError: it is.
    """
    if not json.loads(RECORD.read_text(encoding="utf-8")).get("served", True):
        raise UserError(f"openai.model: {model} is served no more, so no new job can be created; choose another model")
