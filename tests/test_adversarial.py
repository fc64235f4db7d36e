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


def started(epsilon):
    """The random start by hand: uniform within epsilon / sqrt(L d), for L of 3 and 2 tokens and d of 4."""
    torch.manual_seed(0)
    start = torch.empty(2, 3, 4).uniform_(-1, 1)
    start[0] *= epsilon / 12**0.5
    start[1] *= epsilon / 8**0.5
    start[1, 2] = 0
    return start


def stepped(toy, at, length, epsilon):
    """One step of this length up the loss for each conversation, then back into its ball."""
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
def test_each_step_of_the_climb_by_hand(monkeypatch, method, length):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, gradient = run(toy, method, epsilon=0.5, steps=4, step_size=length)
    expected = [started(0.5)]
    for _ in range(4):
        expected.append(stepped(toy, expected[-1], length, 0.5))
    # pgd learns at the end of its steps, freelb before each of them.
    used = expected if method == "pgd" else expected[:-1]
    assert len(shifts) == len(used)
    for one, other in zip(shifts, used, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    objective = toy(used[-1]) if method == "pgd" else sum(toy(one) for one in used) / 4
    assert float(loss) == pytest.approx(float(objective.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(toy, objective), rtol=1e-4, atol=1e-5)


def test_the_noise_of_neftune_by_hand(monkeypatch):
    toy = Toy()
    shifts = seen(toy, monkeypatch)
    loss, _ = run(toy, "neftune", epsilon=5.0)
    torch.testing.assert_close(shifts[-1], started(5.0))
    assert float(loss) == pytest.approx(float(toy(started(5.0)).detach()), rel=1e-5)


def test_the_worst_direction_by_hand_and_no_weight_gets_a_gradient():
    toy = Toy()
    found = adversarial.worst(toy, toy.embeddings, MEMBERS, 0.3)
    still = torch.zeros(2, 3, 4, requires_grad=True)
    (up,) = torch.autograd.grad(toy(still), still)
    for number in (0, 1):
        part = number == MEMBERS
        torch.testing.assert_close(found[part], 0.3 * up[part] / up[part].norm())
    assert float(found[1, 2].abs().max()) == 0 and toy.w.grad is None


def test_only_what_is_outside_the_ball_is_brought_to_its_surface():
    shift = torch.zeros(2, 3, 4)
    # Norms of 5 (a triangle of 3 and 4) and of 2, over several positions.
    shift[0, 0, 0], shift[0, 2, 1], shift[1, 1, 3] = 3.0, -4.0, 2.0
    assert adversarial.norms(shift, MEMBERS).tolist() == [5.0, 2.0]
    found = adversarial.projected(shift, MEMBERS, 2.5)
    assert (found[0, 0, 0], found[0, 2, 1], found[1, 1, 3]) == (1.5, -2.0, 2.0)
    grown = adversarial.resized(shift, MEMBERS, 10.0)
    assert (grown[0, 0, 0], grown[0, 2, 1], grown[1, 1, 3]) == (6.0, -8.0, 10.0)


def test_what_padding_gets_is_left_out_of_the_norm_and_taken_away():
    shift = torch.ones(2, 3, 4)
    # 3 and 2 positions of four ones each.
    assert adversarial.norms(shift, MEMBERS).tolist() == pytest.approx([12**0.5, 8**0.5])
    assert float(adversarial.resized(shift, MEMBERS, 1.0)[1, 2].abs().max()) == 0


def test_norms_are_taken_in_float32():
    # 1 + 2 ** -10 is 1 in bf16's eight bits: what is summed there is lost.
    shift = torch.full((1, 1000, 4), 2.0**-5, dtype=torch.bfloat16)
    found = adversarial.norms(shift, torch.zeros(1, 1000, dtype=torch.long))
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx([(4000 * 2.0**-10) ** 0.5])


def test_the_embeddings_keep_their_number_format_and_are_themselves_again_afterwards():
    embeddings = torch.nn.Embedding(10, 4).to(torch.bfloat16)
    ids = torch.tensor([[1, 2]])
    before = embeddings(ids)
    with pytest.raises(ZeroDivisionError), adversarial.disturbed(embeddings, torch.full((1, 2, 4), 0.5)):
        assert embeddings(ids).dtype == torch.bfloat16
        torch.testing.assert_close(embeddings(ids), before + 0.5)
        raise ZeroDivisionError
    assert torch.equal(embeddings(ids), before)


def test_fgm_goes_back_for_the_gradient_of_the_clean_loss_once():
    toy, seen = Toy(), []
    adversarial.backward(knobs("fgm"), toy, toy.embeddings, MEMBERS, lambda one: (seen.append(one), one.backward()))
    assert len(seen) == 2 and float(seen[1].detach()) > float(seen[0].detach())
