"""Writes the best model to `models/tuned`, as a standard adapter or a standard model."""

import json
import shutil
from pathlib import Path
from typing import Any

from stages.backends.unsloth.common import four_bit
from stages.core import files
from stages.params import Params

# These start from the base's weights, so they are saved as the difference from their start.
_FROM_WEIGHTS = ("pissa", "olora")
_START = "start"
# Training sets them in the model's configuration.
_ROUTER_LOSS = ("output_router_logits", "router_aux_loss_coef")


def keep_start(model: Any, kept: Path, knobs: Params) -> None:
    """Save the adapter's initial state if `write` will need it."""
    if knobs.method != "full" and knobs.lora.init_lora_weights in _FROM_WEIGHTS:
        config = model.peft_config["default"]
        method, config.init_lora_weights = config.init_lora_weights, True
        model.save_pretrained(kept / _START, save_embedding_layers=False)
        config.init_lora_weights = method


def write(model: Any, best: Path, folder: Path, knobs: Params) -> None:
    """Write the model in `best` to `folder`; `model` is the trained model after its last step."""
    shutil.rmtree(folder, ignore_errors=True)
    if knobs.method == "full":
        _write_model(best, folder, model.config)
    elif knobs.lora.init_lora_weights in _FROM_WEIGHTS:
        model.load_adapter(str(best), "default")
        model.save_pretrained(
            folder,
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=str(best.with_name(_START)),
        )
    else:
        shutil.copytree(best, folder)
    if knobs.method == "qlora":
        four_bit.mark(folder)
    if knobs.method != "full":
        _normalize(folder / "adapter_config.json", knobs.unsloth.model)


def _write_model(best: Path, folder: Path, config: Any) -> None:
    """Write in the base's dtype: full training keeps its weights in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    of_base = AutoConfig.from_pretrained(config._name_or_path, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(best, dtype=of_base.dtype, local_files_only=True)
    for name in _ROUTER_LOSS:
        if hasattr(of_base.get_text_config(), name):
            setattr(model.config.get_text_config(), name, getattr(of_base.get_text_config(), name))
    model.save_pretrained(folder)


def _normalize(path: Path, base: str) -> None:
    """Make an adapter's configuration identical on every machine and in every run.

    It names the base, not its folder, which differs between machines; and module names are sorted, because peft writes
    them in set order, which differs between processes.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    files.write_json(path, {**config, "base_model_name_or_path": base})
