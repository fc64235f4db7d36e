"""The trainer's results compared with plain torch: losses by token, gradients of micro-batches, and errors."""

import math
from pathlib import Path

import pytest
import torch

from stages.backends.unsloth.reader import Example
from stages.backends.unsloth.training.micro_batches import PADDED, SEQUENCE, TREE
from stages.core.cli import UserError
from tests.support import plain
from tests.support.plain import EXAMPLES, close, collected, gradients, knobs, mean_loss

# One tree, one tree per conversation, one sequence, padded together, and padded one by one.
CUTS = [(TREE, 768), (TREE, 1), (SEQUENCE, 768), (PADDED, 768), (PADDED, 1)]


@pytest.mark.parametrize("form, budget", CUTS)
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_validation_loss_is_averaged_by_token(made, form, budget, batch_size):
    trainer = made(form, budget, batch_size=batch_size)
    with torch.no_grad():
        expected = float(mean_loss(trainer.model))
        # Averaging by conversation or by batch would give another number.
        by_conversation = sum(float(plain.token_losses(trainer.model, one).mean()) for one in EXAMPLES) / len(EXAMPLES)
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(expected, rel=1e-5) and found != pytest.approx(by_conversation, rel=1e-4)


@pytest.mark.parametrize("form", [TREE, SEQUENCE, PADDED])
def test_the_validation_loss_has_neither_label_smoothing_nor_dropout(made, form):
    trainer = made(form, label_smoothing_factor=0.3, attention_dropout=0.5)
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    trainer.model.eval()
    with torch.no_grad():
        expected = float(mean_loss(trainer.model))
    trainer.model.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.model.training, "training continues in training mode"


def test_the_validation_loss_is_logged_and_selects_the_best_epoch(made):
    rows = []
    trainer = made(log=rows.append)
    trainer.state.global_step, trainer.state.epoch = 4, 1.0
    loss = trainer.evaluate()["eval_loss"]
    assert rows == [{"step": 4, "epoch": 1.0, "validation_loss": round(loss, 4)}]
    assert (trainer.keep.best_loss, trainer.keep.best_step) == (loss, 4) and trainer.keep.folder.is_dir()


@pytest.mark.parametrize("form, budget", CUTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_has_the_gradient_of_the_mean_loss_over_learned_tokens(made, form, budget, smoothing):
    trainer = made(form, budget, label_smoothing_factor=smoothing)
    expected = mean_loss(trainer.model, smoothing=smoothing)
    loss = trainer.training_step(trainer.model, plain.batch())
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    close(collected(trainer.model), gradients(trainer.model, expected))


METHODS = {"neftune": 8, "fgm": 2, "pgd": 4, "freelb": 3}


def moved(trainer, method, epsilon=0.6, steps=3, step_size=0.25):
    """The method's objective on EXAMPLES from plain autograd, with the trainer's random draws for one tree."""
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
def test_a_step_has_the_gradient_of_the_selected_adversarial_method(made, method):
    values = {"adversarial__epsilon": 0.6, "adversarial__steps": 3, "adversarial__step_size": 0.25}
    trainer = made(adversarial__method=method, **values)
    torch.manual_seed(7)
    objective = moved(trainer, method)
    torch.manual_seed(7)
    trainer.training_step(trainer.model, plain.batch())
    close(collected(trainer.model), gradients(trainer.model, objective), rtol=2e-3, atol=2e-6)


def test_two_training_steps_equal_plain_sgd_with_clipping_and_decay(made):
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
                # Only matrices decay.
                decay = 0.1 * weight if weight.ndim == 2 else 0
                weight -= 0.5 * (slopes[name] * 0.3 / length + decay)
    close(dict(trainer.model.named_parameters()), dict(model.named_parameters()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length", [None, 1000.0])
def test_a_gradient_below_the_limit_is_not_changed(made, length):
    trainer = made(max_grad_norm=length)
    model = plain.model_of(trainer.model.config._name_or_path)
    trainer.train()
    slopes = gradients(model, mean_loss(model))
    ends = {name: weight - 0.01 * slopes[name] for name, weight in model.named_parameters()}
    close(dict(trainer.model.named_parameters()), ends, rtol=1e-4, atol=1e-6)


def test_a_training_step_enables_dropout(made):
    trainer = made()
    trainer.model.eval()
    trainer.training_step(trainer.model, plain.batch())
    assert trainer.model.training


def test_a_non_finite_loss_stops_the_training(made, monkeypatch):
    trainer = made()
    trainer.state.global_step = 3
    monkeypatch.setattr(trainer, "_gradients", lambda *_: torch.tensor(math.inf))
    with pytest.raises(UserError, match="training diverged after step 3: the loss is NaN"):
        trainer.training_step(trainer.model, plain.batch())


def test_a_non_finite_gradient_stops_the_training(made, monkeypatch):
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


def test_a_non_finite_validation_loss_stops_the_training_and_is_not_the_best(made):
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
def test_advice_after_a_training_diverged(made, values, advice):
    trainer = made(**values)
    trainer.state.global_step = 3
    with pytest.raises(UserError) as raised:
        trainer._diverged("loss")
    assert str(raised.value).splitlines() == [
        "training diverged after step 3: the loss is NaN or infinite",
        f"lr 0.01 is probably too high: {advice}",
        "no epoch was completed, so there is no model to keep",
    ]


@pytest.mark.parametrize(
    "values, advice",
    [
        ({}, "choose another unsloth.model"),
        ({"adversarial__method": "fgm"}, "choose another unsloth.model or an adversarial.epsilon below 1"),
    ],
)
def test_divergence_before_the_first_update_blames_the_base_and_keeps_checkpoints(made, values, advice):
    trainer = made(**values)
    Path("kept/checkpoint-3").mkdir(parents=True)
    with pytest.raises(UserError) as raised:
        trainer._diverged("loss")
    first, second = str(raised.value).splitlines()
    assert first == "training cannot start: the loss is NaN or infinite before the first update"
    assert second.endswith(f"whose weights are corrupt or overflow in float32; {advice}")
    assert Path("kept/checkpoint-3").exists()


def test_divergence_deletes_the_checkpoints_after_the_best_step(made):
    trainer = made()
    for step in (2, 4, 6):
        Path(f"kept/checkpoint-{step}").mkdir(parents=True)
    trainer.state.global_step, trainer.keep.best_step = 7, 4
    with pytest.raises(UserError):
        trainer._diverged("loss")
    assert sorted(path.name for path in Path("kept").iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_the_history_has_the_rate_of_weights_with_multiplier_one(made):
    trainer = made(lr=0.01, layers__lr={".": 0.25})
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0025}
    trainer.create_scheduler(10, trainer.optimizer)
    assert trainer._get_learning_rate() == pytest.approx(0.01)


def test_an_existing_optimizer_is_reused(made):
    trainer = made()
    first = trainer.create_optimizer()
    assert trainer.create_optimizer() is first


def test_a_checkpoint_is_sealed_and_contains_the_weights(made):
    trainer = made(checkpoint__every=1, epochs=2)
    trainer.train()
    from stages.backends.unsloth.training import checkpoints

    found = checkpoints.recover(Path("kept"))
    assert found.step == 2 and found.callback("KeepBest")["best_step"] == 2
    assert sorted(path.name for path in Path("kept").iterdir() if path.is_dir()) == [
        "best",
        "checkpoint-1",
        "checkpoint-2",
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("\nwrite failed\nwith a long tail")])
def test_a_failed_checkpoint_leaves_nothing_behind(made, monkeypatch, capsys, error):
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
    assert f"no checkpoint at step 5, continuing without it ({reason})" in printed


def test_loading_a_checkpoint_must_not_replace_the_optimizers_tensors(made, monkeypatch):
    from trl import SFTTrainer

    trainer = made()

    def replace(self, checkpoint, model):
        norm = trainer.model.model.norm
        norm.weight = torch.nn.Parameter(norm.weight.detach().clone())

    monkeypatch.setattr(SFTTrainer, "_load_from_checkpoint", lambda *_: None)
    trainer._load_from_checkpoint("somewhere")
    monkeypatch.setattr(SFTTrainer, "_load_from_checkpoint", replace)
    with pytest.raises(AssertionError, match="model.norm.weight was replaced on loading"):
        trainer._load_from_checkpoint("somewhere")


def test_weights_keep_their_dtype_even_if_trl_casts_them(project, small_base, monkeypatch):
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


def test_the_trainer_itself_prints_nothing(made, capsys):
    trainer = made()
    trainer.train()
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed if line.startswith(("{", "epoch"))] == [
        "epoch 0 of 1",
        "epoch 1 of 1",
    ]


def test_the_collator_returns_examples():
    from stages.backends.unsloth.training.trainer import _examples

    assert _examples([{"input_ids": [1, 2], "labels": [-100, 2]}]) == {"examples": [Example([1, 2], [-100, 2])]}


@pytest.mark.parametrize("scale, diverged", [(65536.0, False), (1.0, False), (0.5, True)])
def test_an_overflow_that_the_scaler_handles_is_no_divergence(made, monkeypatch, scale, diverged):
    """In fp16 gradients overflow now and then; only a scale that fell step by step says that they always do."""
    trainer = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    next(trainer.model.parameters()).grad = torch.full_like(next(trainer.model.parameters()), float("inf"))
    if diverged:
        with pytest.raises(UserError, match="the gradient is NaN or infinite"):
            trainer._refuse_divergence(trainer.model, torch.ones(()))
    else:
        trainer._refuse_divergence(trainer.model, torch.ones(()))
    with pytest.raises(UserError, match="the loss is NaN or infinite"):
        trainer._refuse_divergence(trainer.model, torch.tensor(float("nan")))
