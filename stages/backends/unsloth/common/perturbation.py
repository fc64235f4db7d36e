"""Perturbations of embeddings, for the perturbed loss and for adversarial training.

A perturbation has the shape of the embedded micro-batch, (rows, length, dimension), and is added to the output of the
model's input embeddings. Its size is the L2 norm over all positions of one conversation, independent of the rest of
the micro-batch. `members`, of shape (rows, length), assigns each position to a conversation, numbered from 0; padding
is -1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Computes the loss of the micro-batch, a differentiable scalar.
Loss = Callable[[], torch.Tensor]


def worst(loss: Loss, embeddings: Any, members: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The worst perturbation of norm `epsilon` for each conversation, to first order: along the gradient."""
    still = torch.zeros(*members.shape, embeddings.weight.shape[1], device=members.device, requires_grad=True)
    with disturbed(embeddings, still):
        (gradient,) = torch.autograd.grad(loss(), still)
    return resized(gradient, members, epsilon)


@contextmanager
def disturbed(embeddings: Any, perturbation: torch.Tensor) -> Iterator[None]:
    """Add the perturbation to the output of the input embeddings."""
    hook = embeddings.register_forward_hook(lambda _module, _inputs, out: out + perturbation.to(out.dtype))
    try:
        yield
    finally:
        hook.remove()


def norms(perturbation: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """L2 norm per conversation, shape (conversations,)."""
    return _sums(perturbation.float().square().sum(dim=-1), members).sqrt()


def resized(perturbation: torch.Tensor, members: torch.Tensor, norm: float) -> torch.Tensor:
    """Rescale to this L2 norm per conversation; zeros stay zero."""
    return perturbation * each(norm / norms(perturbation, members).clamp(min=1e-12), members)


def projected(perturbation: torch.Tensor, members: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Project onto the ball of radius `epsilon` (L2), per conversation."""
    return perturbation * each((epsilon / norms(perturbation, members).clamp(min=1e-12)).clamp(max=1), members)


def tokens(members: torch.Tensor) -> torch.Tensor:
    """Number of tokens per conversation, shape (conversations,)."""
    return _sums(torch.ones(members.shape, device=members.device), members)


def _sums(values: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Sum values of shape (rows, length) per conversation: shape (conversations,)."""
    real = members >= 0
    sums = torch.zeros(int(members.max()) + 1, device=values.device)
    return sums.index_add(0, members[real], values[real])


def each(factors: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Broadcast one factor per conversation to its positions, 0 at padding: shape (rows, length, 1)."""
    return (factors[members.clamp(min=0)] * (members >= 0))[..., None]
