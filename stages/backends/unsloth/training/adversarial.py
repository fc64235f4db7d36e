"""Adversarial training: the loss on embeddings perturbed by noise or along the gradient.

For perturbations and `members` see `common.perturbation`.
"""

from collections.abc import Callable
from typing import Any

import torch

from stages.backends.unsloth.common import perturbation
from stages.backends.unsloth.common.perturbation import Loss
from stages.params import Adversarial

Backward = Callable[[torch.Tensor], Any]


def backward(knobs: Adversarial, loss: Loss, embeddings: Any, members: torch.Tensor, back: Backward) -> torch.Tensor:
    """Backpropagate the method's objective through `back`; return the loss to report.

    - neftune: the loss under noise (Jain et al. 2023, arXiv:2310.05914).
    - fgm: the clean loss plus the loss after one step along the gradient (Miyato et al. 2017, arXiv:1605.07725).
    - pgd: the loss at the end of `steps` projected steps from a random start (Madry et al. 2018, arXiv:1706.06083).
    - freelb: the mean of the losses along such steps (Zhu et al. 2020, arXiv:1909.11764).
    """
    if knobs.method == "none":
        return _learn(loss(), back)
    shape = (*members.shape, embeddings.weight.shape[1])
    return _METHODS[knobs.method](knobs, loss, embeddings, members, shape, back)


def _neftune(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    """Uniform noise in [-1, 1] times alpha / sqrt(L d): L tokens of d dimensions."""
    scale = knobs.epsilon / (perturbation.tokens(members) * shape[-1]).sqrt()
    noise = torch.empty(shape, device=members.device).uniform_(-1, 1) * perturbation.each(scale, members)
    with perturbation.disturbed(embeddings, noise):
        return _learn(loss(), back)


def _fgm(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    still = torch.zeros(shape, device=members.device, requires_grad=True)
    with perturbation.disturbed(embeddings, still):
        clean = _learn(loss(), back)
    assert still.grad is not None
    with perturbation.disturbed(embeddings, perturbation.resized(still.grad, members, knobs.epsilon)):
        _learn(loss(), back)
    return clean


def _pgd(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    at = _random_start(shape, members, knobs.epsilon)
    for _ in range(knobs.steps):
        at = at.detach().requires_grad_()
        with perturbation.disturbed(embeddings, at):
            (gradient,) = torch.autograd.grad(loss(), at)
        at = _ascended(at, gradient, members, knobs)
    with perturbation.disturbed(embeddings, at):
        return _learn(loss(), back)


def _freelb(knobs: Adversarial, loss: Loss, embeddings: Any, members: Any, shape: Any, back: Backward) -> Any:
    at = _random_start(shape, members, knobs.epsilon)
    mean = torch.zeros((), device=members.device)
    for _ in range(knobs.steps):
        at = at.detach().requires_grad_()
        with perturbation.disturbed(embeddings, at):
            mean = mean + _learn(loss() / knobs.steps, back)
        assert at.grad is not None
        at = _ascended(at, at.grad, members, knobs)
    return mean


_METHODS: dict[str, Callable[..., torch.Tensor]] = {"neftune": _neftune, "fgm": _fgm, "pgd": _pgd, "freelb": _freelb}


def _learn(loss: torch.Tensor, back: Backward) -> torch.Tensor:
    back(loss)
    return loss.detach()


def _random_start(shape: tuple[int, ...], members: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Uniform in [-epsilon, epsilon] / sqrt(N) for a conversation of N values: a norm below epsilon."""
    scale = epsilon / (perturbation.tokens(members) * shape[-1]).sqrt()
    return torch.empty(shape, device=members.device).uniform_(-1, 1) * perturbation.each(scale, members)


def _ascended(at: torch.Tensor, gradient: torch.Tensor, members: torch.Tensor, knobs: Adversarial) -> torch.Tensor:
    """Take a step of length `step_size` up the gradient, and project into the ball of radius `epsilon`."""
    return perturbation.projected(
        at.detach() + perturbation.resized(gradient, members, knobs.step_size), members, knobs.epsilon
    )
