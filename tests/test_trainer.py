"""What the trainer computes, against plain torch: losses by token, gradients of micro-batches, what it refuses."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages.backends.unsloth.chat import Example
from stages.command import UserError

from . import plain
from .plain import EXAMPLES, close, collected, gradients, knobs, mean_loss

# Packed in one tree, packed in trees of one conversation, padded, and padded one by one.
CUTS = [(True, 768), (True, 1), (False, 768), (False, 1)]


@pytest.fixture
def made(project, small_base, monkeypatch):
    """made(packed, budget, **knobs): the trainer over all weights of the small model."""
    plain.on_the_cpu(monkeypatch)

    def make(packed=True, budget=768, examples=EXAMPLES, log=lambda row: None, **values):
        chosen = knobs(**values)
        held = plain.trainable(small_base, chosen, packed=packed, budget=budget)
        return plain.trainer(held, chosen, Path("kept").resolve(), examples, examples, log)

    return make


@pytest.mark.parametrize("packed, budget", CUTS)
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_validation_loss_is_averaged_by_token(made, packed, budget, batch_size):
    trainer = made(packed, budget, batch_size=batch_size)
    with torch.no_grad():
        expected = float(mean_loss(trainer.model))
        # Whatever else one could average, by conversation or by batch, is another number.
        by_conversation = sum(float(plain.token_losses(trainer.model, one).mean()) for one in EXAMPLES) / len(EXAMPLES)
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(expected, rel=1e-5) and found != pytest.approx(by_conversation, rel=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_the_validation_loss_has_neither_label_smoothing_nor_dropout(made, packed):
    trainer = made(packed, label_smoothing_factor=0.3, attention_dropout=0.5)
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    trainer.model.eval()
    with torch.no_grad():
        expected = float(mean_loss(trainer.model))
    trainer.model.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.model.training, "training continues in training mode"


def test_the_validation_loss_goes_to_the_history_and_to_the_choice_of_the_best(made):
    rows = []
    trainer = made(log=rows.append)
    trainer.state.global_step, trainer.state.epoch = 4, 1.0
    loss = trainer.evaluate()["eval_loss"]
    assert rows == [{"step": 4, "epoch": 1.0, "validation_loss": round(loss, 4)}]
    assert (trainer.keep.best_loss, trainer.keep.best_step) == (loss, 4) and trainer.keep.folder.is_dir()


@pytest.mark.parametrize("packed, budget", CUTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_has_the_gradient_of_the_mean_over_the_batchs_learned_tokens(made, packed, budget, smoothing):
    trainer = made(packed, budget, label_smoothing_factor=smoothing)
    expected = mean_loss(trainer.model, smoothing=smoothing)
    loss = trainer.training_step(trainer.model, plain.batch())
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    close(collected(trainer.model), gradients(trainer.model, expected))


METHODS = {"neftune": 8, "fgm": 2, "pgd": 4, "freelb": 3}


def moved(trainer, method, epsilon=0.6, steps=3, step_size=0.25):
    """The objective of the method over EXAMPLES by plain autograd; draws as the trainer does, one tree of all."""
    model = trainer.model
    sizes = [len(one.input_ids) for one in EXAMPLES]
    starts = torch.split(torch.empty(sum(sizes), 64).uniform_(-1, 1), sizes)
    shifts = [epsilon * one / math.sqrt(one.numel()) for one in starts]
    still = [torch.zeros_like(one) for one in starts]

    def loss(shifts):
        parts = [plain.token_losses(model, one, moved=shift) for one, shift in zip(EXAMPLES, shifts, strict=True)]
        return torch.cat(parts).mean()

    def uphill(shifts, length):
        shifts = [one.clone().requires_grad_() for one in shifts]
        return [length * one / one.norm() for one in torch.autograd.grad(loss(shifts), shifts)]

    def climbed(shifts):
        ends = [one + step for one, step in zip(shifts, uphill(shifts, step_size), strict=True)]
        return [one * min(1.0, epsilon / float(one.norm())) for one in ends]

    if method == "none":
        return loss(still)
    if method == "neftune":
        return loss(shifts)
    if method == "fgm":
        return loss(still) + loss(uphill(still, epsilon))
    seen = [shifts]
    for _ in range(steps):
        seen.append(climbed(seen[-1]))
    return loss(seen[-1]) if method == "pgd" else sum(loss(one) for one in seen[:-1]) / steps


@pytest.mark.parametrize("method", ["none", "neftune", "fgm", "pgd", "freelb"])
def test_a_step_has_the_gradient_of_the_adversarial_method_that_is_chosen(made, method):
    values = {"adversarial__epsilon": 0.6, "adversarial__steps": 3, "adversarial__step_size": 0.25}
    trainer = made(adversarial__method=method, **values)
    torch.manual_seed(7)
    objective = moved(trainer, method)
    torch.manual_seed(7)
    trainer.training_step(trainer.model, plain.batch())
    close(collected(trainer.model), gradients(trainer.model, objective), rtol=2e-3, atol=2e-6)


def test_two_steps_of_a_training_are_those_of_plain_sgd_with_clipping_and_decay(made):
    values = {"lr": 0.5, "weight_decay": 0.1, "max_grad_norm": 0.3, "batch_size": 4, "epochs": 2}
    trainer = made(**values)
    model = plain.model_of(trainer.model.config._name_or_path)
    trainer.train()
    for _ in range(2):
        slopes = gradients(model, mean_loss(model))
        length = math.sqrt(sum(float(one.square().sum()) for one in slopes.values()))
        assert length > 0.3, "the test needs a gradient that is clipped"
        with torch.no_grad():
            for name, weight in model.named_parameters():
                # Matrices alone are pulled towards zero.
                decay = 0.1 * weight if weight.ndim == 2 else 0
                weight -= 0.5 * (slopes[name] * 0.3 / length + decay)
    close(dict(trainer.model.named_parameters()), dict(model.named_parameters()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length", [None, 1000.0])
def test_a_gradient_below_the_limit_is_left_as_it_is(made, length):
    trainer = made(max_grad_norm=length)
    model = plain.model_of(trainer.model.config._name_or_path)
    trainer.train()
    slopes = gradients(model, mean_loss(model))
    ends = {name: weight - 0.01 * slopes[name] for name, weight in model.named_parameters()}
    close(dict(trainer.model.named_parameters()), ends, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_parts(made, monkeypatch, capsys, error):
    trainer = made(budget=768, adversarial__method="neftune")
    torch.manual_seed(3)
    trainer.training_step(trainer.model, plain.batch())
    undisturbed, drawn = collected(trainer.model), torch.get_rng_state()
    trainer.model.zero_grad()
    real, calls = trainer._gradients, []

    def once(model, examples):
        calls.append(trainer.batches.budget)
        if len(calls) > 1:
            # Whole again, so that the same noise gives the same gradient.
            trainer.batches.budget = 768
            return real(model, examples)
        real(model, examples)
        raise error

    monkeypatch.setattr(trainer, "_gradients", once)
    torch.manual_seed(3)
    trainer.training_step(trainer.model, plain.batch())
    # 19 tokens in all: cut in two from 9 on.
    assert calls == [768, 9]
    assert "out of memory, so micro-batches have at most 9 tokens from now on" in capsys.readouterr().out
    close(collected(trainer.model), undisturbed)
    assert torch.equal(torch.get_rng_state(), drawn), "the numbers of the step that failed are drawn again"


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(made, monkeypatch):
    trainer = made()

    def fail(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer, "_gradients", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.training_step(trainer.model, plain.batch())


def test_a_training_step_switches_dropout_on(made):
    trainer = made()
    trainer.model.eval()
    trainer.training_step(trainer.model, plain.batch())
    assert trainer.model.training


def test_a_loss_that_is_not_finite_stops_the_training(made, monkeypatch):
    trainer = made()
    trainer.state.global_step = 3
    monkeypatch.setattr(trainer, "_gradients", lambda *_: torch.tensor(math.inf))
    with pytest.raises(UserError, match="training diverged after step 3: the loss is NaN"):
        trainer.training_step(trainer.model, plain.batch())


def test_a_gradient_that_is_not_finite_stops_the_training(made, monkeypatch):
    trainer = made()
    trainer.state.global_step = 3

    def gradients(model, batch):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        model.model.norm.weight.grad[0] = math.nan
        return torch.tensor(1.0)

    monkeypatch.setattr(trainer, "_gradients", gradients)
    with pytest.raises(UserError, match="the gradient is NaN or infinite"):
        trainer.training_step(trainer.model, plain.batch())


def test_a_validation_loss_that_is_not_finite_stops_the_training_and_is_not_the_best(made):
    trainer = made()
    trainer.state.global_step = 3
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="the validation loss is NaN or infinite"):
        trainer.evaluate()
    assert trainer.keep.best_step == 0


@pytest.mark.parametrize(
    "values, advice",
    [
        ({}, "try lr 0.001, a larger warmup_ratio, max_grad_norm: 1.0"),
        ({"max_grad_norm": 1.0}, "try lr 0.001, a larger warmup_ratio"),
        (
            {"max_grad_norm": 2.0, "adversarial__method": "fgm", "adversarial__epsilon": 3.5},
            "try lr 0.001, a larger warmup_ratio, an adversarial.epsilon below 3.5",
        ),
    ],
)
def test_what_to_try_after_a_training_diverged(made, values, advice):
    trainer = made(**values)
    trainer.state.global_step = 3
    with pytest.raises(UserError) as raised:
        trainer._diverged("loss")
    assert str(raised.value).splitlines() == [
        "training diverged after step 3: the loss is NaN or infinite",
        f"most likely lr 0.01 is too high: {advice}",
        "no epoch was finished, so there is no model to keep",
    ]


@pytest.mark.parametrize(
    "values, advice",
    [
        ({}, "choose another unsloth.model"),
        ({"adversarial__method": "fgm"}, "choose another unsloth.model or an adversarial.epsilon below 1"),
    ],
)
def test_before_the_first_update_the_base_is_to_blame_and_checkpoints_stay(made, values, advice):
    trainer = made(**values)
    Path("kept/checkpoint-3").mkdir(parents=True)
    with pytest.raises(UserError) as raised:
        trainer._diverged("loss")
    first, second = str(raised.value).splitlines()
    assert first == "training cannot start: before the first update the loss is NaN or infinite"
    assert second.endswith(f"its weights are broken, or overflow in float32; {advice}")
    assert Path("kept/checkpoint-3").exists()


def test_a_training_that_diverged_keeps_no_checkpoint_after_its_best_step(made):
    trainer = made()
    for step in (2, 4, 6):
        Path(f"kept/checkpoint-{step}").mkdir(parents=True)
    trainer.state.global_step, trainer.keep.best_step = 7, 4
    with pytest.raises(UserError):
        trainer._diverged("loss")
    assert sorted(path.name for path in Path("kept").iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_the_history_shows_the_rate_of_a_weight_whose_multiplier_is_one(made):
    trainer = made(lr=0.01, layers__lr={".": 0.25})
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0025}
    trainer.create_scheduler(10, trainer.optimizer)
    assert trainer._get_learning_rate() == pytest.approx(0.01)


def test_an_optimizer_that_exists_is_kept(made):
    trainer = made()
    first = trainer.create_optimizer()
    assert trainer.create_optimizer() is first


def test_a_checkpoint_is_sealed_and_holds_the_weights(made):
    trainer = made(checkpoint__every=1, epochs=2)
    trainer.train()
    from stages.training import checkpoints

    found = checkpoints.recover(Path("kept"))
    assert found.step == 2 and found.callback("KeepBest")["best_step"] == 2
    assert sorted(path.name for path in Path("kept").iterdir() if path.is_dir()) == [
        "best",
        "checkpoint-1",
        "checkpoint-2",
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("\nwrite failed\nwith a long tail")])
def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(made, monkeypatch, capsys, error):
    from trl import SFTTrainer

    trainer = made()
    trainer.state.global_step = 5

    def fail(self, model, trial):
        Path("kept/checkpoint-5").mkdir(parents=True)
        raise error

    monkeypatch.setattr(SFTTrainer, "_save_checkpoint", fail)
    trainer._save_checkpoint(trainer.model)
    assert not Path("kept/checkpoint-5").exists()
    printed = capsys.readouterr().out
    reason = "[Errno 28] No space left" if isinstance(error, OSError) else "write failed"
    assert f"no checkpoint at step 5, training goes on without it ({reason})" in printed


def test_a_loaded_checkpoint_must_leave_the_optimizers_tensors_in_the_model(made, monkeypatch):
    from trl import SFTTrainer

    trainer = made()

    def replace(self, checkpoint, model):
        norm = trainer.model.model.norm
        norm.weight = torch.nn.Parameter(norm.weight.detach().clone())

    monkeypatch.setattr(SFTTrainer, "_load_from_checkpoint", lambda *_: None)
    trainer._load_from_checkpoint("somewhere")
    monkeypatch.setattr(SFTTrainer, "_load_from_checkpoint", replace)
    with pytest.raises(AssertionError, match="model.norm.weight would not be trained any more"):
        trainer._load_from_checkpoint("somewhere")


def test_weights_keep_their_number_format_where_trl_casts_them(project, small_base, monkeypatch):
    from trl import SFTTrainer

    plain.on_the_cpu(monkeypatch)
    real = SFTTrainer.__init__

    def cast(self, **given):
        real(self, **given)
        for weight in self.model.parameters():
            weight.data = weight.data.to(torch.bfloat16)

    monkeypatch.setattr(SFTTrainer, "__init__", cast)
    chosen = knobs()
    held = plain.trainable(small_base, chosen)
    trainer = plain.trainer(held, chosen, Path("kept"))
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_the_trainer_prints_nothing_of_its_own(made, capsys):
    trainer = made()
    trainer.train()
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed if line.startswith(("{", "epoch"))] == [
        "epoch 0 of 1",
        "epoch 1 of 1",
    ]


def test_a_batch_is_handed_on_as_examples():
    from stages.training.trainer import _examples

    assert _examples([{"input_ids": [1, 2], "labels": [-100, 2]}]) == {"examples": [Example([1, 2], [-100, 2])]}


def test_what_is_a_lack_of_memory():
    from stages.training.trainer import _out_of_memory

    assert _out_of_memory(torch.OutOfMemoryError("x")) and _out_of_memory(RuntimeError("can't allocate memory: 1"))
    assert not _out_of_memory(RuntimeError("shapes"))


def test_random_states_of_gpus_are_restored_where_there_are_some(monkeypatch):
    from stages.training import trainer

    restored = []
    fake = SimpleNamespace(
        is_available=lambda: True, get_rng_state_all=lambda: ["state"], set_rng_state_all=restored.append
    )
    monkeypatch.setattr(trainer.torch, "cuda", fake)
    states = trainer._random_states()
    drawn = torch.rand(1)
    trainer._restore(states)
    assert torch.equal(torch.rand(1), drawn) and restored == [["state"]]
