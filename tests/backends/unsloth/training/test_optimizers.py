"""The first update of each optimizer in the finetune stage, recomputed from its gradients with the papers' formulas."""

import pytest
import torch

# Constants of the formulas below; none is any library's default.
LR, DECAY = 0.0123, 0.31


def sgd(weight, gradient):
    return gradient


def adamw(weight, gradient):
    """After one step, both bias-corrected averages equal those of the gradient (Kingma and Ba 2015)."""
    return gradient / (gradient.abs() + 1e-8)


def adafactor(weight, gradient):
    """Squared gradients factored into row and column means; the RMS of the update is clipped to 1.

    At the first step the average equals the gradient's squares (Shazeer and Stern 2018, arXiv:1804.04235).
    """
    squares = gradient**2 + 1e-30
    if gradient.ndim == 2:
        rows, columns = squares.mean(dim=1, keepdim=True), squares.mean(dim=0, keepdim=True)
        squares = rows * columns / rows.mean()
    update = gradient / squares.sqrt()
    return update / max(1.0, float(update.square().mean().sqrt()))


@pytest.mark.parametrize("optim, update", [("adamw_torch", adamw), ("adafactor", adafactor), ("sgd", sgd)])
def test_the_first_update_is_that_of_the_selected_optimizer(observed, optim, update):
    error, _ = observed(
        "first_update",
        optim=optim,
        method="full",
        lr=LR,
        weight_decay=DECAY,
        max_grad_norm=None,
        scheduler="constant",
        warmup_ratio=0.0,
        batch_size=16,
        epochs=1,
    )
    assert error is None
    seen = torch.load("update.pt")
    assert sum(weight.numel() for weight in seen["before"]) == 90_624, "all weights of the small model are trained"
    for before, gradient, after in zip(seen["before"], seen["gradients"], seen["after"], strict=True):
        # Only matrices decay.
        decay = DECAY * before if before.ndim == 2 else 0
        torch.testing.assert_close(after, before - LR * (decay + update(before, gradient)), rtol=1e-3, atol=1e-6)
