"""Best model, early stopping and history, with a callback that is fed given losses."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from stages.backends.unsloth.training.callbacks import KeepBest
from stages.backends.unsloth.training.checkpoints import Checkpoint
from stages.core.cli import UserError
from tests.support.plain import state


class Model:
    """A model that saves its loss to a file."""

    def __init__(self, mark="", **attributes):
        self.mark, self.options = mark, None
        vars(self).update(attributes)

    def save_pretrained(self, folder, **options):
        self.options = options
        folder.mkdir(parents=True)
        (folder / "model").write_text(self.mark)


@pytest.fixture
def keep(tmp_path):
    """keep(patience, epochs): the callback of a training with 4 steps per epoch, and the rows that it wrote."""

    def make(patience=None, epochs=3.0):
        rows = []
        knobs = SimpleNamespace(early_stopping_patience=patience, epochs=epochs)
        made = KeepBest(tmp_path / "best", 4, knobs, rows.append)
        made.rows = rows
        return made

    return make


def control():
    return SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False)


def measured(keep, loss, step):
    """Pass a step's validation loss to the callback; return the control object."""
    given = {"metrics": {"eval_loss": loss}, "model": Model(f"{loss:g}")}
    decided = control()
    keep.on_evaluate(None, state(global_step=step, epoch=step / 4), decided, **given)
    return decided


def best(keep):
    return (keep.folder / "model").read_text()


def test_the_model_with_the_lowest_validation_loss_is_kept_and_not_the_last(keep):
    kept = keep()
    for number, loss in enumerate([2.0, 1.5, 1.75, 1.5, 3.0], 1):
        measured(kept, loss, 4 * number)
    assert (kept.best_loss, kept.best_epoch, kept.best_step) == (1.5, 2.0, 8) and best(kept) == "1.5"


def test_an_equal_loss_is_not_better(keep):
    kept = keep(patience=2)
    measured(kept, 1.0, 4)
    assert not measured(kept, 1.0, 8).should_training_stop and kept.best_step == 4
    assert measured(kept, 1.0, 12).should_training_stop


def test_the_loss_before_the_first_step_is_shown_but_never_the_best(keep, capsys):
    kept = keep()
    measured(kept, 0.5, 0)
    assert kept.best_step == 0 and kept.stale == 0 and not kept.folder.exists()
    measured(kept, 2.0, 4)
    assert best(kept) == "2"
    assert capsys.readouterr().out.splitlines() == [
        "epoch 0 of 3: validation loss 0.5000",
        "epoch 1 of 3: validation loss 2.0000",
    ]


@pytest.mark.parametrize(
    "patience, losses, stopped_at",
    [
        (1, [2.0, 3.0, 1.0], 2),
        (2, [2.0, 3.0, 1.0, 1.5, 1.4, 1.3], 5),
        (2, [2.0, 1.0, 1.5, 0.9, 1.0], None),
        (None, [1.0, 2.0, 3.0, 4.0, 5.0], None),
    ],
)
def test_training_stops_after_too_many_epochs_without_improvement(keep, capsys, patience, losses, stopped_at):
    kept = keep(patience)
    stops = [measured(kept, loss, 4 * number) for number, loss in enumerate(losses, 1)]
    expected = [number == stopped_at for number in range(1, len(losses) + 1)]
    found = [one.should_training_stop for one in stops[: stopped_at or None]]
    assert found == expected[: stopped_at or None]
    # A checkpoint must record the stop, so that a resumed run stops again.
    assert [one.should_save for one in stops[: stopped_at or None]] == found
    announced = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped early")]
    epochs = "1 epoch" if patience == 1 else f"{patience} epochs"
    assert f"stopped early: validation loss has not improved for {epochs}" in announced or stopped_at is None
    assert bool(announced) == (stopped_at is not None)


@pytest.mark.parametrize("patience, stale, stopped", [(2, 1, False), (2, 2, True), (2, 3, True), (None, 9, False)])
def test_stopped_means_that_patience_is_used_up(keep, patience, stale, stopped):
    kept = keep(patience)
    kept.stale = stale
    assert kept.stopped is stopped


def test_a_checkpoint_has_all_state_that_a_resumed_training_needs(keep, tmp_path):
    first = keep(patience=2)
    measured(first, 1.0, 5)
    measured(first, 2.0, 8)
    assert first.state() == {
        "args": {},
        "attributes": {"best_loss": 1.0, "best_epoch": 1.25, "best_step": 5, "stale": 1},
    }
    # After resuming, one more epoch without improvement stops the training, as it would have without interruption.
    second = keep(patience=2)
    second.resume(Checkpoint(tmp_path, {"stateful_callbacks": {"KeepBest": first.state()}, "log_history": []}))
    assert (second.best_loss, second.best_epoch, second.best_step, second.stale) == (1.0, 1.25, 5, 1)
    assert measured(second, 1.5, 12).should_training_stop and second.summary() == first.summary()


def test_a_resumed_training_rewrites_the_history_up_to_its_checkpoint(keep, tmp_path):
    kept = keep()
    history = [
        {"eval_loss": 2.34567, "step": 0, "epoch": 0},
        {"loss": 1.00004, "learning_rate": 0.00123456789, "grad_norm": 3.0, "step": 1, "epoch": 0.333333},
    ]
    state = {"stateful_callbacks": {"KeepBest": kept.state()}, "log_history": history}
    kept.resume(Checkpoint(tmp_path, state))
    assert kept.rows == [
        {"step": 0, "epoch": 0, "validation_loss": 2.3457},
        {"step": 1, "epoch": 0.3333, "train_loss": 1.0, "lr": 0.00123457},
    ]


def test_the_history_has_rounded_losses_and_no_other_logged_values(keep):
    kept = keep()
    at = state(global_step=3, epoch=0.75)
    kept.on_log(None, at, None, logs={"loss": 1.23456, "learning_rate": 0.5, "grad_norm": 1.0})
    kept.on_log(None, at, None, logs={"eval_loss": 0.98765, "epoch": 7})
    kept.on_log(None, at, None, logs={"train_runtime": 3.0, "train_loss": 1.0})
    kept.on_log(None, at, None, logs=None)
    kept.on_log(None, state(epoch=None), None, logs={"eval_loss": 1.0})
    assert kept.rows == [
        {"step": 3, "epoch": 0.75, "train_loss": 1.2346, "lr": 0.5},
        {"step": 3, "epoch": 0.75, "validation_loss": 0.9877},
        {"step": 0, "epoch": 0, "validation_loss": 1.0},
    ]


def test_the_model_is_evaluated_after_each_epoch_and_after_the_last_step(keep):
    kept = keep()
    kept.on_train_begin(None, state(), None)
    asked = []
    for step in range(1, 11):
        decided = control()
        kept.on_step_end(None, state(global_step=step), decided)
        asked += [step] * decided.should_evaluate
    assert asked == [4, 8, 10]


def test_the_progress_bar_includes_the_steps_before_a_resume(keep, monkeypatch):
    from stages.backends.unsloth.training import callbacks

    shown = []

    class Bar:
        def __init__(self, total, initial, desc, unit, disable):
            self.n = initial
            # disable=None: no bar unless the output is a terminal.
            assert (desc, unit, disable) == ("finetune", "step", None)
            shown.append((initial, total))

        def update(self, steps):
            self.n += steps
            shown.append(self.n)

        def close(self):
            shown.append("closed")

    monkeypatch.setattr(callbacks, "tqdm", Bar)
    kept = keep()
    kept.on_train_begin(None, state(global_step=6, max_steps=12), None)
    for step in (7, 8):
        kept.on_step_end(None, state(global_step=step, max_steps=12), control())
    kept.on_train_end(None, state(), None)
    assert shown == [(6, 12), 7, 8, "closed"]


def test_the_best_epoch_is_rounded(keep):
    kept = keep()
    kept.on_evaluate(None, state(global_step=5, epoch=5 / 3), control(), metrics={"eval_loss": 1.0}, model=Model())
    assert kept.best_epoch == 1.6667


def test_the_summary_of_the_best_model(keep):
    kept = keep()
    assert kept.summary() == "no epoch was completed, so there is no model to keep"
    measured(kept, 1.0, 6)
    assert kept.summary() == f"the best model so far (epoch 1.5, step 6) is in {kept.folder}"


def test_a_partially_written_model_of_a_killed_run_is_replaced(keep):
    kept = keep()
    measured(kept, 2.0, 4)
    part = kept.folder.with_suffix(".part")
    part.mkdir()
    (part / "half").write_text("x")
    measured(kept, 1.0, 8)
    assert best(kept) == "1"
    assert [path.name for path in kept.folder.iterdir()] == ["model"] and not part.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_failing_to_write_the_best_model_keeps_the_previous_one(keep, error):
    kept = keep()
    measured(kept, 2.0, 4)

    class Full(Model):
        def save_pretrained(self, folder, **options):
            super().save_pretrained(folder, **options)
            raise error

    with pytest.raises(
        UserError,
        match="^cannot write the best model to .*/best [(].*[)]; free disk space and rerun to resume",
    ):
        kept.on_evaluate(
            None, state(global_step=8, epoch=2.0), control(), metrics={"eval_loss": 1.0}, model=Full("new")
        )
    assert best(kept) == "2" and [path.name for path in kept.folder.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("model, options", [(Model(), {}), (Model(peft_config={}), {"save_embedding_layers": False})])
def test_an_adapter_is_saved_without_the_vocabulary(keep, model, options):
    keep()._keep(model)
    assert model.options == options


def test_the_kept_file_is_written_by_the_model(keep, small_base):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    kept = keep()
    kept._keep(model)
    again = AutoModelForCausalLM.from_pretrained(kept.folder, dtype=torch.float32)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
