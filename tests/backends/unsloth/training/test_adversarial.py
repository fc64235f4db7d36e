"""Perturbations as defined in the papers, checked with plain autograd."""

from types import SimpleNamespace

import pytest
import torch

from stages.backends.unsloth.common import perturbation
from stages.backends.unsloth.training import adversarial

# Two conversations of three and two positions, one of padding; embeddings of four dimensions.
MEMBERS = torch.tensor([[0, 0, 0], [1, 1, -1]])


class Toy(torch.nn.Module):
    """A nonlinear loss: the sum of softplus(embedding @ w) squared over all positions except padding."""

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
    """Record the shifts of the embeddings."""
    shifts = []
    real = perturbation.disturbed

    def spy(embeddings, perturbation):
        shifts.append(perturbation.detach().clone())
        return real(embeddings, perturbation)

    monkey.setattr(perturbation, "disturbed", spy)
    return shifts


def run(toy, method, **values):
    toy.zero_grad()
    torch.manual_seed(0)
    loss = adversarial.backward(knobs(method, **values), toy, toy.embeddings, MEMBERS, lambda one: one.backward())
    return loss, toy.w.grad.clone()


def lengths(shift):
    """L2 norm per conversation."""
    return [float(shift[number == MEMBERS].norm()) for number in (0, 1)]


def test_method_none_gives_the_plain_gradient():
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
    # alpha / sqrt(L d) with L = 3 and 2 tokens and d = 4; none for padding.
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
    # Five steps of 0.2 inside a ball of radius 0.5 end on its surface.
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
    # Each step has length 0.2, unless projection shortens it.
    step = shifts[1] - shifts[0]
    assert max(lengths(step)) <= 0.2 + 1e-6


def test_the_worst_direction_raises_the_loss_more_than_random_ones():
    toy = Toy()
    moved = perturbation.worst(toy, toy.embeddings, MEMBERS, 0.1)
    assert lengths(moved) == pytest.approx([0.1, 0.1], rel=1e-5)
    for _ in range(20):
        other = perturbation.resized(torch.randn(2, 3, 4), MEMBERS, 0.1)
        assert float(toy(moved)) > float(toy(other))


def test_a_conversation_without_a_gradient_is_not_perturbed():
    still = torch.zeros(2, 3, 4)
    assert perturbation.resized(still, MEMBERS, 1.0).abs().max() == 0
    assert perturbation.projected(still, MEMBERS, 1.0).abs().max() == 0


def started(epsilon):
    """The random start: uniform within epsilon / sqrt(L d), for L = 3 and 2 tokens and d = 4."""
    torch.manual_seed(0)
    start = torch.empty(2, 3, 4).uniform_(-1, 1)
    start[0] *= epsilon / 12**0.5
    start[1] *= epsilon / 8**0.5
    start[1, 2] = 0
    return start


def stepped(toy, at, length, epsilon):
    """A step of this length up each conversation's gradient, projected into the ball."""
    still = at.clone().requires_grad_()
    (up,) = torch.autograd.grad(toy(still), still)
    end = torch.zeros_like(at)
    for number in (0, 1):
        part = number == MEMBERS
        moved = at[part] + length * up[part] / up[part].norm()
        end[part] = moved * min(1.0, epsilon / float(moved.norm()))
    return end


@pytest.mark.parametrize("length", [0.02, 0.2, 2.0])
@pytest.mark.parametrize("method", ["pgd", "freelb"])
def test_each_ascent_step_matches_a_manual_computation(monkeypatch, method, length):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, gradient = run(toy, method, epsilon=0.5, steps=4, step_size=length)
    expected = [started(0.5)]
    for _ in range(4):
        expected.append(stepped(toy, expected[-1], length, 0.5))
    # pgd learns after its last step, freelb before each step.
    used = expected if method == "pgd" else expected[:-1]
    assert len(shifts) == len(used)
    for one, other in zip(shifts, used, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    objective = toy(used[-1]) if method == "pgd" else sum(toy(one) for one in used) / 4
    assert float(loss) == pytest.approx(float(objective.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(toy, objective), rtol=1e-4, atol=1e-5)


def test_neftune_noise_matches_a_manual_computation(monkeypatch):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, _ = run(toy, "neftune", epsilon=5.0)
    torch.testing.assert_close(shifts[-1], started(5.0))
    assert float(loss) == pytest.approx(float(toy(started(5.0)).detach()), rel=1e-5)


def test_finding_the_worst_direction_leaves_no_gradients_on_the_weights():
    toy = Toy()
    found = perturbation.worst(toy, toy.embeddings, MEMBERS, 0.3)
    still = torch.zeros(2, 3, 4, requires_grad=True)
    (up,) = torch.autograd.grad(toy(still), still)
    for number in (0, 1):
        part = number == MEMBERS
        torch.testing.assert_close(found[part], 0.3 * up[part] / up[part].norm())
    assert float(found[1, 2].abs().max()) == 0 and toy.w.grad is None


def test_only_perturbations_outside_the_ball_are_projected():
    shift = torch.zeros(2, 3, 4)
    # Norms of 5 (from 3 and 4) and 2, over several positions.
    shift[0, 0, 0], shift[0, 2, 1], shift[1, 1, 3] = 3.0, -4.0, 2.0
    assert perturbation.norms(shift, MEMBERS).tolist() == [5.0, 2.0]
    found = perturbation.projected(shift, MEMBERS, 2.5)
    assert (found[0, 0, 0], found[0, 2, 1], found[1, 1, 3]) == (1.5, -2.0, 2.0)
    grown = perturbation.resized(shift, MEMBERS, 10.0)
    assert (grown[0, 0, 0], grown[0, 2, 1], grown[1, 1, 3]) == (6.0, -8.0, 10.0)


def test_padding_does_not_count_in_the_norm_and_is_zeroed():
    shift = torch.ones(2, 3, 4)
    # 3 and 2 positions, each with four ones.
    assert perturbation.norms(shift, MEMBERS).tolist() == pytest.approx([12**0.5, 8**0.5])
    assert float(perturbation.resized(shift, MEMBERS, 1.0)[1, 2].abs().max()) == 0


def test_norms_are_taken_in_float32():
    # 1 + 2 ** -10 is 1 in bf16: summing in bf16 would lose it.
    shift = torch.full((1, 1000, 4), 2.0**-5, dtype=torch.bfloat16)
    found = perturbation.norms(shift, torch.zeros(1, 1000, dtype=torch.long))
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx([(4000 * 2.0**-10) ** 0.5])


def test_the_embeddings_keep_their_dtype_and_are_restored_afterwards():
    embeddings = torch.nn.Embedding(10, 4).to(torch.bfloat16)
    ids = torch.tensor([[1, 2]])
    before = embeddings(ids)
    with pytest.raises(ZeroDivisionError), perturbation.disturbed(embeddings, torch.full((1, 2, 4), 0.5)):
        assert embeddings(ids).dtype == torch.bfloat16
        torch.testing.assert_close(embeddings(ids), before + 0.5)
        raise ZeroDivisionError
    assert torch.equal(embeddings(ids), before)


def test_fgm_backpropagates_the_clean_loss_once():
    toy, seen = Toy(), []
    adversarial.backward(knobs("fgm"), toy, toy.embeddings, MEMBERS, lambda one: (seen.append(one), one.backward()))
    assert len(seen) == 2 and float(seen[1].detach()) > float(seen[0].detach())
