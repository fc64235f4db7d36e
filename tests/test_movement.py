import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stages.training.movement import moved

from .small import make_base


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("qwen"), "qwen2")


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"bias": "lora_only", "use_dora": True}],
)
def test_changes_are_those_of_the_merged_model(qwen, tmp_path, options):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(loaded(qwen), config)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.01 * torch.randn_like(weight)
    adapted.save_pretrained(tmp_path)
    after, before = adapted.merge_and_unload().state_dict(), loaded(qwen).state_dict()
    expected = {
        name: float((after[name] - before[name]).norm() / before[name].norm().clamp(min=1e-12))
        for name in before
        if not torch.equal(after[name], before[name])
    }
    found = {f"model.layers.{row['layer']}.{row['module']}": row["change"] for row in moved(qwen, tmp_path)}
    assert {name.removesuffix(".weight") for name in expected} == set(found)
    for name, change in expected.items():
        assert found[name.removesuffix(".weight")] == pytest.approx(change, rel=1e-3)


def test_a_whole_model(qwen, tmp_path):
    model = loaded(qwen)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1.25
        model.model.norm.weight *= 0.5
    model.save_pretrained(tmp_path)
    rows = {(row["layer"], row["module"]): row["change"] for row in moved(qwen, tmp_path)}
    assert rows[1, "mlp.up_proj"] == pytest.approx(0.25, rel=1e-3) and rows["", "model.norm"] == pytest.approx(0.5)
    assert rows[0, "mlp.up_proj"] == 0 and rows["", "model.embed_tokens"] == 0
