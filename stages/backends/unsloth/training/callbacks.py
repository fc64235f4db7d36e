"""What happens during training: history, progress bar, keeping the best model, early stopping."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from stages.backends.unsloth.training.checkpoints import Checkpoint
from stages.core.cli import UserError, notice
from stages.params import Params

_KEPT = ("best_loss", "best_epoch", "best_step", "stale")


class KeepBest(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Evaluates after each epoch, keeps the model with the best validation loss, and stops if it no longer improves.

    `epoch_steps` is the number of optimizer steps per epoch. The best model in `folder` is always complete.
    """

    def __init__(self, folder: Path, epoch_steps: int, knobs: Params, log: Callable[[dict[str, Any]], Any]) -> None:
        self.folder, self.epoch_steps, self.knobs, self.write = folder, epoch_steps, knobs, log
        self.best_loss, self.best_epoch, self.best_step, self.stale = float("inf"), 0.0, 0, 0

    def state(self) -> dict[str, Any]:
        """State to be saved in checkpoints."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in _KEPT}}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the state from a checkpoint, and rewrite the history up to it."""
        for name, value in checkpoint.callback(type(self).__name__).items():
            setattr(self, name, value)
        for entry in checkpoint.state["log_history"]:
            self._log(entry, entry["step"], entry["epoch"])

    def summary(self) -> str:
        """Describe the best model so far in one line."""
        if not self.best_step:
            return "no epoch was completed, so there is no model to keep"
        return f"the best model so far (epoch {self.best_epoch:g}, step {self.best_step}) is in {self.folder}"

    @property
    def stopped(self) -> bool:
        """Whether the validation loss has not improved for `early_stopping_patience` epochs."""
        patience = self.knobs.early_stopping_patience
        return patience is not None and self.stale >= patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # disable=None: a bar on a terminal only; a log has one line per epoch.
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="finetune", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        # Not at the end of the epoch, an event that a run resumed from this step would miss.
        control.should_evaluate = state.global_step % self.epoch_steps == 0 or state.global_step == state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self._log(logs or {}, state.global_step, state.epoch or 0)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loss, epoch = given["metrics"]["eval_loss"], round(state.epoch or 0, 4)
        notice(f"epoch {epoch:g} of {self.knobs.epochs:g}: validation loss {loss:.4f}")
        if not state.global_step:
            return
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.best_step, self.stale = loss, epoch, state.global_step, 0
            self._keep(given["model"])
        else:
            self.stale += 1
        if self.stopped:
            epochs = "1 epoch" if self.stale == 1 else f"{self.stale} epochs"
            notice(f"stopped early: validation loss has not improved for {epochs}")
            control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def _log(self, logs: dict[str, Any], step: int, epoch: float) -> None:
        place = {"step": step, "epoch": round(epoch, 4)}
        if "loss" in logs:
            rate = float(f"{logs['learning_rate']:.6g}")
            self.write({**place, "train_loss": round(float(logs["loss"]), 4), "lr": rate})
        elif "eval_loss" in logs:
            self.write({**place, "validation_loss": round(logs["eval_loss"], 4)})

    def _keep(self, model: Any) -> None:
        part = self.folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        # Adapters do not change the vocabulary; to check that, peft would look up the base model by name.
        options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        try:
            model.save_pretrained(part, **options)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise UserError(
                f"cannot write the best model to {self.folder} ({error}); free disk space and rerun to resume from"
                " the last checkpoint"
            ) from None
        shutil.rmtree(self.folder, ignore_errors=True)
        part.rename(self.folder)
