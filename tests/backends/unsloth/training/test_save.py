"""models/tuned has the best model, not the last, as an adapter or a model that plain libraries can load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stages import params
from stages.backends.unsloth.training import save
from stages.core import files
from tests.conftest import set_params
from tests.support.plain import model_of

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def shaken(model, seed):
    """Randomly change the trained weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    return model


def adapted(base, start=True):
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": start}
    return get_peft_model(model_of(base), LoraConfig(task_type="CAUSAL_LM", **options))


def on_the_base(base, folder=Path("tuned")):
    return PeftModel.from_pretrained(model_of(base), str(folder))


def knobs(**values):
    set_params(unsloth__model="owner/base-model", unsloth__revision="0" * 40, **values)
    return params.load()


@pytest.mark.parametrize("start", ["default", "pissa", "olora"])
def test_the_best_adapter_is_saved_and_runs_on_the_unchanged_base(project, small_base, start):
    chosen = knobs(lora__init_lora_weights=start)
    model = adapted(small_base, True if start == "default" else start)
    kept = Path("kept")
    kept.mkdir()
    save.keep_start(model, kept, chosen)
    shaken(model, 2).save_pretrained(kept / "best", save_embedding_layers=False)
    best = logits(model)
    last = logits(shaken(model, 3))
    (Path("tuned") / "old").mkdir(parents=True)
    save.write(model, kept / "best", Path("tuned"), chosen)
    found = logits(on_the_base(small_base))
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, last, atol=1e-2) and not Path("tuned/old").exists()
    config = json.loads(Path("tuned/adapter_config.json").read_text())
    # An adapter that starts from the base's weights is saved as the difference, with twice the rank.
    assert (config["init_lora_weights"], config["r"]) == (True, 4 if start == "default" else 8)
    assert config["base_model_name_or_path"] == "owner/base-model"
    assert not [name for name in load_file("tuned/adapter_model.safetensors") if "embed" in name]
    assert (kept / "best").is_dir(), "the kept model is not deleted before the stage is done"


@pytest.mark.parametrize(
    "values, start, saved",
    [
        ({"lora__init_lora_weights": "pissa"}, "pissa", True),
        ({"lora__init_lora_weights": "olora"}, "olora", True),
        ({"lora__init_lora_weights": "gaussian"}, "gaussian", False),
        ({}, True, False),
    ],
)
def test_the_initial_adapter_is_saved_if_it_starts_from_the_weights(
    project, small_base, monkeypatch, values, start, saved
):
    model, saving = adapted(small_base, start), []
    real = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder, **given: (saving.append(given), real(folder, **given)))
    save.keep_start(model, Path("kept"), knobs(**values))
    assert Path("kept/start").exists() == saved
    # The model's own configuration is unchanged.
    assert model.peft_config["default"].init_lora_weights == start
    if saved:
        assert json.loads(Path("kept/start/adapter_config.json").read_text())["init_lora_weights"] is True
        found = load_file("kept/start/adapter_model.safetensors")
        # Adapters do not change the vocabulary; to check that, peft would look up the base by name.
        assert saving == [{"save_embedding_layers": False}]
        live = {name.replace(".default", ""): weight for name, weight in model.named_parameters() if "lora_" in name}
        assert found.keys() == live.keys() and all(torch.equal(found[name], live[name]) for name in live)


def test_a_full_model_has_no_initial_adapter_to_save(project, small_base):
    save.keep_start(model_of(small_base), Path("kept"), knobs(method="full"))
    assert not Path("kept").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_best_full_model_is_saved_in_the_dtype_of_the_base(project, small_base, dtype):
    base = Path("base")
    AutoModelForCausalLM.from_pretrained(small_base, dtype=dtype).save_pretrained(base)
    model = model_of(base)
    shaken(model, 2).save_pretrained("kept/best")
    best = {name: weight.clone() for name, weight in model.named_parameters()}
    shaken(model, 3)
    save.write(model, Path("kept/best"), Path("tuned"), knobs(method="full"))
    found = AutoModelForCausalLM.from_pretrained("tuned", dtype="auto")
    assert found.dtype == dtype and not Path("tuned/adapter_config.json").exists()
    for name, weight in found.named_parameters():
        assert torch.equal(weight, best[name].to(dtype))


def test_identical_adapters_are_identical_bytes(project, small_base):
    chosen = knobs()
    model = shaken(adapted(small_base), 2)
    model.save_pretrained("kept/best", save_embedding_layers=False)
    written = []
    for _ in range(2):
        save.write(model, Path("kept/best"), Path("tuned"), chosen)
        written.append({path.name: path.read_bytes() for path in Path("tuned").iterdir()})
        shutil.rmtree("tuned")
    assert written[0] == written[1]


def test_the_configuration_of_an_adapter_depends_on_no_set_and_no_folder(tmp_path):
    path = tmp_path / "adapter_config.json"
    for modules in (["v_proj", "k_proj", "q_proj"], ["q_proj", "v_proj", "k_proj"]):
        files.write_json(path, {"r": 8, "target_modules": modules, "base_model_name_or_path": "/some/folder"})
        save._normalize(path, "owner/base")
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "r": 8,
            "target_modules": ["k_proj", "q_proj", "v_proj"],
            "base_model_name_or_path": "owner/base",
        }
    files.write_json(path, {"target_modules": ".*proj", "base_model_name_or_path": "x"})
    save._normalize(path, "owner/base")
    assert json.loads(path.read_text(encoding="utf-8"))["target_modules"] == ".*proj"
