"""Mixtures of experts: the loss is that of the answers, whatever the model's configuration asks of its router."""

import dataclasses
import json

import pytest
from transformers import AutoConfig

from stages.core.paths import HISTORY, TUNED, VALIDATION_HISTORY
from tests.conftest import use_base
from tests.support.families import FAMILIES
from tests.support.small import make_family
from tests.support.trainings import rows

pytestmark = pytest.mark.slow


def mixture(family, **config):
    return dataclasses.replace(FAMILIES[family], config={**FAMILIES[family].config, **config})


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss"])
def test_a_router_s_loss_is_in_no_loss_and_no_gradient(train, tmp_path, family):
    results = []
    for name, config in {
        "without": {"output_router_logits": False, "router_aux_loss_coef": 0.0},
        "with": {"output_router_logits": True, "router_aux_loss_coef": 10.0},
    }.items():
        use_base(make_family(tmp_path / name, mixture(family, **config)))
        assert train(lr=0.01, epochs=1, batch_size=8, lora__target_modules="attention") is None
        weights = (TUNED / "adapter_model.safetensors").read_bytes()
        results.append([rows(HISTORY), rows(VALIDATION_HISTORY), weights])
    assert results[0] == results[1]


def test_a_fully_trained_mixture_keeps_its_router_s_configuration(train, tmp_path):
    asked = {"output_router_logits": True, "router_aux_loss_coef": 10.0}
    use_base(make_family(tmp_path / "base", mixture("qwen3-moe", **asked)))
    assert train(method="full", lr=0.003, epochs=1, batch_size=8) is None
    config = AutoConfig.from_pretrained(TUNED)
    assert {name: getattr(config, name) for name in asked} == asked
    assert json.loads((TUNED / "config.json").read_text())["architectures"] == ["Qwen3MoeForCausalLM"]
