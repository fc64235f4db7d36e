"""TRL's SFTTrainer with the project's training step: micro-batches, adversarial steps, groups of learning rates.

Import it only after Unsloth: it takes the trainer that Unsloth has patched.
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

from stages.backends.unsloth.chat import Example
from stages.command import UserError, notice
from stages.params import Params
from stages.training import adversarial, checkpoints, micro_batches
from stages.training.micro_batches import MicroBatch, MicroBatches
from stages.training.optimizer import Group
from stages.training.progress import KeepBest


class Trainer(SFTTrainer):  # type: ignore[misc]
    """Trains on lists of examples, measures validation loss as the mean over all tokens, keeps whole checkpoints."""

    def __init__(
        self, knobs: Params, batches: MicroBatches, groups: Sequence[Group], keep: KeepBest, **given: Any
    ) -> None:
        formats = {id(weight): weight.dtype for group in groups for weight in group.tensors}
        # The collator leaves a batch as it is: how it is cut depends on the memory that is free at its step.
        super().__init__(data_collator=_examples, callbacks=[keep], **given)
        # TRL brings the adapters over a base in 4 bit to bf16, where small steps are lost in rounding.
        for weight in (weight for group in groups for weight in group.tensors):
            weight.data = weight.data.to(formats[id(weight)])
        self.folder = Path(str(self.args.output_dir))
        self.knobs, self.batches, self.groups, self.keep = knobs, batches, groups, keep
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer that `optim` names, over the groups."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind([group.options(self.knobs) for group in self.groups], **options)
        return self.optimizer

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of the mean loss over the batch's learned tokens; smaller micro-batches where memory runs out.

        Raises:
            UserError: the loss or the gradient is not finite, or one conversation alone does not fit the memory.
        """
        model.train()
        while True:
            states = _random_states()
            try:
                loss = self._gradients(model, inputs["examples"])
                break
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Out of the except block, whose traceback holds the tensors that should go.
            model.zero_grad()
            torch.cuda.empty_cache()
            self.batches.shrink(inputs["examples"])
            notice(f"finetune: out of memory, so micro-batches have at most {self.batches.budget} tokens from now on")
            _restore(states)
        self._refuse_divergence(model, loss)
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over the learned tokens of all validation conversations, whatever the batches."""
        model: Any = self.model
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                for micro in self.batches.of(batch["examples"]):
                    total += float(self._loss(model, self._prepare_inputs(micro)))
                    count += micro_batches.learned(micro)
        model.train()
        if not math.isfinite(total):
            self._diverged("validation loss")
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _gradients(self, model: Any, batch: Sequence[Example]) -> torch.Tensor:
        """Add the batch's gradients, micro-batch by micro-batch, to the weights; returns its loss."""
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
        """Sum of the losses of a micro-batch's learned tokens."""
        with self.compute_loss_context_manager():
            if "branch" in micro or smoothing:
                return micro_batches.losses(model, micro, smoothing).sum()
            # Unsloth's own loss, which never holds the logits of all tokens.
            return self.compute_loss(model, micro) * micro_batches.learned(micro)

    def _refuse_divergence(self, model: Any, loss: torch.Tensor) -> None:
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        if not loss.isfinite():
            self._diverged("loss")
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            self._diverged("gradient")

    def _diverged(self, what: str) -> NoReturn:
        step = self.state.global_step
        less = f"an adversarial.epsilon below {self.knobs.adversarial.epsilon:g}"
        milder = [less] if self.knobs.adversarial.method != "none" else []
        if not step:
            number_format = str(self.model.dtype).removeprefix("torch.")  # type: ignore[union-attr]
            raise UserError(
                f"training cannot start: before the first update the {what} is NaN or infinite\n"
                f"not lr, but the base model is to blame: its weights are broken, or overflow in {number_format};"
                f" choose {' or '.join(['another unsloth.model', *milder])}"
            )
        lower = [f"try lr {self.knobs.lr / 10:g}", "a larger warmup_ratio"]
        clipped = ["max_grad_norm: 1.0"] if self.knobs.max_grad_norm is None else []
        # Weights grow for many steps before a loss is infinite: good is what was measured.
        checkpoints.drop_after(self.folder, self.keep.best_step)
        raise UserError(
            f"training diverged after step {step}: the {what} is NaN or infinite\n"
            f"most likely lr {self.knobs.lr:g} is too high: {', '.join(lower + clipped + milder)}\n{self.keep.told()}"
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights into the very tensors that the groups, and so the optimizer, hold."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = dict(self.model.named_parameters())  # type: ignore[union-attr]
        for group in self.groups:
            for name, tensor in zip(group.names, group.tensors, strict=True):
                # peft puts a new tensor in the place of one that it casts; the optimizer would go on with the old one.
                assert loaded[name] is tensor, f"{name} would not be trained any more"

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write a checkpoint and seal it; one that cannot be written is left out, and training goes on."""
        folder = checkpoints.folder_of(self.folder, self.state.global_step)
        try:
            super()._save_checkpoint(model, trial)
            checkpoints.seal(folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = str(error).strip().splitlines()[0]
            notice(f"finetune: no checkpoint at step {self.state.global_step}, training goes on without it ({reason})")

    def _get_learning_rate(self) -> float:
        """The rate of a weight whose multiplier is 1."""
        return float(super()._get_learning_rate() / self.groups[0].multiplier)


def _examples(batch: list[dict[str, list[int]]]) -> dict[str, list[Example]]:
    return {"examples": [Example(one["input_ids"], one["labels"]) for one in batch]}


def _out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
