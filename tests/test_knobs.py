"""Each knob of a training changes what it says: learning rates, weights, losses, as the finetune stage leaves them."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from stages import conversations
from stages.backends.unsloth import weights_folder
from stages.backends.unsloth.chat import Chat
from stages.backends.unsloth.local import Pair
from stages.conversations import Conversation
from stages.paths import GROUPS, HISTORY, RUN, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY, WEIGHTS
from stages.training.movement import Weights

from .conftest import talks, use_base
from .small import make_base


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def rates():
    """Learning rates of the steps, as shares of lr = 0.01."""
    return [float(row["lr"]) / 0.01 for row in rows(HISTORY)]


def losses():
    return [float(row["train_loss"]) for row in rows(HISTORY)]


def adapter():
    return Weights(TUNED)


# 10 steps: two of warm-up where warmup_ratio is 0.2. By hand, from the definitions of the schedules.
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


# The rest of the knobs is as in params.yaml; 16 conversations.
ROUNDED = {
    "no warm-up": ({"scheduler": "inverse_sqrt", "warmup_ratio": 0.0}, [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2]),
    # 3 steps, and half of them, rounded, are 2.
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
    """Conversations of which each has its answer learned with the weight that `weight` gives for its number."""
    return [
        Conversation((one.messages[0], one.messages[1], replace(one.messages[2], weight=weight(number))))
        for number, one in enumerate(talks(count))
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_conversations_of_weight_0_are_not_learned(train, packing):
    # Of the batches of one conversation, every fifth has nothing to learn.
    conversations.write_jsonl(SPLITS["train"], weighted(16, lambda number: int(number % 5 > 0)))
    assert train(packing=packing, batch_size=1, epochs=1, lr=0.01) is None
    assert sorted(losses())[:4] == [0.0] * 4 and min(sorted(losses())[4:]) > 1
    assert all(float(row["change"]) > 0 for row in rows(WEIGHTS))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_with_nothing_to_learn_is_refused(train, split):
    conversations.write_jsonl(SPLITS[split], weighted(4, lambda _: 0))
    error = train(epochs=1)
    assert error.startswith(f"nothing to learn in data/splits/{split}.jsonl: all its assistant messages have weight 0")


def test_fractions_of_an_epoch(train):
    assert train(epochs=1.5, batch_size=4) is None
    assert [float(row["epoch"]) for row in rows(VALIDATION_HISTORY)] == [0, 1, 1.5]
    assert json.loads(TRAIN_METRICS.read_text())["steps"] == 6


def test_it_stops_early_when_nothing_gets_better(train):
    # The rate is so high that the loss only rises.
    assert train(lr=1.0, epochs=20, batch_size=4, early_stopping_patience=2, warmup_ratio=0.0) is None
    metrics = json.loads(TRAIN_METRICS.read_text())
    after = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)][1:]
    assert metrics["steps"] < 80 and metrics["steps"] == 4 * len(after)
    assert len(after) == metrics["best_epoch"] + 2 and after.index(min(after)) + 1 == metrics["best_epoch"]


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
def test_each_method_learns_and_is_loaded_by_plain_libraries(train, method):
    assert train(method=method, lr=0.01 if method != "full" else 0.003, epochs=3, batch_size=4) is None
    history = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    assert min(history) < history[0] - 0.5
    pair = Pair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    found = pair.likelihoods(list(conversations.read_jsonl(SPLITS["validation"])), tuned=True)
    # qlora learned beside a base in 4 bit, and answers beside the whole one.
    near = 0.15 if method == "qlora" else 0.02
    assert found.nll.sum() / found.tokens.sum() == pytest.approx(min(history[1:]), rel=near)
    untouched = pair.likelihoods(list(conversations.read_jsonl(SPLITS["validation"])), tuned=False)
    if method != "qlora":
        assert untouched.nll.sum() / untouched.tokens.sum() == pytest.approx(history[0], rel=0.02)
    modules = {row["module"] for row in rows(WEIGHTS)}
    assert ("mlp.up_proj" in modules) and ("model.embed_tokens" in modules) == (method == "full")
    assert any(name.endswith("lora_magnitude_vector") for name in Weights(TUNED)) == (method == "dora")


def test_qlora_holds_the_base_in_4_bit(train):
    sizes = {}
    for method in ("lora", "qlora"):
        assert train(method=method, epochs=1) is None
        sizes[method] = json.loads(RUN.read_text())["parameters"]
    # bitsandbytes counts two weights of 4 bit as one.
    assert sizes["qlora"] < 0.8 * sizes["lora"]


@pytest.mark.parametrize("bias, expected", [("none", 0), ("lora_only", 2), ("all", 6)])
def test_biases(train, tmp_path, bias, expected):
    # A Qwen2 layer has three biases: of q_proj, k_proj and v_proj.
    base = make_base(tmp_path / "qwen", "qwen2")
    use_base(base)
    assert train(lora__bias=bias, lora__target_modules=["q_proj", "o_proj"], epochs=1, batch_size=4) is None
    moved = [row["module"] for row in rows(WEIGHTS) if row["module"].endswith("bias")]
    assert len(moved) == expected
    assert sum(name.endswith("bias") for name in adapter()) == expected
    # The base keeps its own biases: its answers are those of a model that never saw the adapter.
    talks = list(conversations.read_jsonl(SPLITS["test"]))
    pair = Pair.load(base, TUNED, Chat.load(), batch_size=4)
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    expected_nll = Pair(alone, alone, Chat.load(), 4).likelihoods(talks, tuned=True).nll
    assert pair.likelihoods(talks, tuned=False).nll.tolist() == expected_nll.tolist()
    assert pair.likelihoods(talks, tuned=True).nll.tolist() != expected_nll.tolist()


@pytest.mark.parametrize(
    "modules, expected",
    [
        (["v_proj"], {"self_attn.v_proj"}),
        ("all-linear", {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}),
        (r".*layers\.1\.mlp\.(up|down)_proj", {"mlp.up_proj", "mlp.down_proj"}),
        (["layers.0.mlp.up_proj"], {"mlp.up_proj"}),
    ],
)
def test_target_modules(train, modules, expected):
    assert train(lora__target_modules=modules, epochs=1) is None
    assert {row["module"] for row in rows(WEIGHTS)} == expected
    assert all(float(row["change"]) > 0 for row in rows(WEIGHTS))


def test_layers_to_transform(train):
    assert train(lora__layers_to_transform=[1], epochs=1) is None
    assert {row["layer"] for row in rows(WEIGHTS)} == {"1"}


@pytest.mark.parametrize("rslora, scale", [(False, 2.0), (True, 8.0)])
def test_rank_and_scale(train, rslora, scale):
    assert train(lora__r=16, lora__alpha=32, lora__use_rslora=rslora, epochs=1) is None
    tensors = adapter()
    key = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_A" in name)
    assert tensors[key].shape == (16, 64)
    base = Weights(weights_folder())["model.layers.0.self_attn.q_proj.weight"]
    update = scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    change = next(row for row in rows(WEIGHTS) if row["module"] == "self_attn.q_proj" and row["layer"] == "0")
    assert float(change["change"]) == pytest.approx(float(update.norm() / base.norm()), rel=1e-3)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "olora"])
def test_initialisation(train, start):
    assert train(lora__init_lora_weights=start, epochs=2, batch_size=4, lr=0.003) is None
    # Whatever it starts from, the model starts as the base, and what is given away is a plain adapter.
    config = json.loads((TUNED / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True or start in ("gaussian", "orthogonal")
    assert config["r"] == (32 if start in ("pissa", "olora") else 16)
    measured = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    pair = Pair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    talks = list(conversations.read_jsonl(SPLITS["validation"]))
    for tuned, loss in ((False, measured[0]), (True, min(measured[1:]))):
        found = pair.likelihoods(talks, tuned)
        assert found.nll.sum() / found.tokens.sum() == pytest.approx(loss, rel=0.02)


def test_layers_learn_at_their_own_rates(train):
    error = train(lr=0.01, layers__lr_decay=0.5, layers__lr={"mlp": 0.1, r"layers\.1\.mlp\.up": 0}, epochs=1)
    assert error is None
    # Top layer 1, the one below a half; mlp a tenth of that; up_proj of layer 1 none.
    found = {float(row["lr"]): row["layers"] for row in rows(GROUPS)}
    assert found == pytest.approx({0.01: "1", 0.005: "0", 0.001: "1", 0.0005: "0", 0.0: "1"})
    moved = {(row["layer"], row["module"]): float(row["change"]) for row in rows(WEIGHTS)}
    assert moved["1", "mlp.up_proj"] == 0 < moved["1", "mlp.down_proj"] < moved["1", "self_attn.q_proj"] / 2


def test_the_history_shows_lr_also_where_no_group_has_it(train):
    assert train(lr=0.01, layers__lr={".": 0.5}, epochs=1, scheduler="constant", warmup_ratio=0.0) is None
    assert set(rates()) == {1.0} and {float(row["lr"]) for row in rows(GROUPS)} == {0.005}


def test_loraplus(train):
    assert train(lr=0.01, lora__loraplus_lr_ratio=16, epochs=1) is None
    assert [(float(row["lr"]), row["example"].rpartition("lora_")[2]) for row in rows(GROUPS)] == [
        (0.16, "B.weight"),
        (0.01, "A.weight"),
    ]


def test_weight_decay_pulls_at_matrices_alone(train):
    # One step at a rate of 0.1 and a decay of 1: AdamW's decay takes a tenth off each weight.
    ends = {}
    for decay in (0.0, 1.0):
        assert train(method="full", lr=0.1, weight_decay=decay, batch_size=16, epochs=1, warmup_ratio=0.0) is None
        ends[decay] = Weights(TUNED)
    base = Weights(weights_folder())
    for name in base:
        difference = ends[1.0][name] - ends[0.0][name]
        expected = -0.1 * base[name] if base[name].ndim == 2 else torch.zeros_like(base[name])
        # The tuned weights are kept in bf16.
        torch.testing.assert_close(difference, expected, rtol=0.05, atol=0.002)


@pytest.mark.parametrize("knob", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_dropout_disturbs_the_training_and_not_the_measuring(train, knob):
    found = {}
    for name, values in (("without", {}), ("with", knob)):
        assert train(epochs=1, lr=0.01, **values) is None
        found[name] = (losses(), [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)])
    assert found["with"][1][0] == found["without"][1][0]
    assert found["with"][0][1:] != found["without"][0][1:]


def test_label_smoothing_raises_the_training_loss_alone(train):
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
    # SGD's step is lr times the gradient: clipped to 1e-4, the one step moves the weights by lr * 1e-4.
    moved = {}
    knobs = {"optim": "sgd", "lr": 1.0, "weight_decay": 0.0, "batch_size": 16, "epochs": 1, "warmup_ratio": 0.0}
    for norm in (None, 0.0001):
        assert train(max_grad_norm=norm, **knobs) is None
        tensors = adapter()
        moved[norm] = sum(float(tensors[name].square().sum()) for name in tensors if "lora_B" in name) ** 0.5
    # B starts at zero, and A's gradient is zero then: all of the step is B's.
    assert moved[0.0001] == pytest.approx(0.0001, rel=0.01) and moved[None] > 0.01


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_computes_each_layer_again_and_nothing_else(observed, method, packing):
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
    # 4 steps and 2 measurements, of 2 layers each; the steps' layers are computed again.
    assert attentions == [(4 + 2) * 2, (4 + 2 + 4) * 2]
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_packing_makes_trees_and_does_not_change_the_result(observed):
    found = {}
    for packing in (True, "auto", False):
        error, calls = observed("calls", packing=packing, epochs=1, lr=0.01, batch_size=4)
        assert error is None and calls.get("trees", 0) == (0 if packing is False else 4 + 2)
        # Unsloth's own loss runs the whole model; over trees only the layers are run.
        assert ("LlamaForCausalLM" in calls) == (packing is False)
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
        ({"unsloth__max_length": 2049}, "max_length: 2049 is more than the 2048 tokens that the model can read"),
        ({"unsloth__max_length": 10**9}, "max_length: 1000000000 is not allowed; expected a whole number >= 16 and <="),
        ({"lora__target_modules": ["q_prj"]}, "no module 'q_prj'; did you mean 'q_proj'?"),
        ({"lora__target_modules": "nothing"}, "lora.target_modules: .*nothing"),
        ({"lora__layers_to_transform": [0, 2]}, "the model has layers 0 to 1, and no 2"),
        ({"lora__bias": "all"}, "lora.bias: all, but the model has no biases"),
        ({"layers__lr": {"mpl": 0.5}}, "layers.lr: 'mpl' matches no trained weight; names have mlp"),
        ({"layers__lr": {".": 0}}, "layers.lr: 0 freezes all"),
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
            "'\\(' is no regular expression",
        ),
        ({"lora__target_modules": "all-linear", "lora__layers_to_transform": [0]}, "goes with a list"),
        ({"scheduler": "warmup_stable_decay", "warmup_ratio": 0.9}, "warm-up and decay do not fit"),
    ],
)
def test_what_cannot_work_is_refused_before_data_is_read(train, knobs, message):
    for split in SPLITS.values():
        split.unlink()
    error = train(**knobs)
    assert error is not None and "Traceback" not in error
    assert re.search(message, error), error


DIVERGING = {"optim": "sgd", "lr": 1.0, "max_grad_norm": None, "layers__lr": {"lora_B": 1000.0}, "checkpoint__every": 1}


def test_a_training_that_diverges_stops_with_step_and_cause_and_keeps_what_was_good(train):
    error = train(**DIVERGING, epochs=50, batch_size=8)
    first, *rest = error.splitlines()
    assert re.fullmatch("training diverged after step [0-9]+: the (validation loss|loss|gradient) is NaN.*", first)
    assert "most likely lr 1 is too high: try lr 0.1, a larger warmup_ratio, max_grad_norm: 1.0" in rest[0]
    assert not TUNED.exists()
    measured = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)][1:]
    epoch = measured.index(min(measured)) + 1
    assert f"the best model so far, of epoch {epoch}, step {2 * epoch}, is kept: " in rest[1]
    kept = Path(rest[1].partition(" is kept: ")[2])
    weights = Weights(kept)
    assert max(float(weights[name].abs().max()) for name in weights) < 1000, "weights grow before the loss is infinite"
    steps = [int(path.name.partition("-")[2]) for path in kept.parent.glob("checkpoint-*")]
    assert all(step <= 2 * epoch for step in steps), "a training never goes on from what has diverged"


def test_a_training_that_diverges_before_it_was_measured_keeps_nothing(train):
    error = train(**{**DIVERGING, "layers__lr": {".": 1000.0}}, epochs=1, batch_size=1, warmup_ratio=0.0)
    assert error is not None and error.startswith("training diverged after step ")
    assert error.splitlines()[2] == "no epoch was finished, so there is no model to keep"
    assert not list(Path(".state/training").glob("*/checkpoint-*"))


def test_a_base_model_that_is_broken_is_told_as_such(train, small_base, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    use_base(broken)
    error = train()
    assert error.startswith("training cannot start: before the first update the validation loss is NaN or infinite")
    assert "not lr, but the base model is to blame" in error and "overflow in bfloat16" in error
