"""The hosted backend against a local server that checks every request, through the real SDK and a real socket."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import base, conversations, evaluate, files, finetune, params
from stages.backends import openai as backend
from stages.backends.openai import checks, client, jobs, prices
from stages.backends.openai.chat import HostedChat
from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.paths import (
    BASE,
    EVAL_RUN,
    HISTORY,
    METRICS,
    PREDICTIONS,
    RUN,
    SIGNALS,
    SPLIT_REPORT,
    SPLITS,
    TEST_LABELS,
    TRAIN_METRICS,
    TUNED,
    VALIDATION_HISTORY,
)  # fmt: skip

from .conftest import ROOT, hear_ctrl_c, set_params
from .openai_server import OpenAIServer

MODEL = "gpt-3.5-turbo-0125"


def talk(number):
    question, answer = f"Where is room {number}?", f"Room {number} is on floor {number // 10}, to the left."
    return Conversation((Message("system", "Be kind."), Message("user", question), Message("assistant", answer)))


def write_splits(**talks):
    SPLITS["train"].parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, path in SPLITS.items():
        conversations.write_jsonl(path, talks[name])
        rows += talks[name]
    hashes = [conversations.identity(conversations.encode(one)) for one in rows]
    SIGNALS.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"row": list(range(2, len(rows) + 2)), "conversation_hash": hashes}), SIGNALS)
    files.write_json(SPLIT_REPORT, {name: {"conversations": len(talks[name]), "tokens": 1} for name in SPLITS})
    files.write_json(TEST_LABELS, [])


@pytest.fixture
def server(monkeypatch):
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        yield server
        assert server.violations == []


@pytest.fixture
def hosted(project, server, monkeypatch):
    """A project with splits and `backend: openai`, whose endpoint is the local server."""
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "home"))
    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(client, "_RETRIES", 1)
    monkeypatch.setattr(client, "_SECONDS", 1.0)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    set_params(backend="openai", openai__poll_seconds=0.01, evaluate__resamples=100, batch_size=4)
    write_splits(
        train=[talk(n) for n in range(12)],
        validation=[talk(n) for n in range(20, 23)],
        test=[talk(n) for n in range(3)],
    )
    files.write_json(BASE / "base.json", {"model": MODEL, "endpoint": server.url})
    return server


def run_all():
    base.main()
    finetune.main()
    evaluate.main()


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_hosted_run_writes_what_a_local_one_writes(hosted, capsys):
    run_all()
    (job,) = hosted.jobs.values()
    metrics, facts = json.loads(METRICS.read_text()), json.loads(RUN.read_text())
    assert set(metrics["test"]["gain"]) == {"chrf", "rouge_l", "similarity", "exact_match"}
    # The stand-in answers as the most similar training conversation does, and the test is part of that here.
    assert metrics["test"]["tuned"]["exact_match"]["value"] == 1.0 > metrics["test"]["base"]["exact_match"]["value"]
    assert [row["step"] for row in rows(HISTORY)] == [str(n + 1) for n in range(9)]
    assert [row["epoch"] for row in rows(VALIDATION_HISTORY)] == ["1.0", "2.0", "3.0"]
    assert json.loads(TRAIN_METRICS.read_text())["validation_loss"] == float(
        rows(VALIDATION_HISTORY)[-1]["validation_loss"]
    )
    assert facts["job"] == job["id"] and facts["trained_tokens"] == job["trained_tokens"]
    # gpt-3.5-turbo: 8 dollars for a million tokens of training.
    assert facts["price_usd"] == pytest.approx(job["trained_tokens"] * 8 / 1e6, abs=5e-5)
    assert json.loads((TUNED / "model.json").read_text())["model"] == job["fine_tuned_model"]
    assert json.loads(EVAL_RUN.read_text())["tuned"]["requests"] == 3
    assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 3 and job["seed"] == 42
    out = capsys.readouterr().out
    assert "the service has no lr, early_stopping_patience, dropout" in out
    assert "about $0.0" in out and "The job has successfully completed" in out


def test_no_file_and_no_line_holds_the_key(hosted, project, capsys):
    hosted.fail("POST", "/fine_tuning/jobs", "status", status=401, message=f"Incorrect API key provided: {hosted.key}")
    base.main()
    with pytest.raises(UserError) as error:
        finetune.main()
    finetune.main()
    evaluate.main()
    out = capsys.readouterr()
    texts = [str(error.value), out.out, out.err, *(p.read_text("latin-1") for p in project.rglob("*") if p.is_file())]
    assert not any(hosted.key in text for text in texts)
    assert "OPENAI_API_KEY is not accepted" in str(error.value)


def test_an_equal_training_is_never_paid_twice(hosted):
    run_all()
    run_all()
    assert len(hosted.jobs) == 1
    # Another checkpoint or another lr, which the service does not have, is the same training.
    set_params(openai__checkpoint="best", lr=0.5)
    finetune.main()
    assert len(hosted.jobs) == 1 and json.loads((TUNED / "model.json").read_text())["model"].startswith("ft:")
    # Answers are kept: three prompts for each of the two models, asked once.
    assert hosted.requests.count(("POST", "/chat/completions")) == 6


@pytest.mark.parametrize("knob", [{"epochs": 2}, {"seed": 7}, {"openai__suffix": "desk"}, {"openai__attempt": 2}])
def test_another_training_is_another_job(hosted, knob):
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


# Each step of a run with what can happen there. Whatever it is: one job, and the run completes at once or later.
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


# Three in a row are more than the client's own repetition of a request gets over.
ONCE = [(step, fault, 1) for step in STEPS for fault in FAULTS]
AGAIN_AND_AGAIN = [(step, fault, 3) for step in ("upload", "create", "poll") for fault in FAULTS]


@pytest.mark.parametrize("step, fault, times", [*ONCE, *AGAIN_AND_AGAIN])
def test_whatever_fails_there_is_one_job_and_the_run_completes(hosted, monkeypatch, step, fault, times):
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
    assert json.loads(METRICS.read_text())["test"]["tuned"]["exact_match"]["value"] == 1.0


def in_background(stage="finetune", cwd=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
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


def test_kill_9_while_answers_come_pays_for_none_twice(hosted):
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
    # At most the one that was under way is asked again.
    assert hosted.requests.count(asked) <= 6 + 1 and before >= 3


def two_clones_at_once(tmp_path, **homes):
    """The stage in two folders at the same time; `homes` are the folders' places for the user's state."""
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
    assert len(hosted.jobs) == 1 and any("nothing is submitted again" in output for output in outputs)


def test_two_machines_at_once_keep_one_job(hosted, tmp_path):
    two_clones_at_once(tmp_path, one="here", two="there")
    statuses = sorted(job["status"] for job in hosted.jobs.values())
    assert statuses in (["succeeded"], ["cancelled", "succeeded"])


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(hosted):
    hosted.steps_per_poll = 0
    process = in_background()
    wait_for(lambda: any(job["status"] == "running" for job in hosted.jobs.values()))
    assert not any(hosted.key in word for word in psutil.Process(process.pid).cmdline())
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    (job,) = hosted.jobs
    assert process.returncode == 130 and f"job {job} goes on; run again to come back to it" in output
    assert f"/fine_tuning/jobs/{job}/cancel" in output and hosted.key not in output
    assert hosted.jobs[job]["status"] == "running"
    hosted.steps_per_poll = None
    finetune.main()
    assert len(hosted.jobs) == 1


def test_a_list_that_lags_is_not_believed_after_a_lost_answer(hosted, monkeypatch, capsys):
    hosted.fail("POST", "/fine_tuning/jobs", "reset", "after")
    hosted.lists_that_lag = 25
    with pytest.raises(UserError, match=r"outcome unknown.*\n.*\nrun again: .* after [\d.]+ minutes"):
        finetune.main()
    monkeypatch.setattr(jobs, "_SETTLE_SECONDS", 60.0)
    finetune.main()
    # Of the 60 seconds some are over on a busy machine.
    said = re.search(r"looking for it for another (5\d|60) s before one is created", capsys.readouterr().out)
    assert len(hosted.jobs) == 1 and said


def test_a_job_that_was_never_created_is_asked_for_again_when_the_lists_must_have_it(hosted):
    hosted.fail("POST", "/fine_tuning/jobs", "reset", "before")
    with pytest.raises(UserError, match="outcome unknown"):
        finetune.main()
    assert not hosted.jobs
    finetune.main()
    assert len(hosted.jobs) == 1


def test_ctrl_c_while_the_job_is_asked_for_says_that_it_may_run(hosted):
    hosted.fail("POST", "/fine_tuning/jobs", "hang", "after", seconds=30)
    process = in_background()
    wait_for(lambda: hosted.jobs)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    (job,) = hosted.jobs.values()
    assert process.returncode == 130 and "so it may run. Run again to find it" in output
    assert f"fingerprint={job['metadata']['fingerprint']} in: curl {hosted.url}/fine_tuning/jobs -H" in output
    finetune.main()
    assert len(hosted.jobs) == 1


def test_a_cancel_that_fails_leaves_one_job_to_follow(hosted, tmp_path):
    hosted.fail("POST", "/fine_tuning/jobs/*/cancel", "status", times=4, status=500, message="oops")
    finetune.main()
    (first,) = hosted.jobs.values()
    first["created_at"] -= 60
    order = jobs.Order.make(hosted.url, params.load())
    with pytest.MonkeyPatch.context() as patch:
        # The other machine's job came between the look and the request.
        patch.setattr(jobs, "find", lambda *_, **__: None)
        with pytest.raises(UserError, match="500: oops"):
            jobs.find_or_create(client.connect(hosted.url), order, before=lambda: None)
    assert jobs.find_or_create(client.connect(hosted.url), order, before=lambda: None).id == first["id"]


def test_a_deadline_ends_the_wait_and_not_the_job(hosted):
    hosted.steps_per_poll = 0
    set_params(openai__timeout=0.00001)
    with pytest.raises(UserError, match=r"openai.timeout: 1e-05 hours are over; job ftjob-\w+ goes on"):
        finetune.main()
    assert [job["status"] for job in hosted.jobs.values()] != ["cancelled"]


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_a_job_that_ends_badly_is_told_and_not_submitted_again(hosted, outcome):
    hosted.job_outcome = outcome
    for _ in range(2):
        with pytest.raises(UserError) as error:
            finetune.main()
        assert f"is {outcome}" in str(error.value) and "raise openai.attempt by one" in str(error.value)
        assert "Fine-tuning job started" in str(error.value)
    assert len(hosted.jobs) == 1
    hosted.job_outcome = "succeeded"
    set_params(openai__attempt=2)
    finetune.main()
    assert len(hosted.jobs) == 2


def test_a_failed_job_shows_code_message_and_parameter(hosted):
    hosted.job_outcome = "failed"
    with pytest.raises(UserError, match=r"is failed: .+ \(code \w+, parameter \w+\)"):
        finetune.main()


def test_an_unknown_status_is_waited_for(hosted, capsys):
    hosted.job_outcome = "unknown"
    set_params(openai__timeout=0.0002)
    with pytest.raises(UserError, match="hours are over"):
        finetune.main()
    assert "the status 'thinking', which this version does not know" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["base64", "plain"])
def test_result_files_in_either_form(hosted, encoding):
    hosted.result_encoding = encoding
    finetune.main()
    assert len(rows(HISTORY)) == 9


@pytest.mark.parametrize(
    "status, code, message, expected",
    [
        (401, "invalid_api_key", "no", "the key in OPENAI_API_KEY is not accepted"),
        (403, None, "not allowed", "the key's owner may not do this"),
        (429, "insufficient_quota", "You exceeded your current quota", "the account has no credit left"),
        (429, "rate_limit_exceeded", "Limit reached on requests per day", "the daily limit is reached"),
        (429, "rate_limit_exceeded", "Slow down", "too many requests"),
        (400, "bad", "suffix is odd", "400: suffix is odd"),
    ],
)
def test_a_refused_job_is_one_sentence_and_none_is_created(hosted, status, code, message, expected):
    hosted.fail("POST", "/fine_tuning/jobs", "status", status=status, code=code, message=message)
    with pytest.raises(UserError) as error:
        finetune.main()
    assert str(error.value).startswith(f"{hosted.url}: {expected}") and "\n" not in str(error.value)
    assert not hosted.jobs
    finetune.main()
    assert len(hosted.jobs) == 1


@pytest.mark.parametrize(
    "url, cause",
    [
        ("http://127.0.0.1:9/v1", "connection refused"),
        ("http://no-such-host.invalid/v1", "no such host"),
    ],
)
def test_an_endpoint_that_cannot_be_reached(hosted, monkeypatch, url, cause):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match=f"{url}: {cause}"):
        base.main()


def test_tls_with_a_plain_server(hosted, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", hosted.url.replace("http:", "https:"))
    with pytest.raises(UserError, match="no trusted TLS connection"):
        base.main()


def test_no_key_is_one_sentence(hosted, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        base.main()


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "https://user:secret@api.example/v1", "https://api.example/v1?key=secret"]
)
def test_an_odd_address_is_refused_without_repeating_it(hosted, monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError) as error:
        base.main()
    assert "secret" not in str(error.value)


def test_an_unknown_model(hosted):
    set_params(openai__model="gpt-9")
    with pytest.raises(UserError, match="knows no model 'gpt-9'"):
        base.main()


def test_a_wrong_path_is_not_told_as_an_unknown_model(hosted):
    hosted.fail("GET", "/models/*", "status", status=404, message="no such page")
    with pytest.raises(UserError, match="404: no such page; is openai.base_url the whole address"):
        base.main()


def test_an_endpoint_without_fine_tuning_is_told_before_anything_is_uploaded(hosted):
    hosted.fail("GET", "/fine_tuning/jobs", "status", status=404, message="Not Found")
    with pytest.raises(UserError, match=f"{hosted.url}: 404: Not Found"):
        base.main()


def test_another_endpoint_in_the_environment_is_refused_before_a_training(hosted, monkeypatch):
    base.main()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    with pytest.raises(UserError, match=r"lives at http://127.*go on there with `dvc repro -f base`"):
        finetune.main()


def test_a_model_that_was_shut_down_is_told_with_the_date(project, monkeypatch):
    with OpenAIServer(retired={MODEL: "2026-10-23"}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        set_params(backend="openai")
        with pytest.raises(UserError, match="OpenAI shut it down on 2026-10-23"):
            base.main()


def test_an_organisation_that_may_not_create_jobs(hosted):
    hosted.permissions.clear()
    with pytest.raises(UserError, match=r"the key's owner may not do this.*no longer able to create"):
        finetune.main()


def test_the_tuned_model_is_asked_where_it_lives(hosted, monkeypatch):
    finetune.main()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    with pytest.raises(UserError, match=r"lives at http://127.*names http://elsewhere.example/v1; set it back"):
        evaluate.main()


@pytest.mark.parametrize("key", ["sk-test-1\nsk-test-2", "\u201csk-test-1\u201d", "sk-test\x00"[:7] + "\x7f"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(hosted, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="another character that no key has") as error:
        base.main()
    assert "sk-test" not in str(error.value)


def test_white_space_around_a_key_is_no_part_of_it(hosted, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {hosted.key}\n")
    base.main()


@pytest.mark.parametrize("address", ["http://:secret@127.0.0.1/v1", "http://me:secret@127.0.0.1/v1"])
def test_an_address_with_credentials_is_refused_and_not_shown(hosted, monkeypatch, address):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(UserError, match="must not hold credentials") as error:
        base.main()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("which, ending", [("last", ""), ("best", ":ckpt-step-9"), (6, ":ckpt-step-6")])
def test_checkpoints_can_be_chosen(hosted, which, ending):
    set_params(openai__checkpoint=which)
    finetune.main()
    name = json.loads((TUNED / "model.json").read_text())["model"]
    assert name.endswith(ending) and ("ckpt" in name) == bool(ending)


def test_a_checkpoint_that_there_is_not(hosted):
    set_params(openai__checkpoint=5)
    with pytest.raises(UserError, match="none at step 5; there are: 3, 6, 9"):
        finetune.main()


def test_a_price_above_the_limit_stops_before_the_upload(hosted):
    set_params(openai__max_cost_usd=0.0001)
    with pytest.raises(UserError, match=r"more than openai.max_cost_usd 0.0001.*Nothing was uploaded"):
        finetune.main()
    assert not hosted.files and not hosted.jobs


def test_a_job_that_is_paid_already_is_not_stopped_by_the_limit(hosted):
    finetune.main()
    set_params(openai__max_cost_usd=0)
    finetune.main()
    assert len(hosted.jobs) == 1


def test_an_unknown_price_needs_a_limit_of_null(hosted):
    hosted.models["house-model"] = 1
    set_params(openai__model="house-model")
    with pytest.raises(UserError, match=r"the price of house-model is not known.*max_cost_usd to null"):
        finetune.main()
    set_params(openai__max_cost_usd=None)
    finetune.main()
    assert json.loads(RUN.read_text())["price_usd"] is None


@pytest.mark.parametrize(
    "epochs, examples, expected",
    # 100 / 10 examples = 10 epochs; 25 at most; 3 as a rule; 25,000 / 20,000 = 1.
    [(4, 10, 4), ("auto", 10, 10), ("auto", 2, 25), ("auto", 100, 3), ("auto", 20_000, 1)],
)
def test_epochs_that_the_service_chooses_are_guessed(epochs, examples, expected):
    assert prices.guessed_epochs(epochs, examples) == expected


def test_the_longest_name_gives_the_price():
    assert prices.training("gpt-4o-mini-2024-07-18", 2_000_000) == 6.0
    assert prices.training("gpt-4o-2024-08-06", 2_000_000) == 50.0
    assert prices.answers("gpt-4o-mini", "tuned", 1_000_000, 500_000) == 0.9
    assert prices.training("house-model", 5) is None


def test_tokens_are_counted_as_the_cookbook_does():
    # "Be kind." 3, "Pool?" 2, "At 7." 4 tokens of cl100k_base (encoded one by one); each role is one token; three
    # around each message, and three for the reply.
    talk = Conversation((Message("system", "Be kind."), Message("user", "Pool?"), Message("assistant", "At 7.")))
    assert HostedChat(MODEL).count(talk) == 3 * (3 + 1) + 3 + 2 + 4 + 3
    assert HostedChat(MODEL).counts([Conversation(())]) == [0]
    assert HostedChat(MODEL).context == 16_385


TOOL = {"type": "function", "function": {"name": "book"}}


def call(name="book", **changes):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}, **changes}


def with_call(tool_call, tools=(TOOL,), answers="c1"):
    turns = (
        Message("user", "Book it."),
        Message("assistant", tool_calls=[tool_call]),
        Message("tool", "done", tool_call_id=answers),
        Message("assistant", "It is booked."),
    )
    return Conversation(turns, tools=list(tools))


@pytest.mark.parametrize(
    "bad, fault",
    [
        (Conversation((Message("user", "a"),)), "the last message is not the assistant's"),
        (
            Conversation((Message("user", "a", weight=0), Message("assistant", "b"))),
            r"message 1 \(user\): only assistant",
        ),
        (Conversation((Message("user", "a"), Message("assistant", "b", weight=0))), "nothing is learned"),
        (Conversation((Message("user", "a <|im_end|>"), Message("assistant", "b"))), "special tokens"),
        (Conversation((Message("user", "word " * 20_000), Message("assistant", "b"))), "learns from at most 16385"),
        (with_call(call("cancel")), "the tool 'cancel' is called, but is not among"),
        (with_call(call(id=None)), "needs an id"),
        (with_call(call(id=["c1"])), "needs an id"),
        (with_call(call(["book"])), "needs an id"),
        (with_call(call(), tools=[{"type": "function", "function": {"name": ["book"]}}]), "a tool is not of the form"),
        (Conversation((Message("user", "a"), Message("assistant"))), "has neither content nor tool calls"),
        (with_call(call(), answers="c2"), "tool_call_id 'c2' answers no call"),
        (with_call(call(), tools=[{"name": "book"}]), "a tool is not of the form"),
    ],
)
def test_what_the_service_would_refuse_is_told_with_its_row(hosted, bad, fault):
    write_splits(train=[*(talk(n) for n in range(11)), bad], validation=[talk(50)], test=[talk(51)])
    with pytest.raises(UserError, match=f"row 13: .*{fault}"):
        finetune.main()
    assert not hosted.files


def test_a_right_tool_call_passes(hosted):
    good = [*(talk(n) for n in range(10)), with_call(call())]
    write_splits(train=good, validation=[talk(50)], test=[talk(51)])
    assert checks.check(params.load(), HostedChat(MODEL))[0] == 11
    finetune.main()


def test_nine_conversations_are_too_few(hosted):
    write_splits(train=[talk(n) for n in range(9)], validation=[talk(50)], test=[talk(51)])
    with pytest.raises(UserError, match="9 conversations; the service takes no fewer than 10"):
        finetune.main()


def test_a_service_that_counts_no_tokens_gets_no_zeros(hosted):
    hosted.counts_tokens = False
    run_all()
    facts = json.loads(EVAL_RUN.read_text())
    assert facts["base"] == {"requests": 3} and facts["tuned"] == {"requests": 3}


def test_the_validation_loss_is_that_of_the_whole_split(hosted):
    finetune.main()
    (job,) = hosted.jobs
    events = client.connect(hosted.url).fine_tuning.jobs.list_events(job, limit=100)
    measured = [event.data for event in events if event.type == "metrics"]
    whole = {one["step"]: one["full_valid_loss"] for one in measured if "full_valid_loss" in one}
    assert whole and {int(row["step"]): float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)} == {
        step: pytest.approx(loss, abs=5e-5) for step, loss in whole.items()
    }


def test_an_answer_that_is_cut_is_counted(hosted, capsys):
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


def test_predictions_have_the_scores_that_there_are(hosted):
    run_all()
    first = json.loads(PREDICTIONS.read_text().splitlines()[0])
    assert set(first["scores"]["tuned"]) == {"chrf", "rouge_l", "similarity", "exact_match"}
    assert backend.HISTORY == ("step", "epoch", "train_loss") and (BASE / "base.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_ten_thousand_conversations_are_uploaded_in_bounded_memory(hosted):
    def peak_mb(count):
        write_splits(train=[talk(n) for n in range(count)], validation=[talk(-1)], test=[talk(-2)])
        # The peak that getrusage gives may be that of the process from which this one was started.
        measure = "from stages import finetune; finetune.main()\n"
        measure += "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", measure], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-2]) / 1000

    set_params(openai__max_cost_usd=None)
    few, many = peak_mb(100), peak_mb(10_000)
    # Some 15 MB are the curves of 7,500 steps and the events that tell of them.
    assert many < few + 40 and max(len(content) for content in hosted.contents.values()) > 1_500_000
