"""LoRA fine-tuning of an open model with Unsloth, on this machine's GPU or CPU.

Unsloth patches transformers and TRL when it is imported, so `start` imports it before anything else touches them.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from stages import files
from stages.backends import Log, Result
from stages.backends.unsloth.chat import IGNORED, Example
from stages.command import quiet_transformers
from stages.params import Params

# Where the best adapter is left.
BEST = "best"
_VERSIONS = ("unsloth", "torch", "transformers", "trl", "peft")


def start() -> None:
    """Import Unsloth, and keep the libraries' bars and warnings from burying the pipeline's own lines."""
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(files.state_dir("unsloth"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import unsloth  # noqa: F401

    quiet_transformers()


def train_adapter(
    base: Path, train: Sequence[Example], validation: Sequence[Example], knobs: Params, log: Log, scratch: Path
) -> Result:
    """Train LoRA weights on the base model in folder `base`, and leave the best of them in `scratch`/best.

    The loss is the mean over the learned tokens. After each epoch the validation loss decides whether the adapter is
    the best so far; only the best is kept. The trainer may write to the folder `scratch` as well.
    """
    from stages.training.trainer import KeepBest, make

    model, tokenizer = _lora_model(base, knobs)
    keep = KeepBest(scratch / BEST, knobs, log)
    arguments = _arguments(scratch / "trainer", len(train), knobs)
    trainer = make(model, tokenizer, arguments, dataset(train), dataset(validation), keep)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    tokens = sum(len(example.input_ids) for example in train)
    metrics = {
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "learned_tokens": sum(label != IGNORED for example in train for label in example.labels),
        "best_epoch": keep.best_epoch,
        "validation_loss": round(keep.best_loss, 4),
    }
    return Result(metrics, _facts(model, seconds, tokens * knobs.numbers[0] / seconds))


def _lora_model(base: Path, knobs: Params) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(base), max_seq_length=knobs.unsloth.max_length, load_in_4bit=False, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=knobs.lora.r,
        lora_alpha=knobs.lora.alpha,
        lora_dropout=knobs.dropout,
        target_modules=list(knobs.lora.target_modules),
        use_gradient_checkpointing=False,
        random_state=knobs.seed,
    )
    return model, tokenizer


def _arguments(folder: Path, conversations: int, knobs: Params) -> Any:
    from trl import SFTConfig

    epochs, batch_size = knobs.numbers
    steps = -(-conversations // batch_size) * epochs
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=knobs.lr,
        weight_decay=knobs.weight_decay,
        lr_scheduler_type=knobs.scheduler,
        warmup_steps=round(knobs.warmup_ratio * steps),
        seed=knobs.seed,
        max_length=knobs.unsloth.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        gradient_checkpointing=False,
        logging_steps=1,
        eval_strategy="epoch",
        eval_on_start=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def dataset(examples: Sequence[Example]) -> Any:
    """Examples as a data set of `input_ids` and `labels`."""
    from datasets import Dataset

    return Dataset.from_list([asdict(example) for example in examples])


def _facts(model: Any, seconds: float, tokens_per_second: float) -> dict[str, Any]:
    import torch

    return {
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens_per_second),
        "peak_memory_mb": peak_memory_mb(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {name: installed(name) for name in _VERSIONS},
    }


def peak_memory_mb() -> int:
    """Peak of the GPU's memory where there is one, else of this process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
