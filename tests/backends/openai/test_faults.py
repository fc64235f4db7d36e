"""After any failure, kill or concurrent run, only one job is paid."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages import base, evaluate, finetune, params
from stages.backends.openai.base import client
from stages.backends.openai.training import jobs
from stages.core.cli import UserError
from stages.core.paths import MEASURES, TUNED
from tests.conftest import ROOT, accept_ctrl_c, set_params

# Each step of a run with the faults that can occur there. After any of them there is one job, and the run completes.
STEPS = {
    "model": ("GET", "/models/*"),
    "list of files": ("GET", "/files"),
    "upload": ("POST", "/files"),
    "list of jobs": ("GET", "/fine_tuning/jobs"),
    "create": ("POST", "/fine_tuning/jobs"),
    "poll": ("GET", "/fine_tuning/jobs/ft*"),
    "events": ("GET", "/fine_tuning/jobs/*/events"),
    "result": ("GET", "/files/*/content"),
    "checkpoints": ("GET", "/fine_tuning/jobs/*/checkpoints"),
    "answer": ("POST", "/chat/completions"),
}


FAULTS = {
    "reset before": {"how": "reset"},
    "reset after": {"how": "reset", "when": "after"},
    "500 before": {"how": "status", "status": 500, "message": "oops"},
    "503 after": {"how": "status", "when": "after", "status": 503, "message": "overloaded"},
    "hang before": {"how": "hang", "seconds": 3},
    "hang after": {"how": "hang", "when": "after", "seconds": 3},
    "slow": {"how": "slow", "seconds": 0.2},
    "truncated": {"how": "truncate"},
    "garbage": {"how": "garbage"},
    "rate limit": {"how": "status", "status": 429, "message": "Rate limit reached", "headers": {"retry-after": "0"}},
}


# Three in a row exceed the client's own retries.
ONCE = [(step, fault, 1) for step in STEPS for fault in FAULTS]


REPEATEDLY = [(step, fault, 3) for step in ("upload", "create", "poll") for fault in FAULTS]


@pytest.mark.parametrize("step, fault, times", [*ONCE, *REPEATEDLY])
def test_after_any_fault_there_is_one_job_and_the_run_completes(hosted, monkeypatch, step, fault, times):
    if "hang" in fault:
        monkeypatch.setattr(client, "_SECONDS", 0.3)
    given = {"when": "before", **FAULTS[fault]}
    hosted.fail(*STEPS[step], given.pop("how"), given.pop("when"), times, **given)
    if step == "checkpoints":
        set_params(openai__checkpoint="best")
    runs = 0
    for stage in (base, finetune, evaluate):
        for _ in range(6):
            runs += 1
            try:
                stage.main()
                break
            except UserError as error:
                first = str(error).splitlines()[0]
                assert first.startswith(("outcome unknown: ", hosted.url)), first
        else:
            pytest.fail(f"{stage.__name__} never completed")
    assert len(hosted.jobs) == 1 and runs <= 6
    assert json.loads(MEASURES.read_text())["test"]["tuned"]["exact_match"]["value"] == 1.0


def in_background(stage="finetune", cwd=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=accept_ctrl_c,
    )


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.01)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["upload", "create", "poll", "events", "result"])
def test_kill_9_at_any_step_leaves_one_job(hosted, step, when):
    method, path = STEPS[step]
    hosted.fail(method, path, "hang", when, seconds=30)
    process = in_background()
    pattern = re.compile(path.replace("*", "[^/]*"))
    wait_for(lambda: any(one == method and pattern.fullmatch(where) for one, where in hosted.requests))
    process.kill()
    process.communicate()
    finetune.main()
    assert len(hosted.jobs) == 1 and json.loads((TUNED / "model.json").read_text())["job"] in hosted.jobs


def test_kill_9_during_inference_pays_for_no_answer_twice(hosted):
    base.main()
    finetune.main()
    set_params(batch_size=1, evaluate__batch_size=1)
    hosted.fail("POST", "/chat/completions", "slow", seconds=0.0)
    process = in_background("evaluate")
    asked = ("POST", "/chat/completions")
    wait_for(lambda: hosted.requests.count(asked) >= 3)
    process.kill()
    process.communicate()
    before = hosted.requests.count(asked)
    evaluate.main()
    # At most the request in flight is repeated.
    assert hosted.requests.count(asked) <= 6 + 1 and before >= 3


def two_clones_at_once(tmp_path, **homes):
    """Run the stage in two folders at once; `homes` maps each folder to the user's state folder."""
    processes = []
    for name, home in homes.items():
        folder = tmp_path / name
        shutil.copytree(Path.cwd(), folder, ignore=shutil.ignore_patterns(*homes))
        processes.append(in_background(cwd=folder, DVC_ROOT=str(folder), XDG_STATE_HOME=str(tmp_path / home)))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert len({json.loads((tmp_path / name / TUNED / "model.json").read_text())["job"] for name in homes}) == 1
    return outputs


def test_two_runs_at_once_create_one_job(hosted, tmp_path):
    outputs = two_clones_at_once(tmp_path, one="home", two="home")
    assert len(hosted.jobs) == 1 and any("no new job is created" in output for output in outputs)


def test_two_machines_at_once_keep_one_job(hosted, tmp_path):
    two_clones_at_once(tmp_path, one="here", two="there")
    statuses = sorted(job["status"] for job in hosted.jobs.values())
    assert statuses in (["succeeded"], ["cancelled", "succeeded"])


def test_ctrl_c_leaves_the_job_running_and_says_how_to_reconnect(hosted):
    hosted.steps_per_poll = 0
    process = in_background()
    wait_for(lambda: any(job["status"] == "running" for job in hosted.jobs.values()))
    assert not any(hosted.key in word for word in psutil.Process(process.pid).cmdline())
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    (job,) = hosted.jobs
    assert process.returncode == 130 and f"job {job} is still running; run again to reconnect" in output
    assert f"/fine_tuning/jobs/{job}/cancel" in output and hosted.key not in output
    assert hosted.jobs[job]["status"] == "running"
    hosted.steps_per_poll = None
    finetune.main()
    assert len(hosted.jobs) == 1


def test_a_lagging_list_is_not_trusted_after_a_lost_response(hosted, monkeypatch, capsys):
    hosted.fail("POST", "/fine_tuning/jobs", "reset", "after")
    hosted.lists_that_lag = 25
    with pytest.raises(UserError, match=r"outcome unknown.*\n.*\nrun again .* after [\d.]+ minutes"):
        finetune.main()
    monkeypatch.setattr(jobs, "SETTLE_SECONDS", 60.0)
    finetune.main()
    # On a busy machine, some of the 60 seconds have passed.
    announced = re.search(r"looking for it for another (5\d|60) s before creating one", capsys.readouterr().out)
    assert len(hosted.jobs) == 1 and announced


def test_a_job_that_was_never_created_is_requested_again_once_lists_must_be_current(hosted):
    hosted.fail("POST", "/fine_tuning/jobs", "reset", "before")
    with pytest.raises(UserError, match="outcome unknown"):
        finetune.main()
    assert not hosted.jobs
    finetune.main()
    assert len(hosted.jobs) == 1


def test_ctrl_c_while_creating_the_job_says_that_it_may_be_running(hosted):
    hosted.fail("POST", "/fine_tuning/jobs", "hang", "after", seconds=30)
    process = in_background()
    wait_for(lambda: hosted.jobs)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    (job,) = hosted.jobs.values()
    assert process.returncode == 130 and "so it may be running. Run again to find it" in output
    assert f"fingerprint={job['metadata']['fingerprint']} in: curl {hosted.url}/fine_tuning/jobs -H" in output
    finetune.main()
    assert len(hosted.jobs) == 1


def test_if_cancelling_fails_one_job_is_followed(hosted, capsys):
    hosted.fail("POST", "/fine_tuning/jobs/*/cancel", "status", times=4, status=500, message="oops")
    finetune.main()
    (first,) = hosted.jobs.values()
    first["created_at"] -= 60
    order = jobs.Order.make(hosted.url, params.load())
    with pytest.MonkeyPatch.context() as patch:
        # The other machine created its job after this one had looked for it.
        patch.setattr(jobs, "find", lambda *_, **__: None)
        found = jobs.find_or_create(client.connect(hosted.url), order, before=lambda: None)
    (later,) = hosted.jobs.keys() - {first["id"]}
    said = capsys.readouterr().out
    assert found.id == first["id"]
    assert f"{later} could not be cancelled" in said and "500: oops" in said and f"/{later}/cancel" in said
    assert jobs.find_or_create(client.connect(hosted.url), order, before=lambda: None).id == first["id"]


def test_the_timeout_ends_the_wait_but_not_the_job(hosted):
    hosted.steps_per_poll = 0
    set_params(openai__timeout=0.00001)
    with pytest.raises(UserError, match=r"openai.timeout: 1e-05 hours exceeded; job ftjob-\w+ is still running"):
        finetune.main()
    assert [job["status"] for job in hosted.jobs.values()] != ["cancelled"]
