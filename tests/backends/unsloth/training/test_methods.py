"""LoRA, QLoRA, DoRA and full training, loaded by plain libraries."""

import json

import pytest
import torch

from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.common import four_bit
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.inference.models import Adapted
from stages.backends.unsloth.reader import Chat
from stages.backends.unsloth.training.weight_change import Weights
from stages.core.paths import GROUPS, RUN, SPLITS, TUNED, VALIDATION_HISTORY, WEIGHTS
from stages.dataset import conversations
from tests.conftest import use_base
from tests.support.small import make_base
from tests.support.trainings import adapter, rows


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
def test_each_method_learns_and_is_loaded_by_plain_libraries(train, method):
    assert train(method=method, lr=0.01 if method != "full" else 0.003, epochs=3, batch_size=4) is None
    history = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    assert min(history) < history[0] - 0.5
    pair = LocalPair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    found = pair.likelihoods(list(conversations.read_jsonl(SPLITS["validation"])), tuned=True)
    # qlora is trained on a base in 4 bit, but evaluated on the unquantized base.
    near = 0.15 if method == "qlora" else 0.02
    assert found.nll.sum() / found.tokens.sum() == pytest.approx(min(history[1:]), rel=near)
    untouched = pair.likelihoods(list(conversations.read_jsonl(SPLITS["validation"])), tuned=False)
    if method != "qlora":
        assert untouched.nll.sum() / untouched.tokens.sum() == pytest.approx(history[0], rel=0.02)
    modules = {row["module"] for row in rows(WEIGHTS)}
    assert four_bit.trained_over(TUNED) == (method == "qlora")
    assert ("mlp.up_proj" in modules) and ("model.embed_tokens" in modules) == (method == "full")
    assert any(name.endswith("lora_magnitude_vector") for name in Weights(TUNED)) == (method == "dora")


def test_qlora_counts_the_base_s_weights_though_two_share_a_byte(train):
    sizes = {}
    for method in ("lora", "qlora"):
        assert train(method=method, epochs=1) is None
        sizes[method] = json.loads(RUN.read_text())["parameters"]
    assert sizes["qlora"] == sizes["lora"]


@pytest.mark.parametrize("bias, expected", [("none", 0), ("lora_only", 2), ("all", 6)])
def test_biases(train, tmp_path, bias, expected):
    # A Qwen2 layer has three biases: those of q_proj, k_proj and v_proj.
    base = make_base(tmp_path / "qwen", "qwen2")
    use_base(base)
    assert train(lora__bias=bias, lora__target_modules=["q_proj", "o_proj"], epochs=1, batch_size=4) is None
    moved = [row["module"] for row in rows(WEIGHTS) if row["module"].endswith("bias")]
    assert len(moved) == expected
    assert sum(name.endswith("bias") for name in adapter()) == expected
    # The base keeps its own biases: it scores like a model without the adapter.
    talks = list(conversations.read_jsonl(SPLITS["test"]))
    pair = LocalPair.load(base, TUNED, Chat.load(), batch_size=4)
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    expected_nll = LocalPair(Adapted(alone), Chat.load(), 4).likelihoods(talks, tuned=True).nll
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
    # With every initialisation, training starts from the base's outputs, and the saved adapter is a plain one.
    config = json.loads((TUNED / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True or start in ("gaussian", "orthogonal")
    assert config["r"] == (32 if start in ("pissa", "olora") else 16)
    measured = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    pair = LocalPair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    talks = list(conversations.read_jsonl(SPLITS["validation"]))
    for tuned, loss in ((False, measured[0]), (True, min(measured[1:]))):
        found = pair.likelihoods(talks, tuned)
        assert found.nll.sum() / found.tokens.sum() == pytest.approx(loss, rel=0.02)


def test_loraplus(train):
    assert train(lr=0.01, lora__loraplus_lr_ratio=16, epochs=1) is None
    assert [(float(row["lr"]), row["example"].rpartition("lora_")[2]) for row in rows(GROUPS)] == [
        (0.16, "B.weight"),
        (0.01, "A.weight"),
    ]
