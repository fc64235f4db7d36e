"""Each family's architecture and template from base to export, at a small size and with random weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.export import merged
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from stages.core.paths import HISTORY, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY
from stages.dataset import conversations
from tests.conftest import use_base
from tests.support.families import FAMILIES
from tests.support.small import make_family
from tests.support.trainings import rows

pytestmark = pytest.mark.slow
SHIPPED = {"lora__target_modules": "mlp", "lora__layers_to_transform": "upper_half"}
STEP = "stages.backends.unsloth.training.trainer.Trainer.training_step"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_answers_and_its_loss_is_that_of_plain_libraries(train, tmp_path, family):
    use_base(make_family(tmp_path / "family", FAMILIES[family]))
    assert train(lr=0.01, epochs=2, batch_size=4, **SHIPPED) is None
    history = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    assert min(history) < history[0] - 0.1
    pair = LocalPair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    validation = list(conversations.read_jsonl(SPLITS["validation"]))
    found = pair.likelihoods(validation, tuned=True)
    assert found.nll.sum() / found.tokens.sum() == pytest.approx(min(history), rel=0.03)
    answers, _ = pair.answers(validation, True, 4)
    assert len(answers) == len(validation)
    merged.write(tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert Chat.load(tmp_path / "merged").render(validation[0]) == Chat.load().render(validation[0])
    for talk in validation:
        ids = torch.tensor([pair.chat.example(talk).input_ids])
        with torch.inference_mode(), pair.models.using(True) as tuned:
            # The adapter's product is rounded to bf16 once more when it is added to the weights.
            torch.testing.assert_close(whole(ids).logits, tuned(ids).logits, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_training_of_a_family_equals_an_undisturbed_one(train, observed, tmp_path, family):
    use_base(make_family(tmp_path / "family", FAMILIES[family]))
    knobs = {"lr": 0.01, "epochs": 2, "batch_size": 8, "dropout": 0.1, "checkpoint__every": 1, **SHIPPED}
    assert train(**knobs) is None
    undisturbed = outcome()
    assert observed("kill", STEP, 3, **knobs) == ["the process ended with -9", {}]
    for path in (HISTORY, VALIDATION_HISTORY):
        path.unlink()
    assert train(**knobs) is None
    assert outcome() == undisturbed


def outcome():
    weights = sorted(TUNED.glob("*.safetensors"))
    return [path.read_bytes() for path in (*weights, HISTORY, VALIDATION_HISTORY, TRAIN_METRICS)]
