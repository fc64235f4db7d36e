"""A running endpoint in a project of its own."""

import shutil

import pytest

from tests.conftest import ROOT, set_params
from tests.support.endpoint import Endpoint

NAMED = ["gpt-3.5-turbo-0125=tiny"]


def prepare(folder, small_base, patch):
    """Let the project in `folder`, which is the current one, have the small base as `tiny`."""
    (folder / "tiny").symlink_to(small_base)
    set_params(unsloth__model="tiny", unsloth__revision=None, epochs=3, batch_size=8)
    # The endpoint sets it for the whole process, and so it is undone.
    patch.setenv("DVC_ROOT", str(folder))


@pytest.fixture
def endpoint_of(project, small_base, monkeypatch):
    """endpoint_of(**options) is an endpoint in the project that is not running yet; its base is `tiny`."""
    prepare(project, small_base, monkeypatch)
    return Endpoint


@pytest.fixture
def endpoint(endpoint_of):
    """A running endpoint, whose answers are all as OpenAI's description says."""
    with endpoint_of(models=NAMED).running() as running:
        yield running


@pytest.fixture
def client(endpoint):
    with endpoint.client() as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory, small_base):
    """A running endpoint for all tests of a module that do not mind what the others leave."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder, small_base, patch)
        with Endpoint(models=NAMED).running() as running:
            yield running


@pytest.fixture(scope="module")
def asker(shared):
    with shared.client() as client:
        yield client
