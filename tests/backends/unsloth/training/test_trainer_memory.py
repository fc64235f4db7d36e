"""Where memory runs out, a step or a validation is repeated in smaller parts, with the same result."""

from types import SimpleNamespace

import pytest
import torch

from tests.support import plain
from tests.support.plain import close, collected


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_step_that_runs_out_of_memory_is_repeated_with_smaller_micro_batches(made, monkeypatch, capsys, error):
    trainer = made(budget=768, adversarial__method="neftune")
    torch.manual_seed(3)
    trainer.training_step(trainer.model, plain.batch())
    expected, drawn = collected(trainer.model), torch.get_rng_state()
    trainer.model.zero_grad()
    real, calls = trainer._gradients, []

    def once(model, examples):
        calls.append(trainer.batches.budget)
        if len(calls) > 1:
            # Undivided again, so that the same noise gives the same gradient.
            trainer.batches.budget = 768
            return real(model, examples)
        real(model, examples)
        raise error

    monkeypatch.setattr(trainer, "_gradients", once)
    torch.manual_seed(3)
    trainer.training_step(trainer.model, plain.batch())
    # 19 tokens in total: a budget of 9 splits them.
    assert calls == [768, 9]
    assert "out of memory; limiting micro-batches to 9 tokens from now on" in capsys.readouterr().out
    close(collected(trainer.model), expected)
    assert torch.equal(torch.get_rng_state(), drawn), "the failed step's random numbers are drawn again"


def test_other_errors_in_a_step_are_not_mistaken_for_running_out_of_memory(made, monkeypatch):
    trainer = made()

    def fail(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer, "_gradients", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.training_step(trainer.model, plain.batch())


def test_which_errors_mean_out_of_memory():
    from stages.backends.unsloth.common.device import out_of_memory

    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(RuntimeError("can't allocate memory: 1"))
    assert not out_of_memory(RuntimeError("shapes"))


def test_a_validation_that_runs_out_of_memory_is_repeated_with_smaller_micro_batches(made, monkeypatch, capsys):
    trainer = made(budget=768)
    expected = trainer.evaluate()["eval_loss"]
    real, budgets = trainer._loss, []

    def loss(*given):
        budgets.append(trainer.batches.budget)
        if trainer.batches.budget > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    monkeypatch.setattr(trainer, "_loss", loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert budgets[0] == 768 and set(budgets[1:]) == {9}
    assert "limiting micro-batches to 9 tokens" in capsys.readouterr().out


def test_random_states_of_gpus_are_restored(monkeypatch):
    from stages.backends.unsloth.training import trainer

    restored = []
    fake = SimpleNamespace(
        is_available=lambda: True, get_rng_state_all=lambda: ["state"], set_rng_state_all=restored.append
    )
    monkeypatch.setattr(trainer.torch, "cuda", fake)
    states = trainer._random_states()
    drawn = torch.rand(1)
    trainer._restore(states)
    assert torch.equal(torch.rand(1), drawn) and restored == [["state"]]
