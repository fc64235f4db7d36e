"""What is given away: the best model and not the last, as an adapter or a model that plain libraries load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stages import params
from stages.backends.unsloth import tuned

from .conftest import set_params
from .plain import model_of

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def shaken(model, seed):
    """Move what is trained at random."""
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
def test_the_best_adapter_is_given_away_and_not_the_last_and_runs_on_the_plain_base(project, small_base, start):
    chosen = knobs(lora__init_lora_weights=start)
    model = adapted(small_base, True if start == "default" else start)
    kept = Path("kept")
    kept.mkdir()
    tuned.keep_start(model, kept, chosen)
    shaken(model, 2).save_pretrained(kept / "best", save_embedding_layers=False)
    best = logits(model)
    last = logits(shaken(model, 3))
    (Path("tuned") / "old").mkdir(parents=True)
    tuned.write(model, kept / "best", Path("tuned"), chosen)
    found = logits(on_the_base(small_base))
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, last, atol=1e-2) and not Path("tuned/old").exists()
    config = json.loads(Path("tuned/adapter_config.json").read_text())
    # What changes the base's weights when it is loaded is given away as what it changed: twice the rank.
    assert (config["init_lora_weights"], config["r"]) == (True, 4 if start == "default" else 8)
    assert config["base_model_name_or_path"] == "owner/base-model"
    assert not [name for name in load_file("tuned/adapter_model.safetensors") if "embed" in name]
    assert (kept / "best").is_dir(), "what was kept stays until the stage is done"


@pytest.mark.parametrize(
    "values, start, saved",
    [
        ({"lora__init_lora_weights": "pissa"}, "pissa", True),
        ({"lora__init_lora_weights": "olora"}, "olora", True),
        ({"lora__init_lora_weights": "gaussian"}, "gaussian", False),
        ({}, True, False),
    ],
)
def test_the_start_is_saved_where_the_weights_themselves_were_changed(
    project, small_base, monkeypatch, values, start, saved
):
    model, saving = adapted(small_base, start), []
    real = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder, **given: (saving.append(given), real(folder, **given)))
    tuned.keep_start(model, Path("kept"), knobs(**values))
    assert Path("kept/start").exists() == saved
    # The model itself still says how it started.
    assert model.peft_config["default"].init_lora_weights == start
    if saved:
        assert json.loads(Path("kept/start/adapter_config.json").read_text())["init_lora_weights"] is True
        found = load_file("kept/start/adapter_model.safetensors")
        # Adapters of the vocabulary leave it as it is: to find that out, peft would look for the base by name.
        assert saving == [{"save_embedding_layers": False}]
        live = {name.replace(".default", ""): weight for name, weight in model.named_parameters() if "lora_" in name}
        assert found.keys() == live.keys() and all(torch.equal(found[name], live[name]) for name in live)


def test_a_whole_model_has_no_start_to_save(project, small_base):
    tuned.keep_start(model_of(small_base), Path("kept"), knobs(method="full"))
    assert not Path("kept").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_best_whole_model_is_given_away_in_the_bases_number_format(project, small_base, dtype):
    base = Path("base")
    AutoModelForCausalLM.from_pretrained(small_base, dtype=dtype).save_pretrained(base)
    model = model_of(base)
    shaken(model, 2).save_pretrained("kept/best")
    best = {name: weight.clone() for name, weight in model.named_parameters()}
    shaken(model, 3)
    tuned.write(model, Path("kept/best"), Path("tuned"), knobs(method="full"))
    found = AutoModelForCausalLM.from_pretrained("tuned", dtype="auto")
    assert found.dtype == dtype and not Path("tuned/adapter_config.json").exists()
    for name, weight in found.named_parameters():
        assert torch.equal(weight, best[name].to(dtype))


def test_equal_adapters_are_equal_bytes(project, small_base):
    chosen = knobs()
    model = shaken(adapted(small_base), 2)
    model.save_pretrained("kept/best", save_embedding_layers=False)
    written = []
    for _ in range(2):
        tuned.write(model, Path("kept/best"), Path("tuned"), chosen)
        written.append({path.name: path.read_bytes() for path in Path("tuned").iterdir()})
        shutil.rmtree("tuned")
    assert written[0] == written[1]
