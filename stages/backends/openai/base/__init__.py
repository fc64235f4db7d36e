"""The base model at its endpoint, recorded in `models/base`."""

import datetime
import json
from pathlib import Path

import openai

from stages.backends.openai.base import models
from stages.backends.openai.base.client import connect, describe, endpoint, readable_errors
from stages.core import files
from stages.core.cli import UserError, notice
from stages.core.paths import BASE
from stages.params import Params

RECORD = BASE / "base.json"


def prepare(knobs: Params) -> str:
    """Check that the endpoint serves the model, and record both.

    Raises:
        UserError: the model is unknown, shut down, or not accessible with this key.
    """
    url, model = endpoint(knobs), knobs.openai.model
    client = connect(url)
    with readable_errors(url):
        try:
            client.models.retrieve(model)
        except openai.NotFoundError as error:
            raise UserError(_not_found(model, url, error)) from error
        # A key that cannot list jobs cannot create one either: fail now, not after the uploads.
        client.fine_tuning.jobs.list(limit=1)
    end = models.shut_down(model)
    if end and end > datetime.date.today():
        notice(f"openai: {model} will be shut down by OpenAI on {end}")
    files.write_json(RECORD, {"model": model, "endpoint": url})
    return f"{model} at {url}"


def _not_found(model: str, url: str, error: openai.NotFoundError) -> str:
    if error.code != "model_not_found":
        return f"{describe(error, url)}; check that openai.base_url is complete, including /v1 or similar"
    end = models.shut_down(model)
    if end and end <= datetime.date.today():
        return f"openai.model: {model} was shut down by OpenAI on {end}, and {url} does not serve it; choose another"
    return (
        f"openai.model: '{model}' does not exist at {url}, or not for this key; check openai.model and openai.base_url"
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
