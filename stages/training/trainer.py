"""TRL's SFTTrainer with the project's loss, its measure of validation, and the best checkpoint kept.

Import it only after Unsloth: it takes the trainer that Unsloth has patched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from stages.backends.unsloth.chat import IGNORED
from stages.command import notice
from stages.params import Params
from stages.training import branches


def make(model: Any, tokenizer: Any, arguments: Any, train: Any, validation: Any, keep: "KeepBest") -> "Trainer":
    """A trainer over data sets of `input_ids` and `labels`.

    On a GPU Unsloth's own kernels see padded batches; elsewhere batches share the computation of their prefix.
    """
    share = not torch.cuda.is_available() and branches.supported(model.config)
    if share:
        # On two cores the plain products take half the time of the fused kernel, forward and backward.
        model.set_attn_implementation("eager")
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=branches.collate if share else padding(tokenizer.pad_token_id),
        callbacks=[keep],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Trainer(SFTTrainer):  # type: ignore[misc]
    """Understands batches of trees (see `branches`), and measures validation loss as the mean over all tokens."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "trees" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = torch.cat([branches.losses(model, tree) for tree in inputs["trees"]]).mean()
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over the learned tokens of all validation conversations, whatever the batches."""
        model: Any = self.model
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader():
                learned = _learned(batch)
                total += float(self.compute_loss(model, self._prepare_inputs(batch))) * learned
                count += learned
        model.train()
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _learned(batch: dict[str, Any]) -> int:
    if "trees" in batch:
        return sum(len(tree["targets"]) for tree in batch["trees"])
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def padding(pad: int) -> Callable[[list[dict[str, list[int]]]], dict[str, Any]]:
    """A function that pads a batch on the right: tensors of shape (conversations, longest), padding never learned."""

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        ids = [torch.tensor(one["input_ids"]) for one in batch]
        labels = [torch.tensor(one["labels"]) for one in batch]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }

    return collate


class KeepBest(TrainerCallback):  # type: ignore[misc]
    """Writes the history, shows progress and keeps the adapter of the epoch with the best validation loss."""

    def __init__(self, folder: Path, knobs: Params, log: Callable[[dict[str, Any]], Any]) -> None:
        self.folder, self.knobs, self.write = folder, knobs, log
        self.best_loss, self.best_epoch = float("inf"), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # disable=None: a bar on a terminal, nothing in a log, where the lines after each epoch stand for it.
        self.bar = tqdm(total=state.max_steps, desc="finetune", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        place = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
        if "loss" in logs:
            rate = float(f"{logs['learning_rate']:.6g}")
            self.write({**place, "train_loss": round(float(logs["loss"]), 4), "lr": rate})
        elif "eval_loss" in logs:
            self.write({**place, "validation_loss": round(logs["eval_loss"], 4)})

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loss, epoch = given["metrics"]["eval_loss"], round(state.epoch or 0)
        notice(f"epoch {epoch} of {self.knobs.epochs}: validation loss {loss:.4f}")
        if state.global_step and loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, epoch
            self._save(given["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def _save(self, model: Any) -> None:
        for config in model.peft_config.values():
            # The name, not the folder: where the weights lie differs between machines.
            config.base_model_name_or_path = self.knobs.unsloth.model
        # LoRA leaves the vocabulary as it is; to find that out, peft would look for the base model by name.
        model.save_pretrained(self.folder, save_embedding_layers=False)
