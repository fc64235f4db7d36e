"""A training run from parameters to result: steps, schedules, TRL's arguments, and the report."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages import params
from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import run as training
from tests.conftest import set_params
from tests.support import plain
from tests.support.plain import EXAMPLES, close, knobs

FIVE = [*EXAMPLES, Example([5, 60, 61], [IGNORED, 60, 61])]


@pytest.fixture
def run(project, small_base, monkeypatch):
    """run(**knobs) trains the small model on five conversations; returns result, history and model."""
    plain.on_the_cpu(monkeypatch)

    def go(kept="kept", examples=FIVE, **values):
        chosen, rows = knobs(**values), []
        Path(kept).mkdir(exist_ok=True)
        held = plain.trainable(small_base, chosen)
        done = training.train(held, examples, EXAMPLES[:2], chosen, rows.append, Path(kept).resolve())
        return SimpleNamespace(result=done, rows=rows, model=held.model, metrics=done.metrics, run=done.run)

    return go


def steps(rows):
    return [row["step"] for row in rows if "train_loss" in row]


def measured(rows):
    return [row["step"] for row in rows if "validation_loss" in row]


@pytest.mark.parametrize(
    "epochs, batch_size, expected, measured_at",
    [
        # Three batches per epoch, of 2, 2 and 1 conversations.
        (1, 2, 3, [0, 3]),
        (2, 2, 6, [0, 3, 6]),
        # 4.5 steps are rounded up to five.
        (1.5, 2, 5, [0, 3, 5]),
        (0.1, 2, 1, [0, 1]),
        (2, 5, 2, [0, 1, 2]),
        (1, 64, 1, [0, 1]),
    ],
)
def test_steps_and_evaluations_follow_from_epochs_and_batch_size(run, epochs, batch_size, expected, measured_at):
    done = run(epochs=epochs, batch_size=batch_size)
    assert steps(done.rows) == list(range(1, expected + 1)) and measured(done.rows) == measured_at
    assert done.metrics["steps"] == expected


def test_the_result_has_token_counts_and_the_best_epoch(run):
    done = run(epochs=2, batch_size=2)
    # 3 + 5 + 7 + 4 + 3 tokens, 1 + 2 + 5 + 3 + 2 of them learned.
    assert (done.metrics["tokens"], done.metrics["learned_tokens"]) == (22, 13)
    found = {row["step"]: row["validation_loss"] for row in done.rows if "validation_loss" in row}
    best = min((loss, step) for step, loss in found.items() if step)
    assert done.metrics["validation_loss"] == best[0] and done.metrics["best_epoch"] == best[1] / 3
    assert type(done.metrics["best_epoch"]) is int, "a whole number of epochs is written as an integer"


def test_a_fraction_of_an_epoch_can_be_the_best(run):
    done = run(epochs=1.5, batch_size=2)
    assert done.metrics["best_epoch"] == pytest.approx(5 / 3, abs=1e-4)


def test_the_best_model_is_the_one_with_the_best_validation_loss(run):
    from transformers import AutoModelForCausalLM

    # A rate so high that a later epoch is worse.
    done = run(epochs=6, batch_size=5, lr=1.0, optim="adamw_torch")
    assert done.metrics["best_epoch"] < 6, "the test needs a run whose last epoch is not the best"
    best = AutoModelForCausalLM.from_pretrained(training.best(Path("kept")), dtype=torch.float32)
    with torch.no_grad():
        assert float(plain.mean_loss(best, EXAMPLES[:2])) == pytest.approx(done.metrics["validation_loss"], abs=1e-4)


def test_speed_is_in_tokens_per_second_of_this_run_only(run, monkeypatch):
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=iter([100.0, 104.0, 200.0, 201.0]).__next__))
    done = run(epochs=2, batch_size=2, checkpoint__every=3)
    # 22 tokens per epoch, two epochs, four seconds.
    assert (done.run["tokens_per_second"], done.run["seconds"], done.run["resumed_from_step"]) == (11, 4.0, 0)
    again = run(epochs=3, batch_size=2, checkpoint__every=3)
    # Resumed after two epochs: one more epoch in one second.
    assert (again.run["tokens_per_second"], again.run["seconds"], again.run["resumed_from_step"]) == (22, 1.0, 6)
    assert again.metrics["steps"] == 9


def test_resuming_is_announced_and_gives_the_result_of_an_uninterrupted_run(run, capsys):
    values = {"epochs": 3, "batch_size": 2, "optim": "adamw_torch", "checkpoint__every": 3}
    whole = run(kept="whole", **values)
    run(kept="cut", **values)
    # As if the run had been killed while writing its last checkpoint.
    Path("cut/checkpoint-9/manifest.json").unlink()
    capsys.readouterr()
    again = run(kept="cut", **values)
    assert "finetune: resuming from step 6 of 9" in capsys.readouterr().out
    assert again.rows == whole.rows and again.metrics == whole.metrics
    close(dict(again.model.named_parameters()), dict(whole.model.named_parameters()), rtol=0, atol=0)


def test_a_training_that_reached_its_last_step_is_not_repeated(run):
    first = run(epochs=2, batch_size=2, checkpoint__every=3)
    again = run(epochs=2, batch_size=2, checkpoint__every=3)
    assert again.metrics == first.metrics and again.rows == first.rows
    assert again.run["resumed_from_step"] == 6 and again.run["tokens_per_second"] == 0


def test_a_training_that_stopped_early_does_not_continue_after_a_resume(run):
    values = {"epochs": 20, "batch_size": 5, "lr": 1.0, "optim": "adamw_torch", "early_stopping_patience": 2}
    first = run(**values)
    assert first.metrics["steps"] == first.metrics["best_epoch"] + 2 < 20
    again = run(**values)
    assert again.metrics == first.metrics and again.rows == first.rows


def test_another_seed_changes_the_order_of_the_data(run):
    """None of the seeds is a library's default or that of params.yaml."""
    found = {seed: run(kept=f"kept {seed}", seed=seed, batch_size=1).rows for seed in (7, 8)}
    again = run(kept="again", seed=7, batch_size=1)
    assert again.rows == found[7] and again.rows != found[8]


def test_model_size_and_device_are_reported(run, capsys):
    done = run(epochs=1, batch_size=5)
    count = sum(weight.numel() for weight in done.model.parameters())
    assert (done.run["parameters"], done.run["trainable_parameters"]) == (count, count)
    assert done.run["dtype"] == "float32" and done.run["device"] == "cpu"
    assert f"finetune: {count:,} of {count:,} weights, cpu, float32" in capsys.readouterr().out
    assert set(done.run["versions"]) == set(training.VERSIONS) and done.run["versions"]["torch"] == torch.__version__
    (matrices, others) = done.result.groups
    assert matrices["tensors"] + others["tensors"] == len(list(done.model.parameters()))


def test_frozen_weights_count_as_parameters_but_not_as_trainable(small_base):
    model = plain.model_of(small_base)
    model.model.embed_tokens.weight.requires_grad_(False)
    size = training._place_and_size(model)
    # 259 tokens with 64 values each.
    assert size["parameters"] - size["trainable_parameters"] == 259 * 64


def test_peak_memory_is_that_of_the_gpu_or_of_this_process_in_megabytes(monkeypatch):
    import resource

    # Linux counts in units of 1024 bytes; the difference from 1000 is within the tolerance.
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2_345_678))
    assert training.peak_memory_mb() == 2346
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3_456_789_012)
    assert training.peak_memory_mb() == 3457


@pytest.fixture
def arguments(project, monkeypatch):
    """arguments(**knobs) returns TRL's arguments for a training of ten steps."""
    plain.on_the_cpu(monkeypatch)

    def make(fresh=True, count=10, **values):
        set_params(**values)
        return training._arguments(Path("kept"), count, params.load(), fresh)

    return make


def test_every_training_parameter_is_passed_to_trl(arguments):
    """None of the values is any library's default."""
    found = arguments(
        seed=4711,
        lr=0.0123,
        epochs=7.5,
        batch_size=13,
        weight_decay=0.037,
        optim="adafactor",
        max_grad_norm=0.77,
        unsloth__max_length=777,
        checkpoint__every=17,
        scheduler="linear",
        warmup_ratio=0.3,
    )
    expected = {
        "seed": 4711,
        "learning_rate": 0.0123,
        "num_train_epochs": 7.5,
        "per_device_train_batch_size": 13,
        "per_device_eval_batch_size": 13,
        "weight_decay": 0.037,
        "optim": "adafactor",
        "max_grad_norm": 0.77,
        "max_length": 777,
        "save_steps": 17,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "output_dir": "kept",
    }
    assert {name: getattr(found, name) for name in expected} == expected


def test_trainer_arguments_that_do_not_depend_on_parameters(arguments):
    found = arguments()
    expected = {
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "steps",
        # Two, because the latest may be incomplete.
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_steps": -1,
    }
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_base_is_evaluated_before_the_first_step_but_not_after_a_resume(arguments):
    assert arguments(fresh=True).eval_on_start is True and arguments(fresh=False).eval_on_start is False


def test_without_max_grad_norm_no_gradient_is_clipped(arguments):
    # transformers clips if this is above zero, and its default is 1.
    assert arguments(max_grad_norm=None).max_grad_norm == 0.0


def rates(chosen, count):
    """The rate of each step as a share of the peak, from transformers' own scheduler."""
    from transformers import get_scheduler

    given = training._schedule(chosen, count)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        given["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=given["warmup_steps"],
        num_training_steps=count,
        scheduler_specific_kwargs=given["lr_scheduler_kwargs"],
    )
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# 10 steps, 3 of them warm-up, computed by hand from the definitions of the schedules.
UP = [0, 1 / 3, 2 / 3]
SCHEDULES = {
    "constant": [*UP, *[1] * 7],
    "linear": [*UP, *((7 - n) / 7 for n in range(7))],
    "cosine": [*UP, *((1 + math.cos(math.pi * n / 7)) / 2 for n in range(7))],
    # Three cycles over seven steps.
    "cosine_with_restarts": [*UP, *((1 + math.cos(math.pi * (3 * n / 7 % 1))) / 2 for n in range(7))],
    "polynomial": [*UP, *((1 - n / 7) ** 1.5 for n in range(7))],
    "inverse_sqrt": [*UP, *(math.sqrt(3 / n) for n in range(3, 10))],
    # Constant for two steps, then decaying over the last five.
    "warmup_stable_decay": [*UP, 1, 1, *(1 - n / 5 for n in range(5))],
}


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_each_schedule_matches_its_definition(project, scheduler):
    extra = {"schedule__num_cycles": 3, "schedule__power": 1.5, "schedule__decay_ratio": 0.5}
    chosen = knobs(scheduler=scheduler, warmup_ratio=0.3, lr=0.5, **extra)
    assert rates(chosen, 10) == pytest.approx(SCHEDULES[scheduler], abs=1e-6)


@pytest.mark.parametrize(
    "ratio, count, expected",
    # Rounded to the nearest step; always leaves one step at the full rate.
    [(0.0, 10, 0), (0.14, 10, 1), (0.16, 10, 2), (0.9, 10, 9), (0.99, 10, 9), (0.9, 1, 0), (0.6, 2, 1)],
)
def test_warm_up_is_rounded_and_leaves_one_step_at_the_full_rate(project, ratio, count, expected):
    assert training._schedule(knobs(warmup_ratio=ratio), count)["warmup_steps"] == expected


def test_decay_begins_after_the_warm_up(project):
    chosen = knobs(scheduler="warmup_stable_decay", warmup_ratio=0.5, schedule__decay_ratio=0.5)
    # 3 steps: half of them is rounded to 2 of warm-up, which leaves one for the decay.
    assert training._schedule(chosen, 3)["lr_scheduler_kwargs"]["num_decay_steps"] == 1


def test_without_warm_up_inverse_sqrt_decays_from_the_first_step(project):
    chosen = knobs(scheduler="inverse_sqrt", warmup_ratio=0.0)
    assert rates(chosen, 4) == pytest.approx([1, 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2])


def test_examples_become_rows_of_ids_and_labels():
    found = training.dataset(EXAMPLES[:2])
    assert json.loads(json.dumps(found[1])) == {"input_ids": [5, 6, 20, 21, 22], "labels": [-100, -100, -100, 21, 22]}
    assert len(found) == 2
