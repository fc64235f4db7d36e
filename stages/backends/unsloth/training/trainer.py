"""TRL's SFTTrainer with micro-batches, adversarial training and parameter groups.

Import it only after Unsloth, which patches the trainer.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback
from trl import SFTTrainer

from stages.backends.unsloth.common import device
from stages.backends.unsloth.reader import Example
from stages.backends.unsloth.training import adversarial, checkpoints, micro_batches
from stages.backends.unsloth.training.callbacks import KeepBest
from stages.backends.unsloth.training.micro_batches import MicroBatch, MicroBatches
from stages.backends.unsloth.training.optimizer import Group
from stages.core.cli import UserError, notice
from stages.params import Params

# A scale that small is left by step after step that overflowed.
_LEAST_SCALE = 1.0


class Trainer(SFTTrainer):  # type: ignore[misc]
    """Trains on lists of examples; averages the validation loss over all tokens; writes verifiable checkpoints."""

    def __init__(
        self, knobs: Params, batches: MicroBatches, groups: Sequence[Group], keep: KeepBest, **given: Any
    ) -> None:
        formats = {id(weight): weight.dtype for group in groups for weight in group.tensors}
        # The collator does not build tensors: how a batch is split depends on the memory available at its step.
        super().__init__(data_collator=_examples, callbacks=[keep], **given)
        # TRL casts adapters over a 4-bit base to bf16, where small updates are rounded away.
        for weight in (weight for group in groups for weight in group.tensors):
            weight.data = weight.data.to(formats[id(weight)])
        self.folder = Path(str(self.args.output_dir))
        self.knobs, self.batches, self.groups, self.keep = knobs, batches, groups, keep
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> Any:
        """Create the optimizer named by `optim`, with the parameter groups."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind([group.options(self.knobs) for group in self.groups], **options)
        return self.optimizer

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Accumulate gradients of the mean loss over learned tokens; retry with smaller micro-batches if out of memory.

        Raises:
            UserError: the loss or the gradient is not finite, or a single conversation does not fit into memory.
        """
        model.train()
        while True:
            states = _random_states()
            try:
                loss = self._gradients(model, inputs["examples"])
                break
            except RuntimeError as error:
                if not device.out_of_memory(error):
                    raise
            # Outside the except block, whose traceback would keep the tensors alive.
            model.zero_grad()
            self._shrink(inputs["examples"])
            _restore(states)
        self._refuse_divergence(model, loss)
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over the learned tokens of all validation conversations, independent of batching."""
        model: Any = self.model
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                loss, tokens = self._measured(model, batch["examples"])
                total, count = total + loss, count + tokens
        model.train()
        if not math.isfinite(total):
            self._diverged("validation loss")
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self, model: Any, batch: Sequence[Example]) -> tuple[float, int]:
        """Sum of the losses of a batch's learned tokens, and their number; in smaller parts if memory runs out."""
        while True:
            try:
                cut = [self._prepare_inputs(micro) for micro in self.batches.of(batch)]
                return sum(float(self._loss(model, micro)) for micro in cut), sum(map(micro_batches.learned, cut))
            except RuntimeError as error:
                if not device.out_of_memory(error):
                    raise
            self._shrink(batch)

    def _shrink(self, batch: Sequence[Example]) -> None:
        device.free_unused()
        self.batches.shrink(batch)
        notice(f"finetune: out of memory; limiting micro-batches to {self.batches.budget} tokens from now on")

    def _gradients(self, model: Any, batch: Sequence[Example]) -> torch.Tensor:
        """Accumulate the batch's gradients over its micro-batches; return its loss."""
        cut = [self._prepare_inputs(micro) for micro in self.batches.of(batch)]
        count = sum(micro_batches.learned(micro) for micro in cut)
        smoothing = self.knobs.label_smoothing_factor
        total = torch.zeros((), device=self.args.device)
        for micro in cut:
            total += adversarial.backward(
                self.knobs.adversarial,
                lambda micro=micro: self._loss(model, micro, smoothing) / count,  # type: ignore[misc]
                model.get_input_embeddings(),
                micro_batches.members(micro),
                self.accelerator.backward,
            )
        return total

    def _loss(self, model: Any, micro: MicroBatch, smoothing: float = 0.0) -> torch.Tensor:
        """Sum of losses over the micro-batch's learned tokens."""
        with self.compute_loss_context_manager():
            if "branch" in micro or smoothing:
                return micro_batches.losses(model, micro, smoothing).sum()
            # Unsloth's own loss, which never materializes the logits of all tokens.
            return self.compute_loss(model, micro) * micro_batches.learned(micro)

    def _refuse_divergence(self, model: Any, loss: torch.Tensor) -> None:
        if not loss.isfinite():
            self._diverged("loss")
        scaler = self.accelerator.scaler
        if scaler is not None:
            # In fp16 gradients overflow now and then, and the scaler skips that step and scales less from then on.
            if scaler.get_scale() < _LEAST_SCALE:
                self._diverged("gradient")
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            self._diverged("gradient")

    def _diverged(self, what: str) -> NoReturn:
        step = self.state.global_step
        smaller = f"an adversarial.epsilon below {self.knobs.adversarial.epsilon:g}"
        milder = [smaller] if self.knobs.adversarial.method != "none" else []
        if not step:
            number_format = str(self.model.dtype).removeprefix("torch.")  # type: ignore[union-attr]
            raise UserError(
                f"training cannot start: the {what} is NaN or infinite before the first update\n"
                f"the cause is not lr but the base model, whose weights are corrupt or overflow in {number_format};"
                f" choose {' or '.join(['another unsloth.model', *milder])}"
            )
        lower = [f"try lr {self.knobs.lr / 10:g}", "a larger warmup_ratio"]
        clipped = ["max_grad_norm: 1.0"] if self.knobs.max_grad_norm is None else []
        # Weights grow for many steps before the loss is infinite: trust only the best measured epoch.
        checkpoints.drop_after(self.folder, self.keep.best_step)
        raise UserError(
            f"training diverged after step {step}: the {what} is NaN or infinite\n"
            f"lr {self.knobs.lr:g} is probably too high: {', '.join(lower + clipped + milder)}\n{self.keep.summary()}"
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights into the existing tensors, to which the optimizer refers."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = dict(self.model.named_parameters())  # type: ignore[union-attr]
        for group in self.groups:
            for name, tensor in zip(group.names, group.tensors, strict=True):
                # peft replaces a tensor when it casts it; the optimizer would keep updating the old one.
                assert loaded[name] is tensor, f"{name} was replaced on loading, and would no longer be trained"

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write and seal a checkpoint; if that fails, continue training without it."""
        folder = checkpoints.folder_of(self.folder, self.state.global_step)
        try:
            super()._save_checkpoint(model, trial)
            checkpoints.seal(folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = str(error).strip().splitlines()[0]
            notice(f"finetune: no checkpoint at step {self.state.global_step}, continuing without it ({reason})")

    def _get_learning_rate(self) -> float:
        """Learning rate of weights whose multiplier is 1."""
        return float(super()._get_learning_rate() / self.groups[0].multiplier)


def _examples(batch: list[dict[str, list[int]]]) -> dict[str, list[Example]]:
    return {"examples": [Example(one["input_ids"], one["labels"]) for one in batch]}


def _random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), device.random_states()


def _restore(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(states[0])
    device.restore(states[1])
