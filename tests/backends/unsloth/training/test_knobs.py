"""Each training parameter has the documented effect in real runs of the stage."""

import json
import math
import re

import pytest
import torch
from msgspec.structs import replace

from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.training.weight_change import Weights
from stages.core.paths import GROUPS, HISTORY, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY, WEIGHTS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation
from tests.conftest import talks
from tests.support.trainings import adapter, rows


def rates():
    """The learning rate of each step, as a share of lr = 0.01."""
    return [float(row["lr"]) / 0.01 for row in rows(HISTORY)]


def losses():
    return [float(row["train_loss"]) for row in rows(HISTORY)]


# 10 steps, two of them warm-up if warmup_ratio is 0.2. From the definitions of the schedules.
SCHEDULES = {
    "constant": [0, 0.5] + [1] * 8,
    "linear": [0, 0.5] + [(10 - n) / 8 for n in range(2, 10)],
    "cosine": [0, 0.5] + [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)],
    "cosine_with_restarts": [0, 0.5] + [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)] * 2,
    "polynomial": [0, 0.5] + [(1 - n / 8) ** 2 for n in range(8)],
    "inverse_sqrt": [0, 0.5] + [math.sqrt(2 / n) for n in range(2, 10)],
    "warmup_stable_decay": [0, 0.5] + [1] * 4 + [1 - n / 4 for n in range(4)],
}


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_the_learning_rate_follows_the_scheduler(train, scheduler):
    error = train(
        lr=0.01,
        batch_size=4,
        epochs=2.5,
        warmup_ratio=0.2,
        scheduler=scheduler,
        schedule__num_cycles=2,
        schedule__power=2.0,
        schedule__decay_ratio=0.4,
    )
    assert error is None
    assert rates() == pytest.approx(SCHEDULES[scheduler], rel=1e-5, abs=1e-9)


# Other parameters as in params.yaml; 16 conversations.
ROUNDED = {
    "no warm-up": ({"scheduler": "inverse_sqrt", "warmup_ratio": 0.0}, [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2]),
    # 3 steps, half of which are rounded to 2.
    "warm-up and decay meet": (
        {"scheduler": "warmup_stable_decay", "warmup_ratio": 0.5, "schedule__decay_ratio": 0.5, "epochs": 0.75},
        [0, 0.5, 1],
    ),
    "warm-up is all": ({"scheduler": "linear", "warmup_ratio": 0.9}, [0, 1 / 3, 2 / 3, 1]),
    "one step": ({"scheduler": "warmup_stable_decay", "warmup_ratio": 0.6, "epochs": 0.25}, [1]),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_few_steps_still_reach_the_peak(train, case):
    knobs, expected = ROUNDED[case]
    assert train(**{"lr": 0.01, "batch_size": 4, "epochs": 1, **knobs}) is None
    assert rates() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def weighted(count, weight):
    """Conversations whose answers have the weights `weight(number)`."""
    return [
        Conversation((one.messages[0], one.messages[1], replace(one.messages[2], weight=weight(number))))
        for number, one in enumerate(talks(count))
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_conversations_of_weight_0_are_not_learned(train, packing):
    # With batches of one conversation, every fifth batch has nothing to learn.
    conversations.write_jsonl(SPLITS["train"], weighted(16, lambda number: int(number % 5 > 0)))
    assert train(packing=packing, batch_size=1, epochs=1, lr=0.01) is None
    assert sorted(losses())[:4] == [0.0] * 4 and min(sorted(losses())[4:]) > 1
    assert all(float(row["change"]) > 0 for row in rows(WEIGHTS))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_with_nothing_to_learn_is_rejected(train, split):
    conversations.write_jsonl(SPLITS[split], weighted(4, lambda _: 0))
    error = train(epochs=1)
    assert error.startswith(
        f"data/splits/{split}.jsonl: nothing to learn, because all assistant messages have weight 0"
    )


def test_fractions_of_an_epoch(train):
    assert train(epochs=1.5, batch_size=4) is None
    assert [float(row["epoch"]) for row in rows(VALIDATION_HISTORY)] == [0, 1, 1.5]
    assert json.loads(TRAIN_METRICS.read_text())["steps"] == 6


def test_training_stops_early_without_improvement(train):
    # A rate so high that the loss only rises.
    assert train(lr=1.0, epochs=20, batch_size=4, early_stopping_patience=2, warmup_ratio=0.0) is None
    metrics = json.loads(TRAIN_METRICS.read_text())
    after = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)][1:]
    assert metrics["steps"] < 80 and metrics["steps"] == 4 * len(after)
    assert len(after) == metrics["best_epoch"] + 2 and after.index(min(after)) + 1 == metrics["best_epoch"]


def test_layers_learn_at_their_own_rates(train):
    error = train(lr=0.01, layers__lr_decay=0.5, layers__lr={"mlp": 0.1, r"layers\.1\.mlp\.up": 0}, epochs=1)
    assert error is None
    # Top layer 1, the layer below 1/2; mlp a tenth of that; up_proj of layer 1 frozen.
    found = {float(row["lr"]): row["layers"] for row in rows(GROUPS)}
    assert found == pytest.approx({0.01: "1", 0.005: "0", 0.001: "1", 0.0005: "0", 0.0: "1"})
    moved = {(row["layer"], row["module"]): float(row["change"]) for row in rows(WEIGHTS)}
    assert moved["1", "mlp.up_proj"] == 0 < moved["1", "mlp.down_proj"] < moved["1", "self_attn.q_proj"] / 2


def test_the_history_has_lr_even_if_no_group_uses_it(train):
    assert train(lr=0.01, layers__lr={".": 0.5}, epochs=1, scheduler="constant", warmup_ratio=0.0) is None
    assert set(rates()) == {1.0} and {float(row["lr"]) for row in rows(GROUPS)} == {0.005}


def test_weight_decay_applies_to_matrices_only(train):
    # One step with lr 0.1 and decay 1: AdamW shrinks each weight by a tenth.
    ends = {}
    for decay in (0.0, 1.0):
        assert train(method="full", lr=0.1, weight_decay=decay, batch_size=16, epochs=1, warmup_ratio=0.0) is None
        ends[decay] = Weights(TUNED)
    base = Weights(weights_folder())
    for name in base:
        difference = ends[1.0][name] - ends[0.0][name]
        expected = -0.1 * base[name] if base[name].ndim == 2 else torch.zeros_like(base[name])
        # The tuned weights are saved in bf16.
        torch.testing.assert_close(difference, expected, rtol=0.05, atol=0.002)


@pytest.mark.parametrize("knob", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_dropout_affects_training_but_not_evaluation(train, knob):
    found = {}
    for name, values in (("without", {}), ("with", knob)):
        assert train(epochs=1, lr=0.01, **values) is None
        found[name] = (losses(), [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)])
    assert found["with"][1][0] == found["without"][1][0]
    assert found["with"][0][1:] != found["without"][0][1:]


def test_label_smoothing_raises_only_the_training_loss(train):
    found = {}
    for smoothing in (0.0, 0.3):
        assert train(label_smoothing_factor=smoothing, epochs=1) is None
        found[smoothing] = (losses()[0], rows(VALIDATION_HISTORY)[0]["validation_loss"])
    assert found[0.3][1] == found[0.0][1] and found[0.3][0] != found[0.0][0]


@pytest.mark.parametrize("optim", ["adafactor", "sgd"])
def test_optimizers_differ(train, optim):
    changes = []
    for name in ("adamw_torch", optim):
        assert train(optim=name, epochs=1, lr=0.001) is None
        changes.append([row["change"] for row in rows(WEIGHTS)])
    assert changes[0] != changes[1]


def test_gradients_are_clipped(train):
    # SGD's step is lr times the gradient: clipped to 1e-4, one step moves the weights by lr * 1e-4.
    moved = {}
    knobs = {"optim": "sgd", "lr": 1.0, "weight_decay": 0.0, "batch_size": 16, "epochs": 1, "warmup_ratio": 0.0}
    for norm in (None, 0.0001):
        assert train(max_grad_norm=norm, **knobs) is None
        tensors = adapter()
        moved[norm] = sum(float(tensors[name].square().sum()) for name in tensors if "lora_B" in name) ** 0.5
    # B starts at zero, where A's gradient is zero: only B changes.
    assert moved[0.0001] == pytest.approx(0.0001, rel=0.01) and moved[None] > 0.01


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_only_recomputes_the_layers(observed, method, packing):
    attentions, found = [], []
    for checkpointing in (False, True):
        error, calls = observed(
            "calls",
            gradient_checkpointing=checkpointing,
            packing=packing,
            method=method,
            epochs=1,
            batch_size=4,
            lr=0.01,
        )
        assert error is None
        attentions.append(calls["LlamaAttention"])
        found.append(losses())
    # 4 steps and 2 evaluations with 2 layers each; the layers are recomputed only in steps. With trees three passes
    # look whether the mask is seen.
    before = 3 if packing else 0
    assert attentions == [(before + 4 + 2) * 2, (before + 4 + 2 + 4) * 2]
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_packing_makes_trees_and_does_not_change_the_result(observed):
    found = {}
    for packing in (True, "auto", False):
        error, calls = observed("calls", packing=packing, epochs=1, lr=0.01, batch_size=4)
        assert error is None and calls.get("trees", 0) == (0 if packing is False else 1 + 4 + 2)
        # Unsloth's own loss calls the whole model; with trees only its body is called, but for one in the trial.
        assert (calls["LlamaForCausalLM"] > 1) == (packing is False)
        found[packing] = losses()
    assert found[True] == found["auto"] == pytest.approx(found[False], abs=0.02)


@pytest.mark.parametrize("method", ["neftune", "fgm", "pgd", "freelb"])
def test_adversarial_training_changes_the_weights(train, method):
    ends = []
    for name in ("none", method):
        assert train(adversarial__method=name, adversarial__epsilon=2.0, epochs=1, lr=0.003, batch_size=4) is None
        ends.append([row["change"] for row in rows(WEIGHTS)])
    assert ends[0] != ends[1]


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"optim": "adamw_8bit"}, "optim: adamw_8bit needs an NVIDIA GPU"),
        ({"unsloth__max_length": 2049}, "max_length: 2049 exceeds the model's context of 2048 tokens"),
        ({"unsloth__max_length": 10**9}, "max_length: 1000000000 is not allowed; expected a whole number >= 16 and <="),
        ({"lora__target_modules": ["q_prj"]}, "no module 'q_prj'; did you mean 'q_proj'?"),
        ({"lora__target_modules": "nothing"}, "lora.target_modules: .*nothing"),
        ({"lora__layers_to_transform": [0, 2]}, "the model has no layer 2; choose from 0 to 1"),
        ({"lora__bias": "all"}, "lora.bias: all has no effect, because the model has no biases"),
        ({"layers__lr": {"mpl": 0.5}}, "layers.lr: 'mpl' matches no trained weight; their names contain mlp"),
        ({"layers__lr": {".": 0}}, "layers.lr: 0 freezes every trained weight"),
        ({"method": "full", "dropout": 0.1}, "dropout: for the adapters of LoRA, and method: full has none"),
        ({"method": "qlora", "lora__init_lora_weights": "pissa"}, "changes the base's weights"),
        (
            {"lora__bias": "lora_only", "lora__init_lora_weights": "pissa"},
            "bias: lora_only is not allowed with .*pissa",
        ),
        ({"lora__bias": "all", "lora__init_lora_weights": "olora"}, "bias: all is not allowed with .*olora"),
        ({"lora__r": 3, "lora__init_lora_weights": "orthogonal"}, "orthogonal needs an even r, not 3"),
        (
            {"lora__target_modules": "("},
            "'\\(' is not a regular expression",
        ),
        ({"lora__target_modules": ".*_proj", "lora__layers_to_transform": [0]}, "a pattern, which names layers itself"),
        ({"scheduler": "warmup_stable_decay", "warmup_ratio": 0.9}, "warm-up and decay do not fit"),
    ],
)
def test_parameters_that_cannot_work_are_rejected_before_data_is_read(train, knobs, message):
    for split in SPLITS.values():
        split.unlink()
    error = train(**knobs)
    assert error is not None and "Traceback" not in error
    assert re.search(message, error), error
