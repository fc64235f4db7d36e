"""The full tuned model in 16 bit: the base with the adapter merged, or the fully trained weights."""

from pathlib import Path
from typing import Any

from stages.backends.unsloth.base import weights, weights_folder
from stages.core.cli import quiet_libraries
from stages.core.paths import TUNED


def write(folder: Path) -> None:
    """Write weights, tokenizer and configuration to `folder`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    adapter = (TUNED / "adapter_config.json").exists()
    source = weights_folder() if adapter else TUNED
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, local_files_only=True)
    if adapter:
        model = PeftModel.from_pretrained(model, str(TUNED), local_files_only=True).merge_and_unload()
    model.save_pretrained(folder)
    weights.copy_tokenizer(TUNED, folder)
