"""What this backend needs: a model that is still served, a key, and a reachable endpoint."""

import datetime
import os
from collections.abc import Callable, Mapping

from stages.backends.openai.base import models
from stages.backends.openai.base.client import below, endpoint
from stages.core.cli import UserError
from stages.core.diagnosis import Diagnosis
from stages.params import Params

_ANSWER_SECONDS = 5.0


def model(knobs: Params) -> Diagnosis:
    """Check that the model has not been shut down, as far as known here: for OpenAI's own address."""
    name = knobs.openai.model
    try:
        end = models.shut_down(name, endpoint(knobs))
    except UserError:
        # The check of the endpoint reports it.
        end = None
    if end and end <= datetime.date.today():
        return Diagnosis(f"{name} was shut down by OpenAI on {end}", "see docs/hosted-models.md", needed=False)
    return Diagnosis(f"{name}, hosted" + (f"; OpenAI will shut it down on {end}" if end else ""))


def _key(knobs: Params) -> Diagnosis:
    if os.environ.get("OPENAI_API_KEY", "").strip():
        return Diagnosis("OPENAI_API_KEY is set")
    return Diagnosis("OPENAI_API_KEY is not set", "export OPENAI_API_KEY=... for backend: openai")


def _endpoint(knobs: Params) -> Diagnosis:
    """Check that the endpoint answers, without sending the key."""
    import httpx

    try:
        url = endpoint(knobs)
        status = httpx.get(below(url, "/models"), timeout=_ANSWER_SECONDS).status_code
    except UserError as error:
        return Diagnosis(str(error), "fix openai.base_url or OPENAI_BASE_URL")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Diagnosis(f"{url} does not answer ({error})", "check the network and the address for backend: openai")
    return Diagnosis(f"{url} answers (HTTP {status} without a key)")


ACCESS: Mapping[str, Callable[[Params], Diagnosis]] = {"key": _key, "endpoint": _endpoint}
