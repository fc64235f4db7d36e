"""The pipeline does the same wherever it runs: in a folder with an odd name, and under another hash seed."""

import shutil
from pathlib import Path

import pytest

from stages.core.paths import EXPORT, METRICS, TUNED
from tests.support.commands import STAGES, dvc, ran

pytestmark = pytest.mark.slow


def test_a_project_folder_may_have_any_name(clone, tmp_path, monkeypatch):
    folder = tmp_path / "it's a *folder* (new) & $HOME"
    shutil.copytree(clone, folder, symlinks=True)
    monkeypatch.chdir(folder)
    before = METRICS.read_bytes()
    assert ran(dvc("repro", "-f")) == STAGES
    assert METRICS.read_bytes() == before


def test_the_hash_seed_changes_no_output(clone, monkeypatch):
    def outputs():
        dvc("repro", "-f", "finetune")
        dvc("repro", "-f", "-s", "export")
        files = [path for folder in (TUNED, EXPORT) for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path: path.read_bytes() for path in files}

    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(outputs())
    assert found[0] == found[1] and Path("models/tuned/adapter_config.json") in found[0]
