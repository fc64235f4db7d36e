"""One training run on this machine's GPU or CPU, from the start or from a checkpoint."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from stages.backends.protocol import Log, Result
from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training.model import Trainable
from stages.core.cli import notice
from stages.params import Params

VERSIONS = ("unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def train(
    trainable: Trainable,
    train: Sequence[Example],
    validation: Sequence[Example],
    knobs: Params,
    log: Log,
    kept: Path,
) -> Result:
    """Train, with checkpoints and the best model in the folder `kept`.

    The loss is the mean over the learned tokens. After each epoch, the model is kept if its validation loss is the best
    so far. If `kept` has a complete checkpoint, training resumes from it.

    Raises:
        UserError: training diverged, or ran out of memory or disk space.
    """
    # Not earlier: these import classes that Unsloth must have patched.
    from stages.backends.unsloth.training import checkpoints, isolation
    from stages.backends.unsloth.training.callbacks import KeepBest
    from stages.backends.unsloth.training.trainer import Trainer

    isolation.ensure(trainable.model, trainable.batches, train, required=knobs.packing is True)
    epochs, batch_size = knobs.numbers
    epoch_steps = -(-len(train) // batch_size)
    steps = math.ceil(epochs * epoch_steps)
    keep = KeepBest(best(kept), epoch_steps, knobs, log)
    checkpoint = checkpoints.recover(kept)
    trainer = Trainer(
        knobs,
        trainable.batches,
        trainable.groups,
        keep,
        model=trainable.model,
        processing_class=trainable.tokenizer,
        args=_arguments(kept, steps, knobs, fresh=checkpoint is None),
        train_dataset=dataset(train),
        eval_dataset=dataset(validation),
    )
    size = _place_and_size(trainable.model)
    notice("finetune: {trainable_parameters:,} of {parameters:,} weights, {device}, {dtype}".format(**size))
    if checkpoint:
        notice(f"finetune: resuming from step {checkpoint.step} of {steps}")
        keep.resume(checkpoint)
    done = before = checkpoint.step if checkpoint else 0
    begin = time.perf_counter()
    if before < steps and not keep.stopped:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        done = trainer.state.global_step
    seconds = time.perf_counter() - begin
    tokens = sum(len(example.input_ids) for example in train)
    metrics = {
        "steps": done,
        "tokens": tokens,
        "learned_tokens": sum(label != IGNORED for example in train for label in example.labels),
        "best_epoch": int(keep.best_epoch) if keep.best_epoch == int(keep.best_epoch) else keep.best_epoch,
        "validation_loss": round(keep.best_loss, 4),
    }
    speed = tokens * (done - before) / epoch_steps / seconds
    return Result(
        metrics,
        _facts(size, seconds, speed, before),
        groups=[group.row(knobs) for group in trainable.groups],
    )


def best(kept: Path) -> Path:
    """The folder of the best model."""
    return kept / "best"


def _arguments(folder: Path, steps: int, knobs: Params, fresh: bool) -> Any:
    from trl import SFTConfig

    epochs, batch_size = knobs.numbers
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        # On a GPU, Unsloth replaces TRL's defaults of these by others.
        gradient_accumulation_steps=1,
        eval_accumulation_steps=None,
        torch_empty_cache_steps=None,
        logging_nan_inf_filter=False,
        padding_free=False,
        # A mixture's router loss depends on how a batch is split, and is no part of what the reports call loss.
        router_aux_loss_coef=0.0,
        learning_rate=knobs.lr,
        weight_decay=knobs.weight_decay,
        optim=knobs.optim,
        max_grad_norm=knobs.max_grad_norm or 0.0,
        **_schedule(knobs, steps),
        seed=knobs.seed,
        max_length=knobs.unsloth.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        gradient_checkpointing=False,
        logging_steps=1,
        eval_strategy="no",
        eval_on_start=fresh,
        save_strategy="steps",
        save_steps=knobs.checkpoint.every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _schedule(knobs: Params, steps: int) -> dict[str, Any]:
    """transformers' arguments for the scheduler, with `constant` and `polynomial` adjusted to what users expect."""
    # At least one step at the full rate, before any decay.
    warmup = min(round(knobs.warmup_ratio * steps), steps - 1)
    own: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": knobs.schedule.num_cycles},
        "polynomial": {"power": knobs.schedule.power, "lr_end": 0.0},
        "warmup_stable_decay": {
            "num_decay_steps": min(round(knobs.schedule.decay_ratio * steps), steps - warmup),
            "decay_type": "linear",
        },
        # Without warm-up, transformers' default is 10,000 steps, over which the rate would hardly fall.
        "inverse_sqrt": {"timescale": max(1, warmup)},
    }
    return {
        "lr_scheduler_type": "constant_with_warmup" if knobs.scheduler == "constant" else knobs.scheduler,
        "lr_scheduler_kwargs": own.get(knobs.scheduler, {}),
        "warmup_steps": warmup,
    }


def dataset(examples: Sequence[Example]) -> Any:
    """Convert examples to a dataset with `input_ids` and `labels`."""
    from datasets import Dataset

    return Dataset.from_list([asdict(example) for example in examples])


def _place_and_size(model: Any) -> dict[str, Any]:
    from stages.backends.unsloth.common import device

    return {
        "device": device.name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(_numbers(p) for p in model.parameters()),
    }


def _numbers(weight: Any) -> int:
    """How many numbers a weight holds; of a 4-bit one, the storage has two in each byte."""
    quantized = getattr(weight, "quant_state", None)
    return int(weight.numel() if quantized is None else quantized.shape.numel())


def _facts(size: dict[str, Any], seconds: float, tokens_per_second: float, resumed_from: int) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens_per_second),
        "resumed_from_step": resumed_from,
        "peak_memory_mb": peak_memory_mb(),
        **size,
        "versions": {name: installed(name) for name in VERSIONS},
    }


def peak_memory_mb() -> int:
    """Peak GPU memory if there is a GPU, else of this process."""
    import resource

    from stages.backends.unsloth.common import device

    peak = device.peak_memory()
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 if peak is None else peak / 1e6)
