"""The whole tuned model in 16 bit: the base with the adapter added in, or what training in full left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.backends import unsloth as backend
from stages.backends.unsloth import card, weights
from stages.command import quiet_libraries
from stages.params import Params
from stages.paths import TUNED


def write(
    folder: Path, knobs: Params, training: Mapping[str, Any], splits: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    """Write weights, tokenizer, configuration and card to `folder`.

    `training` are the metrics of finetune, `splits` the sizes of the splits, `results` the tuned model's metrics on the
    test split.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    adapter = (TUNED / "adapter_config.json").exists()
    source = backend.weights_folder() if adapter else TUNED
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, local_files_only=True)
    if adapter:
        model = PeftModel.from_pretrained(model, str(TUNED), local_files_only=True).merge_and_unload()
    model.save_pretrained(folder)
    weights.copy_tokenizer(TUNED, folder)
    counts = {name: splits[name]["conversations"] for name in ("train", "validation")}
    card.write(folder, knobs, dict(training), counts, adapter=False, results=results)
