import pytest
import torch

from stages import params
from stages.backends.unsloth.training import optimizer
from stages.core.cli import UserError
from tests.conftest import set_params


@pytest.fixture
def model(small_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)


def knobs(**values):
    set_params(lr=0.1, **values)
    return params.load()


def test_rates_decay_from_the_top_layer_to_the_embeddings(project, model):
    found = {
        name: group.multiplier for group in optimizer.groups(model, knobs(layers__lr_decay=0.5)) for name in group.names
    }
    assert found["model.layers.1.mlp.up_proj.weight"] == found["model.norm.weight"] == 1
    assert found["model.layers.0.mlp.up_proj.weight"] == 0.5
    assert found["model.embed_tokens.weight"] == 0.25


def test_patterns_multiply(project, model):
    rates = {"mlp": 0.5, r"layers\.0\.": 0.1}
    groups = optimizer.groups(model, knobs(layers__lr=rates))
    found = {name: group.multiplier for group in groups for name in group.names}
    assert found["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.05)
    assert found["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert found["model.layers.0.self_attn.q_proj.weight"] == 0.1
    assert found["model.layers.1.self_attn.q_proj.weight"] == 1


@pytest.mark.parametrize(
    "name, rate",
    [
        ("base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight", 1),
        ("base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight", 16),
        ("base_model.model.model.embed_tokens.lora_embedding_A.default", 1),
        ("base_model.model.model.embed_tokens.lora_embedding_B.default", 16),
    ],
)
def test_loraplus_raises_the_rate_of_b_matrices(project, name, rate):
    assert optimizer.multiplier(name, 2, knobs(lora__loraplus_lr_ratio=16)) == rate


def test_the_optimizer_uses_the_rates_of_the_groups(project, model):
    chosen = knobs(layers__lr_decay=0.5, weight_decay=0.0)
    groups = optimizer.groups(model, chosen)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD([group.options(chosen) for group in groups]).step()
    for name, step in {"model.layers.1.mlp.up_proj.weight": 0.1, "model.layers.0.mlp.up_proj.weight": 0.05}.items():
        difference = before[name] - dict(model.named_parameters())[name]
        torch.testing.assert_close(difference, torch.full_like(difference, step), rtol=1e-4, atol=1e-6)


def test_weight_decay_applies_to_matrices_only(project, model):
    for group in optimizer.groups(model, knobs(weight_decay=0.3)):
        assert all((tensor.ndim >= 2) == group.decays for tensor in group.tensors)
        assert group.options(params.load())["weight_decay"] == (0.3 if group.decays else 0.0)


def test_each_weight_is_in_exactly_one_group(project, model):
    groups = optimizer.groups(model, knobs(layers__lr_decay=0.9, layers__lr={"mlp": 0.5}))
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_group_as_a_row(project, model):
    chosen = knobs(layers__lr={"mlp": 0.5})
    row = next(row for group in optimizer.groups(model, chosen) if (row := group.row(chosen))["lr"] == 0.05)
    assert row["layers"] == "0-1" and row["tensors"] == 6 and row["parameters"] == 6 * 64 * 128
    assert row["example"] == "model.layers.0.mlp.gate_proj.weight"


def test_a_pattern_without_a_match_is_rejected(project, model):
    with pytest.raises(UserError, match="'norms' matches no trained weight; their names contain .*norm"):
        optimizer.groups(model, knobs(layers__lr={"norms": 0.5}))
