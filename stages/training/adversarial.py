"""Adversarial training: learn on embeddings that are disturbed, by noise or against the gradient.

A perturbation has the shape of the embedded micro-batch, (rows, length, dimension), and is added to the output of the
model's input embeddings. Its size is the L2 norm over all positions of one conversation, so that it does not depend on
what else is in the micro-batch. `members` of shape (rows, length) says whose each position is: a conversation's
number from 0, or -1 for padding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stages.params import Adversarial

# Computes the loss of the micro-batch: a scalar with a gradient.
Loss = Callable[[], torch.Tensor]
Backward = Callable[[torch.Tensor], Any]


def backward(knobs: Adversarial, loss: Loss, embeddings: Any, members: torch.Tensor, back: Backward) -> torch.Tensor:
    """Add the gradients of the method's objective to the weights, by `back`; returns the loss that it started from.

    - neftune: the loss under noise (Jain et al. 2023, arXiv:2310.05914).
    - fgm: the clean loss plus the loss one step against the gradient (Miyato et al. 2017, arXiv:1605.07725).
    - pgd: the loss at the end of `steps` projected steps from a random start (Madry et al. 2018, arXiv:1706.06083).
    - freelb: the mean of the losses along such steps (Zhu et al. 2020, arXiv:1909.11764).
    """
    if knobs.method == "none":
        return _learn(loss(), back)
    shape = (*members.shape, embeddings.weight.shape[1])
    return _METHODS[knobs.method](knobs, loss, embeddings, members, shape, back)


def worst(loss: Loss, embeddings: Any, members: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The perturbation of norm `epsilon` for each conversation along the gradient: the worst to first order."""
    still = torch.zeros(*members.shape, embeddings.weight.shape[1], device=members.device, requires_grad=True)
    with disturbed(embeddings, still):
        (gradient,) = torch.autograd.grad(loss(), still)
    return resized(gradient, members, epsilon)


@contextmanager
def disturbed(embeddings: Any, perturbation: torch.Tensor) -> Iterator[None]:
    """Add the perturbation to what the module of input embeddings gives."""
    hook = embeddings.register_forward_hook(lambda _module, _inputs, out: out + perturbation.to(out.dtype))
    try:
        yield
    finally:
        hook.remove()


def norms(perturbation: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """L2 norm of each conversation's part, shape (conversations,)."""
    return _sums(perturbation.float().square().sum(dim=-1), members).sqrt()


def resized(perturbation: torch.Tensor, members: torch.Tensor, norm: float) -> torch.Tensor:
    """The same direction with this L2 norm for each conversation; nothing where there is no direction."""
    return perturbation * _each(norm / norms(perturbation, members).clamp(min=1e-12), members)


def projected(perturbation: torch.Tensor, members: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The nearest perturbation of at most this L2 norm for each conversation."""
    return perturbation * _each((epsilon / norms(perturbation, members).clamp(min=1e-12)).clamp(max=1), members)


def _neftune(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    """Uniform noise in [-1, 1] times alpha / sqrt(L d): L tokens of d dimensions."""
    scale = knobs.epsilon / (_tokens(members) * shape[-1]).sqrt()
    noise = torch.empty(shape, device=members.device).uniform_(-1, 1) * _each(scale, members)
    with disturbed(embeddings, noise):
        return _learn(loss(), back)


def _fgm(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    still = torch.zeros(shape, device=members.device, requires_grad=True)
    with disturbed(embeddings, still):
        clean = _learn(loss(), back)
    assert still.grad is not None
    with disturbed(embeddings, resized(still.grad, members, knobs.epsilon)):
        _learn(loss(), back)
    return clean


def _pgd(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    at = _random_start(shape, members, knobs.epsilon)
    for _ in range(knobs.steps):
        at = at.detach().requires_grad_()
        with disturbed(embeddings, at):
            (gradient,) = torch.autograd.grad(loss(), at)
        at = _ascended(at, gradient, members, knobs)
    with disturbed(embeddings, at):
        return _learn(loss(), back)


def _freelb(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    at = _random_start(shape, members, knobs.epsilon)
    mean = torch.zeros((), device=members.device)
    for _ in range(knobs.steps):
        at = at.detach().requires_grad_()
        with disturbed(embeddings, at):
            mean = mean + _learn(loss() / knobs.steps, back)
        assert at.grad is not None
        at = _ascended(at, at.grad, members, knobs)
    return mean


_METHODS: dict[str, Callable[..., torch.Tensor]] = {"neftune": _neftune, "fgm": _fgm, "pgd": _pgd, "freelb": _freelb}


def _learn(loss: torch.Tensor, back: Backward) -> torch.Tensor:
    back(loss)
    return loss.detach()


def _random_start(shape: tuple[int, ...], members: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Uniform in [-epsilon, epsilon] over the square root of a conversation's N numbers: a norm below epsilon."""
    scale = epsilon / (_tokens(members) * shape[-1]).sqrt()
    return torch.empty(shape, device=members.device).uniform_(-1, 1) * _each(scale, members)


def _ascended(at: torch.Tensor, gradient: torch.Tensor, members: torch.Tensor, knobs: Adversarial) -> torch.Tensor:
    """One step of length `step_size` up the loss, and back into the ball of radius `epsilon`."""
    return projected(at.detach() + resized(gradient, members, knobs.step_size), members, knobs.epsilon)


def _tokens(members: torch.Tensor) -> torch.Tensor:
    return _sums(torch.ones(members.shape, device=members.device), members)


def _sums(values: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Sum of the positions' values, shape (rows, length), over each conversation: shape (conversations,)."""
    real = members >= 0
    sums = torch.zeros(int(members.max()) + 1, device=values.device)
    return sums.index_add(0, members[real], values[real])


def _each(factors: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Each conversation's factor at its positions, 0 at padding: shape (rows, length, 1)."""
    return (factors[members.clamp(min=0)] * (members >= 0))[..., None]
