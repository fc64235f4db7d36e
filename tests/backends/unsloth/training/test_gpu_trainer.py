"""Our trainer on TRL's as Unsloth rewrites it for a GPU, driven on the CPU (see support/gpu_trainer.py)."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages import params
from stages.backends.unsloth.training import run as training
from tests.conftest import ROOT
from tests.support.gpu_trainer import CHANGED

HERE = Path(__file__)
# Defaults of Unsloth's that may stay: it derives the number format from the model's, and counts no tokens of its own.
LEFT = {"bf16", "include_num_input_tokens_seen"}


@pytest.mark.slow
def test_training_on_the_rewritten_trainer_is_the_same():
    names = ("test_run.py", "test_checkpoints.py", "test_gpu_attention.py")
    tests = [HERE, *map(HERE.with_name, names)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.gpu_trainer", "-m", "not slow", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.skipif(not CHANGED, reason="run beside the rewritten trainer, by the test above")
def test_every_default_that_unsloth_replaces_is_given(project, monkeypatch):
    import trl

    given = {}
    monkeypatch.setattr(trl, "SFTConfig", lambda **options: given.update(options))
    training._arguments(Path("kept"), 10, params.load(), fresh=True)
    assert CHANGED["gradient_accumulation_steps"] == (1, 2)
    assert CHANGED.keys() - given.keys() <= LEFT
