"""A hosted training run, from data to results."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages import base, evaluate, finetune, params
from stages.backends.openai import training
from stages.backends.openai.base import client
from stages.core.cli import UserError
from stages.core.paths import (
    BASE,
    EVAL_RUN,
    HISTORY,
    MEASURES,
    PREDICTIONS,
    RUN,
    TRAIN_METRICS,
    TUNED,
    VALIDATION_HISTORY,
)
from tests.conftest import ROOT, set_params
from tests.support.hosted import rows, run_all, talk, write_splits

ANSWERS = ("chrf", "rouge_l", "similarity", "exact_match")
FACTS = ("facts_right", "fact_recall", "fact_precision")


def test_a_hosted_run_writes_the_same_files_as_a_local_one(hosted, capsys):
    run_all()
    (job,) = hosted.jobs.values()
    metrics, facts = json.loads(MEASURES.read_text()), json.loads(RUN.read_text())
    assert set(metrics["test"]["gain"]) == {*ANSWERS, *FACTS}
    # The stand-in gives the response of the most similar training conversation, and here the test split is among them.
    assert metrics["test"]["tuned"]["exact_match"]["value"] == 1.0 > metrics["test"]["base"]["exact_match"]["value"]
    assert [row["step"] for row in rows(HISTORY)] == [str(n + 1) for n in range(9)]
    assert [row["epoch"] for row in rows(VALIDATION_HISTORY)] == ["1.0", "2.0", "3.0"]
    assert json.loads(TRAIN_METRICS.read_text())["validation_loss"] == float(
        rows(VALIDATION_HISTORY)[-1]["validation_loss"]
    )
    assert facts["job"] == job["id"] and facts["trained_tokens"] == job["trained_tokens"]
    # gpt-3.5-turbo: 8 dollars per million tokens of training.
    assert facts["price_usd"] == pytest.approx(job["trained_tokens"] * 8 / 1e6, abs=5e-5)
    assert json.loads((TUNED / "model.json").read_text())["model"] == job["fine_tuned_model"]
    assert json.loads(EVAL_RUN.read_text())["tuned"]["requests"] == 3
    assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 3 and job["seed"] == 42
    out = capsys.readouterr().out
    assert "openai: ignoring lr, early_stopping_patience, dropout" in out
    assert "about $0.0" in out and "The job has successfully completed" in out


def test_no_file_and_no_output_contains_the_key(hosted, project, capsys):
    hosted.fail("POST", "/fine_tuning/jobs", "status", status=401, message=f"Incorrect API key provided: {hosted.key}")
    base.main()
    with pytest.raises(UserError) as error:
        finetune.main()
    finetune.main()
    evaluate.main()
    out = capsys.readouterr()
    texts = [str(error.value), out.out, out.err, *(p.read_text("latin-1") for p in project.rglob("*") if p.is_file())]
    assert not any(hosted.key in text for text in texts)
    assert "OPENAI_API_KEY was rejected" in str(error.value)


def test_an_identical_training_is_never_paid_twice(hosted):
    run_all()
    run_all()
    assert len(hosted.jobs) == 1
    # Another checkpoint, or another lr, which the service ignores, does not change the training.
    set_params(openai__checkpoint="best", lr=0.5)
    finetune.main()
    assert len(hosted.jobs) == 1 and json.loads((TUNED / "model.json").read_text())["model"].startswith("ft:")
    # Answers are cached: three prompts for each of the two models, requested once.
    assert hosted.requests.count(("POST", "/chat/completions")) == 6


@pytest.mark.parametrize("knob", [{"epochs": 2}, {"seed": 7}, {"openai__suffix": "desk"}, {"openai__attempt": 2}])
def test_a_different_training_is_a_different_job(hosted, knob):
    finetune.main()
    set_params(**knob)
    finetune.main()
    assert len(hosted.jobs) == 2


@pytest.mark.parametrize("lost", ["state", "metadata"])
def test_the_job_is_found_from_another_machine(hosted, project, lost):
    finetune.main()
    for path in (project / ".state").rglob("*.json"):
        path.unlink()
    if lost == "metadata":
        for job in hosted.jobs.values():
            job["metadata"] = None
    finetune.main()
    assert len(hosted.jobs) == 1


@pytest.mark.parametrize("encoding", ["base64", "plain"])
def test_result_files_are_read_plain_and_in_base64(hosted, encoding):
    hosted.result_encoding = encoding
    finetune.main()
    assert len(rows(HISTORY)) == 9


@pytest.mark.parametrize("which, ending", [("last", ""), ("best", ":ckpt-step-9"), (6, ":ckpt-step-6")])
def test_checkpoints_can_be_selected(hosted, which, ending):
    set_params(openai__checkpoint=which)
    finetune.main()
    name = json.loads((TUNED / "model.json").read_text())["model"]
    assert name.endswith(ending) and ("ckpt" in name) == bool(ending)


def test_a_missing_checkpoint_is_reported_with_the_available_ones(hosted):
    set_params(openai__checkpoint=5)
    with pytest.raises(UserError, match="no checkpoint at step 5; available: 3, 6, 9"):
        finetune.main()


def test_the_validation_loss_is_that_of_the_whole_split(hosted):
    finetune.main()
    (job,) = hosted.jobs
    events = client.connect(hosted.url).fine_tuning.jobs.list_events(job, limit=100)
    measured = [event.data for event in events if event.type == "metrics"]
    whole = {one["step"]: one["full_valid_loss"] for one in measured if "full_valid_loss" in one}
    assert whole and {int(row["step"]): float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)} == {
        step: pytest.approx(loss, abs=5e-5) for step, loss in whole.items()
    }


def test_a_truncated_answer_is_counted(hosted, capsys):
    set_params(evaluate__max_new_tokens=2)
    run_all()
    assert "answers were cut at evaluate.max_new_tokens" in capsys.readouterr().out


def test_requests_run_in_parallel_up_to_the_limit(hosted):
    finetune.main()
    base.main()
    hosted.fail("POST", "/chat/completions", "slow", times=100, seconds=0.2)
    write_splits(train=[talk(n) for n in range(12)], validation=[talk(50)], test=[talk(n) for n in range(60, 68)])
    most, done = [0], threading.Event()

    def watch():
        while not done.is_set():
            most[0] = max(most[0], len(hosted.connections))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    evaluate.main()
    done.set()
    watcher.join()
    assert 2 <= most[0] <= params.load().evaluate.batch_size + 2


def test_predictions_have_only_the_available_scores(hosted):
    run_all()
    first = json.loads(PREDICTIONS.read_text().splitlines()[0])
    assert set(first["scores"]["tuned"]) == {*ANSWERS, *FACTS}
    assert training.HISTORY == ("step", "epoch", "train_loss") and (BASE / "base.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_ten_thousand_conversations_are_uploaded_in_bounded_memory(hosted):
    def peak_mb(count):
        write_splits(train=[talk(n) for n in range(count)], validation=[talk(-1)], test=[talk(-2)])
        # getrusage may report the peak of the parent process.
        measure = "from stages import finetune; finetune.main()\n"
        measure += "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", measure], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-2]) / 1000

    set_params(openai__max_cost_usd=None)
    few, many = peak_mb(100), peak_mb(10_000)
    # About 15 MB are the curves and events of 7,500 steps.
    assert many < few + 40 and max(len(content) for content in hosted.contents.values()) > 1_500_000
