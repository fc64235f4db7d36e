import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stages.backends.unsloth.training.weight_change import moved
from tests.support.small import make_base


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("qwen"), "qwen2")


def merged(base, folder, **options):
    """The base's weights merged with a random adapter, which is written to `folder`."""
    torch.manual_seed(0)
    adapted = get_peft_model(loaded(base), LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.01 * torch.randn_like(weight)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"bias": "lora_only", "use_dora": True}],
)
def test_changes_equal_those_of_the_merged_model(qwen, tmp_path, options):
    after, before = merged(qwen, tmp_path, target_modules=["q_proj", "down_proj"], **options), loaded(qwen).state_dict()
    expected = {
        name: float((after[name] - before[name]).norm() / before[name].norm().clamp(min=1e-12))
        for name in before
        if not torch.equal(after[name], before[name])
    }
    found = {f"model.layers.{row['layer']}.{row['module']}": row["change"] for row in moved(qwen, tmp_path)[0]}
    assert {name.removesuffix(".weight") for name in expected} == set(found)
    for name, change in expected.items():
        assert found[name.removesuffix(".weight")] == pytest.approx(change, rel=1e-3)


@pytest.mark.parametrize(
    "options, module",
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens"),
        ({"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, "model.embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head"),
    ],
)
def test_changes_of_embeddings_and_a_tied_head(qwen, tmp_path, options, module):
    after, before = merged(qwen, tmp_path, **options), loaded(qwen).state_dict()
    found = {row["module"]: row["change"] for row in moved(qwen, tmp_path)[0]}
    name = f"{module}.weight"
    assert set(found) == {"self_attn.q_proj", module}
    assert found[module] == pytest.approx(float((after[name] - before[name]).norm() / before[name].norm()), rel=1e-3)


def test_a_trained_weight_that_the_base_lacks_is_left_out_and_counted(qwen, tmp_path):
    merged(qwen, tmp_path, target_modules=["q_proj"])
    expected, nothing = moved(qwen, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    more = {
        "base_model.model.extra.weight": torch.ones(2),
        # In the base this one has another shape.
        "base_model.model.model.layers.0.self_attn.k_proj.bias": torch.ones(3),
    }
    save_file({**weights, **more}, tmp_path / "adapter_model.safetensors")
    assert len(expected) == 2 and nothing == 0
    assert moved(qwen, tmp_path) == (expected, 2)


def test_layers_are_found_where_the_base_stores_them_under_other_names(qwen, tmp_path):
    """As models that see do, which have layers with the same names for what they see."""
    merged(qwen, tmp_path / "tuned", target_modules=["q_proj"])
    expected = moved(qwen, tmp_path / "tuned")
    weights = load_file(qwen / "model.safetensors")
    text = {name.replace("model.", "language_model.model.", 1): weight for name, weight in weights.items()}
    seen = {name.replace("model.", "vision_tower.", 1): weight * 2 for name, weight in weights.items()}
    (tmp_path / "base").mkdir()
    save_file(text | seen, tmp_path / "base/model.safetensors")
    assert moved(tmp_path / "base", tmp_path / "tuned") == expected


def test_changes_of_a_full_model(qwen, tmp_path):
    model = loaded(qwen)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1.25
        model.model.norm.weight *= 0.5
    model.save_pretrained(tmp_path)
    rows = {(row["layer"], row["module"]): row["change"] for row in moved(qwen, tmp_path)[0]}
    assert rows[1, "mlp.up_proj"] == pytest.approx(0.25, rel=1e-3) and rows["", "model.norm"] == pytest.approx(0.5)
    assert rows[0, "mlp.up_proj"] == 0 and rows["", "model.embed_tokens"] == 0


def test_a_weight_of_another_shape_in_a_full_model_is_left_out_and_counted(qwen, tmp_path):
    model = loaded(qwen)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path)
    rows, left_out = moved(qwen, tmp_path)
    assert left_out == 1 and "model.embed_tokens" not in {row["module"] for row in rows}
