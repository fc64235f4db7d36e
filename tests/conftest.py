import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder that holds the shipped params.yaml and is the current folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A folder with a tokenizer, a chat template and a model with random weights, small enough to train in seconds."""
    from tests.small import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(project, small_base):
    """The project with the small base model in its place."""
    text = Path("params.yaml").read_text()
    head, _, tail = text.partition("  model: pypi:")
    tail = tail.partition("revision:")[2].partition("\n")[2]
    first, _, rest = head.rpartition("unsloth:\n")
    text = f"{first}unsloth:\n{rest}  model: {small_base}\n  revision: null\n{tail}"
    Path("params.yaml").write_text(text)
    from stages import base as stage

    stage.main()
    return small_base
