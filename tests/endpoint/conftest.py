"""A running endpoint in a project of its own."""

import os

import pytest

from tests.conftest import set_params
from tests.support.endpoint import Endpoint


@pytest.fixture
def endpoint_of(project, small_base, monkeypatch):
    """endpoint_of(**options) is an endpoint in the project that is not running yet; its base is `tiny`."""
    (project / "tiny").symlink_to(small_base)
    set_params(unsloth__model="tiny", unsloth__revision=None)
    # The endpoint sets it for the whole process.
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setitem(os.environ, "DVC_ROOT", str(project))
    return Endpoint


@pytest.fixture
def endpoint(endpoint_of):
    """A running endpoint, whose answers are all as OpenAI's description says."""
    with endpoint_of(models=["gpt-3.5-turbo-0125=tiny"]).running() as running:
        yield running


@pytest.fixture
def client(endpoint):
    with endpoint.client() as client:
        yield client
