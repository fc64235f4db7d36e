"""Whether a model keeps the conversations of a micro-batch apart, tried before the first step.

Attention implementations ignore what they do not know, in silence: a mask, lengths or positions. Conversations would
then see each other, and nothing but a slightly worse model would show it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stages.backends.unsloth.common import device
from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import micro_batches, prefix_tree, sequence
from stages.backends.unsloth.training.micro_batches import MicroBatch, MicroBatches
from stages.core.cli import UserError, notice

# Differences in nats that do not matter; those of rounding are smaller.
_SMALL = 0.02
# Of the norm of a gradient in bf16, rounding is a few hundredths.
_GRADIENT = 0.2


def ensure(model: Any, batches: MicroBatches, train: Sequence[Example], required: bool) -> None:
    """Try the form of `batches` and its fallbacks on two conversations, and keep the first that the model reads right.

    On a GPU the gradient is compared too, and all is tried as in training: Unsloth's kernels have code of their own
    for both.

    Raises:
        UserError: none but padding is, and packing is `required`.
    """
    pair = sorted(train, key=lambda one: len(_targets(one)))[-2:]
    on_cpu = device.kind() == "cpu"
    while batches.packed and len(pair) == 2 and _targets(pair[1]):
        form, problem = batches.form, _problem(model, batches, pair[0], pair[1], not on_cpu)
        if not problem:
            return
        batches.fall_back()
        if required and not batches.packed:
            raise UserError(f"packing: this model's attention {problem}; set it to auto")
        instead = "conversations are packed by their lengths" if batches.packed else "conversations are padded"
        notice(f"finetune: this model's attention {problem} ({form}), so {instead}")


def _problem(model: Any, batches: MicroBatches, first: Example, second: Example, as_trained: bool) -> str:
    """What is wrong with how the model reads the form, and nothing if it is right."""
    try:
        if apart(model, batches, first, second, as_trained):
            return ""
    # Kernels that do not run on this device raise anything.
    except Exception as error:
        if not as_trained:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"cannot compute what packing needs: {reason[:200]}"
    finally:
        model.zero_grad()
        device.free_unused()
    return "ignores the mask that packing needs"


def apart(model: Any, batches: MicroBatches, first: Example, second: Example, as_trained: bool) -> bool:
    """Whether a conversation has the same losses beside another as alone; if `as_trained`, in training, and the same
    gradient.

    The difference is compared with the one that seeing all makes.
    """
    beside = batches.whole([first, second])
    seeing_all = prefix_tree.unseparated(beside) if "branch" in beside else sequence.unseparated(beside)
    alone = micro_batches.padded([second], batches.pad)
    with _as_trained(model) if as_trained else _in_evaluation(model):
        expected, wanted = _measured(model, alone, len(_targets(second)), as_trained)
        found, got = _measured(model, beside, len(expected), as_trained)
        with torch.no_grad():
            mixed, _ = _measured(model, seeing_all, len(expected), False)
    allowed = max(float((mixed - expected).abs().mean()) / 2, _SMALL)
    same = bool((found - expected).abs().mean() < allowed)
    return same and bool((got - wanted).norm() <= _GRADIENT * wanted.norm())


def _targets(example: Example) -> list[int]:
    return [label for label in example.labels[1:] if label != IGNORED]


def _measured(model: Any, micro: MicroBatch, count: int, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the last `count` learned tokens, and the gradient of their mean, if it is asked for."""
    where = next(model.parameters()).device
    moved = {name: one.to(where) if isinstance(one, torch.Tensor) else one for name, one in micro.items()}
    with torch.set_grad_enabled(gradient):
        losses = micro_batches.losses(model, moved)[-count:]
    if not gradient:
        return losses.cpu(), torch.zeros(1)
    model.zero_grad()
    losses.mean().backward()
    gradients = [weight.grad.flatten().float() for weight in model.parameters() if weight.grad is not None]
    return losses.detach().cpu(), torch.cat(gradients)


@contextmanager
def _in_evaluation(model: Any) -> Iterator[None]:
    model.eval()
    yield


@contextmanager
def _as_trained(model: Any) -> Iterator[None]:
    """In training, but without dropout, and without using up random numbers."""
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    states = torch.get_rng_state(), device.random_states()
    model.train()
    for module, _ in dropouts:
        module.p = 0.0
    try:
        # Trained weights are held in float32, and computed with as the trainer will.
        with torch.autocast(device.kind(), device.half(), enabled=_mixed(model)):
            yield
    finally:
        for module, rate in dropouts:
            module.p = rate
        model.eval()
        torch.set_rng_state(states[0])
        device.restore(states[1])


def _mixed(model: Any) -> bool:
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    return device.kind() != "cpu" and any(weight.dtype == torch.float32 for weight in trained)
