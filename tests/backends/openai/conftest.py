"""A project that uses a local stand-in for the service."""

import pytest

from stages.backends.openai.base import client
from stages.backends.openai.training import jobs, uploads
from stages.core import files
from stages.core.paths import BASE
from tests.conftest import set_params
from tests.support.hosted import MODEL, talk, write_splits
from tests.support.openai_server import OpenAIServer

# OpenAI's of gpt-3.5-turbo, in US dollars per million tokens; a service on this machine would be free.
PRICES = {"training": 8.0, "base_input": 0.5, "base_output": 1.5, "tuned_input": 3.0, "tuned_output": 6.0}


@pytest.fixture
def server(monkeypatch):
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        yield server
        assert server.violations == []


@pytest.fixture
def hosted(project, server, monkeypatch):
    """A project with splits and `backend: openai`, whose endpoint is the local server."""
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "home"))
    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(uploads, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(client, "_RETRIES", 1)
    monkeypatch.setattr(client, "_SECONDS", 1.0)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    set_params(backend="openai", openai__poll_seconds=0.01, evaluate__resamples=100, batch_size=4)
    set_params(openai__prices=PRICES)
    write_splits(
        train=[talk(n) for n in range(12)],
        validation=[talk(n) for n in range(20, 23)],
        test=[talk(n) for n in range(3)],
    )
    files.write_json(BASE / "base.json", {"model": MODEL, "endpoint": server.url})
    return server
