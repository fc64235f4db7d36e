"""Perturbations against what the papers define, computed again by plain autograd."""

from types import SimpleNamespace

import pytest
import torch

from stages.training import adversarial

# Two conversations of three and two positions, one of padding; embeddings of four dimensions.
MEMBERS = torch.tensor([[0, 0, 0], [1, 1, -1]])


class Toy(torch.nn.Module):
    """A loss that bends: the sum over positions of softplus(embedding @ w) squared, padding left out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embeddings = torch.nn.Embedding(10, 4)
        self.w = torch.nn.Parameter(torch.randn(4))

    def forward(self, shift=0.0):
        ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
        each = torch.nn.functional.softplus((self.embeddings(ids) + shift) @ self.w) ** 2
        return (each * (MEMBERS >= 0)).sum()


def knobs(method, epsilon=0.5, steps=3, step_size=0.2):
    return SimpleNamespace(method=method, epsilon=epsilon, steps=steps, step_size=step_size)


def gradient_of(toy, loss):
    return torch.autograd.grad(loss, toy.w)[0]


def seen(toy, monkey):
    """Records the shifts that the embeddings get."""
    shifts = []
    real = adversarial.disturbed

    def spy(embeddings, perturbation):
        shifts.append(perturbation.detach().clone())
        return real(embeddings, perturbation)

    monkey.setattr(adversarial, "disturbed", spy)
    return shifts


def run(toy, method, **values):
    toy.zero_grad()
    torch.manual_seed(0)
    loss = adversarial.backward(knobs(method, **values), toy, toy.embeddings, MEMBERS, lambda one: one.backward())
    return loss, toy.w.grad.clone()


def lengths(shift):
    """L2 norm of each conversation's part."""
    return [float(shift[number == MEMBERS].norm()) for number in (0, 1)]


def test_none_is_the_plain_gradient():
    toy = Toy()
    loss, gradient = run(toy, "none")
    torch.testing.assert_close(gradient, gradient_of(toy, toy()))
    assert float(loss) == pytest.approx(float(toy()))


def test_neftune_scales_uniform_noise_by_the_tokens_of_each_conversation(monkeypatch):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    for _ in range(200):
        run(toy, "neftune", epsilon=5.0)
        torch.manual_seed(torch.initial_seed() + 1)
    _, gradient = run(toy, "neftune", epsilon=5.0)
    (noise,) = shifts[-1:]
    torch.testing.assert_close(gradient, gradient_of(toy, toy(noise)))
    # alpha / sqrt(L d) with L of 3 and 2 tokens, d of 4; padding gets none.
    for number, bound in ((0, 5 / 12**0.5), (1, 5 / 8**0.5)):
        largest = max(float(one[number == MEMBERS].abs().max()) for one in shifts)
        assert 0.8 * bound < largest <= bound
    assert float(noise[1, 2].abs().max()) == 0


def test_fgm_adds_the_loss_one_step_along_the_gradient(monkeypatch):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, gradient = run(toy, "fgm")
    still = torch.zeros(2, 3, 4, requires_grad=True)
    (up,) = torch.autograd.grad(toy(still), still)
    expected = torch.zeros_like(up)
    for number in (0, 1):
        part = number == MEMBERS
        expected[part] = 0.5 * up[part] / up[part].norm()
    torch.testing.assert_close(shifts[-1], expected)
    torch.testing.assert_close(gradient, gradient_of(toy, toy() + toy(expected)))
    assert float(loss) == pytest.approx(float(toy())) and float(toy(expected)) > float(toy())


def test_pgd_climbs_inside_the_ball_and_learns_at_its_end(monkeypatch):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, gradient = run(toy, "pgd", steps=5)
    assert len(shifts) == 6
    assert all(length <= 0.5 + 1e-6 for one in shifts for length in lengths(one))
    # Five steps of 0.2 from inside a ball of 0.5 end on its surface.
    assert lengths(shifts[-1]) == pytest.approx([0.5, 0.5], rel=1e-5)
    climbed = [float(toy(one)) for one in shifts]
    assert climbed == sorted(climbed) and float(loss) == pytest.approx(climbed[-1])
    torch.testing.assert_close(gradient, gradient_of(toy, toy(shifts[-1])))


def test_freelb_learns_the_mean_along_the_way(monkeypatch):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, gradient = run(toy, "freelb")
    assert len(shifts) == 3
    mean = sum(toy(one) for one in shifts) / 3
    torch.testing.assert_close(gradient, gradient_of(toy, mean))
    assert float(loss) == pytest.approx(float(mean))
    # Each step has the length 0.2, unless the ball cuts it.
    step = shifts[1] - shifts[0]
    assert max(lengths(step)) <= 0.2 + 1e-6


def test_the_worst_direction_raises_the_loss_more_than_random_ones():
    toy = Toy()
    moved = adversarial.worst(toy, toy.embeddings, MEMBERS, 0.1)
    assert lengths(moved) == pytest.approx([0.1, 0.1], rel=1e-5)
    for _ in range(20):
        other = adversarial.resized(torch.randn(2, 3, 4), MEMBERS, 0.1)
        assert float(toy(moved)) > float(toy(other))


def test_a_conversation_without_a_gradient_stays_where_it_is():
    still = torch.zeros(2, 3, 4)
    assert adversarial.resized(still, MEMBERS, 1.0).abs().max() == 0
    assert adversarial.projected(still, MEMBERS, 1.0).abs().max() == 0
