"""`models/tuned`: the kept model in the form in which it is given away, that of a plain adapter or a plain model."""

import json
import shutil
from pathlib import Path
from typing import Any

from stages import files
from stages.params import Params

# Adapters that start from the base's weights are given away as what they changed.
_FROM_WEIGHTS = ("pissa", "olora")
_START = "start"


def keep_start(model: Any, kept: Path, knobs: Params) -> None:
    """Save how the adapter started, where `write` will need it."""
    if knobs.method != "full" and knobs.lora.init_lora_weights in _FROM_WEIGHTS:
        config = model.peft_config["default"]
        method, config.init_lora_weights = config.init_lora_weights, True
        model.save_pretrained(kept / _START, save_embedding_layers=False)
        config.init_lora_weights = method


def write(model: Any, best: Path, folder: Path, knobs: Params) -> None:
    """Write the model in `best` to `folder`; `model` is the one that was trained, as its last step left it."""
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
    if knobs.method != "full":
        _name_base(folder / "adapter_config.json", knobs.unsloth.model)


def _write_model(best: Path, folder: Path, config: Any) -> None:
    """In the base's own number format: training in full keeps its weights in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = AutoConfig.from_pretrained(config._name_or_path, local_files_only=True).dtype
    AutoModelForCausalLM.from_pretrained(best, dtype=dtype, local_files_only=True).save_pretrained(folder)


def _name_base(path: Path, name: str) -> None:
    """The base's name, not its folder: where the weights lie differs between machines."""
    config = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, {**config, "base_model_name_or_path": name})
