"""A training that diverges stops, reports why, and keeps the best model."""

import math
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from stages.backends.unsloth.training.weight_change import Weights
from stages.core.paths import TUNED, VALIDATION_HISTORY
from tests.conftest import use_base
from tests.support.trainings import rows

DIVERGING = {"optim": "sgd", "lr": 1.0, "max_grad_norm": None, "layers__lr": {"lora_B": 1000.0}, "checkpoint__every": 1}


def test_a_training_that_diverges_reports_step_and_cause_and_keeps_the_best_model(train):
    error = train(**DIVERGING, epochs=50, batch_size=8)
    first, *rest = error.splitlines()
    assert re.fullmatch("training diverged after step [0-9]+: the (validation loss|loss|gradient) is NaN.*", first)
    assert "lr 1 is probably too high: try lr 0.1, a larger warmup_ratio, max_grad_norm: 1.0" in rest[0]
    assert not TUNED.exists()
    measured = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)][1:]
    epoch = measured.index(min(measured)) + 1
    assert f"the best model so far (epoch {epoch}, step {2 * epoch}) is in " in rest[1]
    kept = Path(rest[1].partition(" is in ")[2])
    weights = Weights(kept)
    assert max(float(weights[name].abs().max()) for name in weights) < 1000, "weights grow before the loss is infinite"
    steps = [int(path.name.partition("-")[2]) for path in kept.parent.glob("checkpoint-*")]
    assert all(step <= 2 * epoch for step in steps), "training never resumes from a diverged checkpoint"


def test_a_training_that_diverges_before_the_first_evaluation_keeps_nothing(train):
    error = train(**{**DIVERGING, "layers__lr": {".": 1000.0}}, epochs=1, batch_size=1, warmup_ratio=0.0)
    assert error is not None and error.startswith("training diverged after step ")
    assert error.splitlines()[2] == "no epoch was completed, so there is no model to keep"
    assert not list(Path(".state/training").glob("*/checkpoint-*"))


def test_a_corrupt_base_model_is_reported_as_the_cause(train, small_base, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    use_base(broken)
    error = train()
    assert error.startswith("training cannot start: the validation loss is NaN or infinite before the first update")
    assert "the cause is not lr but the base model" in error and "overflow in bfloat16" in error
