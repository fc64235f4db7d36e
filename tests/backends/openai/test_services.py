"""Services that lack parts of OpenAI's API, or answer otherwise: one job is paid and evaluated, or refused with why."""

import csv
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest

from stages import base, evaluate, finetune, report
from stages.backends.openai.training import following, jobs
from stages.core.cli import UserError
from stages.core.paths import ANSWERS, EVAL_RUN, HISTORY, MEASURES, RUN, TUNED
from stages.metrics import scoring
from tests.conftest import set_params
from tests.support.hosted import MODEL, rows, run_all
from tests.support.openai_server.profiles import AZURE, MINIMAL, NEBIUS, OPENAI, PROFILES

ASKED = ("POST", "/chat/completions")
EVERYTHING_OPTIONAL = MINIMAL.absent


def services():
    return {
        "no events": {"absent": {"listFineTuningEvents"}},
        "no result files": {"fields": {"result_files": None}},
        "result files that cannot be read": {"absent": {"downloadFile"}},
        "result files of another kind": {"fields": {"result_files": [{"id": "file-1"}, None]}},
        "no checkpoints": {"absent": {"listFineTuningJobCheckpoints"}},
        "no look-up of models": {"absent": {"retrieveModel"}},
        "no models at all": {"absent": {"retrieveModel", "listModels"}},
        "no list of files": {"absent": {"listFiles"}},
        "no list of jobs": {"absent": {"listPaginatedFineTuningJobs"}},
        "no lists": {"absent": {"listFiles", "listPaginatedFineTuningJobs"}},
        "nothing optional": {"absent": EVERYTHING_OPTIONAL},
        "metadata not echoed": {"fields": {"metadata": None}},
        "metadata not echoed, empty list of files": {"fields": {"metadata": None}, "lists_nothing": ("listFiles",)},
        "empty lists": {"lists_nothing": ("listFiles", "listPaginatedFineTuningJobs")},
        "pages that repeat": {"follows_after": False},
        "bare arrays": {"bare_lists": True},
        "hyperparameters null": {"fields": {"hyperparameters": None, "method": None}},
        "epochs that stay auto": {"fields": {"hyperparameters": {"n_epochs": "auto"}, "method": None}},
        "no times": {"fields": {"created_at": None, "finished_at": None}},
        "times as text": {"fields": {"created_at": "2026-11-25", "finished_at": "now"}},
        "another word for success": {"statuses": {"succeeded": "completed"}},
        "a word in capitals": {"statuses": {"succeeded": "Succeeded", "running": "Running"}},
        "an undocumented word for success": {"statuses": {"succeeded": "hooray"}},
        "files that are read later": {"file_reads": 3},
        "metrics of another kind": {"metrics_of_events": {"step": "one", "train_loss": []}, "absent": {"downloadFile"}},
        "metrics that are zero": {"metrics_of_events": {"step": 0, "train_loss": 0.0}, "absent": {"downloadFile"}},
        "fastapi": {"errors": "fastapi", "absent": EVERYTHING_OPTIONAL},
        "plain text": {"errors": "text", "absent": EVERYTHING_OPTIONAL},
        "pages": {"errors": "html", "absent": EVERYTHING_OPTIONAL},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Without what takes time and is not in question: the sentence encoder."""
    monkeypatch.setattr(scoring, "embedded", lambda texts: np.ones((len(texts), 1)))
    monkeypatch.setattr(following, "_NAME_LOOKS", 2)


@pytest.mark.parametrize("service", services())
def test_a_service_that_lacks_a_part_trains_once_and_is_evaluated(hosted, service):
    changes = services()[service]
    hosted.profile = dataclasses.replace(OPENAI, **{**changes, "absent": frozenset(changes.get("absent", ()))})
    begin = time.monotonic()
    run_all()
    # Once more, as after a change of something else.
    finetune.main()
    evaluate.main()
    assert len(hosted.jobs) == 1 and hosted.requests.count(ASKED) == 6
    assert json.loads(MEASURES.read_text())["test"]["tuned"]["exact_match"]["value"] == 1.0
    # Nothing is asked for ever: a repeating page ends a list, and a missing part is asked for once or twice a run.
    assert len(hosted.requests) < 120 and time.monotonic() - begin < 60


@pytest.mark.parametrize("service", ["hyperparameters null", "epochs that stay auto", "metrics that are zero"])
def test_a_report_needs_no_epochs(hosted, service):
    changes = services()[service]
    hosted.profile = dataclasses.replace(OPENAI, **{**changes, "absent": frozenset(changes.get("absent", ()))})
    run_all()
    history = rows(HISTORY)
    assert history and {row["epoch"] for row in history} == {""}
    assert report._history(HISTORY, "train_loss")[0].keys() == {"step", "train_loss"}


@pytest.mark.parametrize("status", ["expired", "Error", "rejected", "canceled", "gone-wrong"])
def test_another_word_for_failure_ends_the_wait_with_the_word(hosted, capsys, status):
    hosted.job_outcome = "failed"
    hosted.profile = dataclasses.replace(OPENAI, statuses={"failed": status})
    with pytest.raises(UserError, match=f"job ftjob-.* is {status}: The job failed due to an internal error"):
        finetune.main()
    assert f"has the status '{status}', which OpenAI's API lacks; taken as failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "form, said", [("fastapi", "model.Unknown"), ("text", "Unknown"), ("html", "a web page: Unknown")]
)
def test_errors_in_other_forms_are_one_readable_line(hosted, form, said):
    hosted.profile = dataclasses.replace(OPENAI, errors=form, required=("trainingType",))
    with pytest.raises(UserError) as error:
        finetune.main()
    place = "body.trainingType: " if form == "fastapi" else "a web page: " if form == "html" else ""
    assert str(error.value) == f"{hosted.url}: 400: {place}The request body lacks trainingType"


def test_the_model_s_name_may_come_from_the_parameters(hosted):
    hosted.profile = dataclasses.replace(OPENAI, fields={"fine_tuned_model": None})
    base.main()
    with pytest.raises(UserError, match=r"the service does not name its model; set openai.chat_model .*not paid again"):
        finetune.main()
    (job,) = hosted.jobs.values()
    set_params(openai__chat_model=job["fine_tuned_model"])
    finetune.main()
    evaluate.main()
    assert len(hosted.jobs) == 1 and json.loads(MEASURES.read_text())["verdict"]["word"] == "too few"


def test_checkpoints_that_are_not_offered_are_refused_with_what_to_set(hosted):
    hosted.profile = dataclasses.replace(OPENAI, absent=frozenset({"listFineTuningJobCheckpoints"}))
    set_params(openai__checkpoint="best")
    with pytest.raises(
        UserError, match=r"openai.checkpoint: the service lists no checkpoints \(404: Not Found\); set it"
    ):
        finetune.main()
    set_params(openai__checkpoint="last")
    finetune.main()
    assert len(hosted.jobs) == 1


def test_a_chat_under_another_name_is_asked_for_and_the_job_is_not_repeated(hosted):
    hosted.profile = dataclasses.replace(OPENAI, deployments={"desk": "tuned", MODEL: "base"})
    base.main()
    finetune.main()
    with pytest.raises(
        UserError, match=r"does not answer .*create it there and set openai.chat_model .*not paid again"
    ):
        evaluate.main()
    set_params(openai__chat_model="desk")
    finetune.main()
    evaluate.main()
    assert len(hosted.jobs) == 1 and {chat["model"] for chat in hosted.chats[-3:]} == {"desk"}


def test_a_base_that_is_not_asked_is_left_out_and_said(hosted, capsys):
    set_params(openai__base_chat_model=None)
    run_all()
    assert "base: left out, because openai.base_chat_model is null" in capsys.readouterr().out
    assert hosted.requests.count(ASKED) == 3 and json.loads(EVAL_RUN.read_text()).keys() >= {"tuned"}
    test = json.loads(MEASURES.read_text())["test"]
    assert test["tuned"]["exact_match"]["value"] == 1.0 and test["base"]["chrf"]["value"] is None


def test_a_base_that_answers_no_more_does_not_cost_the_tuned_model_its_evaluation(hosted, capsys):
    base.main()
    finetune.main()
    hosted.retired = {MODEL: "2027-01-14"}
    evaluate.main()
    assert f"base: left out, because {MODEL} does not answer" in capsys.readouterr().out
    assert json.loads(MEASURES.read_text())["test"]["gain"]["chrf"]["value"] is None


def test_after_a_shut_down_of_the_base_a_paid_job_is_used_and_no_new_one_created(hosted, capsys):
    run_all()
    hosted.retired = {MODEL: "2027-01-14"}
    base.main()
    finetune.main()
    evaluate.main()
    assert len(hosted.jobs) == 1 and "only jobs that exist already can be used" in capsys.readouterr().out
    set_params(epochs=2)
    with pytest.raises(UserError, match="is served no more, so no new job can be created"):
        finetune.main()
    assert len(hosted.jobs) == 1


def test_the_model_object_s_shut_down_date_is_said(hosted, capsys):
    hosted.shutdown_dates = {MODEL: "2099-05-01"}
    base.main()
    assert f"{MODEL} will be shut down on 2099-05-01" in capsys.readouterr().out


# What a service lists decides whether a job can be found whose creation got no answer.
GUARANTEES = {
    "openai": ({}, "any machine"),
    "files are listed": ({"fields": {"metadata": None}}, "any machine"),
    "no list of jobs": ({"absent": frozenset({"listPaginatedFineTuningJobs"})}, "none"),
    "no lists": ({"absent": MINIMAL.absent}, "none"),
    "empty lists": ({"lists_nothing": ("listFiles", "listPaginatedFineTuningJobs")}, "none"),
    "jobs name nothing": (
        {"fields": {"metadata": None, "training_file": None}, "lists_nothing": ("listFiles",)},
        "none",
    ),
}


@pytest.mark.parametrize("name", GUARANTEES)
def test_which_guarantee_holds_is_found_out_before_paying_and_written_down(hosted, capsys, name):
    changes, holds = GUARANTEES[name]
    hosted.profile = dataclasses.replace(OPENAI, **changes)
    finetune.main()
    out = capsys.readouterr().out
    assert out.index("openai: paid once: ") < out.index("openai: created job")
    assert json.loads(RUN.read_text())["paid_once"] == holds


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", GUARANTEES)
def test_after_a_lost_answer_one_job_is_paid_or_creation_is_refused_with_why(hosted, name, when):
    changes, holds = GUARANTEES[name]
    hosted.profile = dataclasses.replace(OPENAI, **changes)
    hosted.fail("POST", "/fine_tuning/jobs", "reset", when)
    errors = []
    for _ in range(3):
        try:
            finetune.main()
            break
        except UserError as error:
            errors.append(str(error))
    if holds == "none":
        assert len(errors) == 3 and len(hosted.jobs) == (when == "after")
        assert "it may be paid already, so no other job is created" in errors[-1]
        assert "raise openai.attempt by one" in errors[-1] and ".state/openai/" in errors[-1]
    else:
        assert len(hosted.jobs) == 1 and len(errors) <= 1


def test_a_job_found_by_hand_is_used(hosted):
    hosted.profile = MINIMAL
    hosted.fail("POST", "/fine_tuning/jobs", "reset", "after")
    with pytest.raises(UserError, match="outcome unknown") as error:
        finetune.main()
    (job,) = hosted.jobs
    state = str(error.value).partition("into ")[2].partition(";")[0]
    Path(state).write_text(json.dumps({"job": job}))
    finetune.main()
    assert len(hosted.jobs) == 1 and json.loads((TUNED / "model.json").read_text())["job"] == job


def test_metadata_that_are_rejected_are_left_out(hosted):
    hosted.profile = dataclasses.replace(MINIMAL, refused=("metadata",))
    finetune.main()
    assert len(hosted.jobs) == 1 and "metadata" not in hosted.bodies[-1]


def test_another_machine_s_job_that_lists_show_late_is_used_and_the_own_one_cancelled(hosted, monkeypatch, capsys):
    finetune.main()
    (earlier,) = hosted.jobs.values()
    earlier["created_at"] -= 60
    earlier["status"] = "running"
    for path in Path(".state/openai").glob("*.json"):
        path.unlink()
    monkeypatch.setattr(jobs, "SETTLE_SECONDS", 60.0)
    # Neither what is looked at before the job is created shows it, nor what is looked at after.
    real, shown = jobs.guarantee.all_jobs, []
    monkeypatch.setattr(
        jobs.guarantee, "all_jobs", lambda *a, **k: shown.append(1) or (real(*a, **k) if len(shown) > 4 else [])
    )
    finetune.main()
    assert "another machine created job" in capsys.readouterr().out
    statuses = sorted(job["status"] for job in hosted.jobs.values())
    assert statuses == ["cancelled", "succeeded"] and json.loads(RUN.read_text())["job"] == earlier["id"]


AS_DOCUMENTED = {
    "openai": {},
    "azure": {
        "openai__extra_body": {"trainingType": "Standard"},
        "openai__chat_model": "house-tuned",
        "openai__base_chat_model": "house-base",
    },
    "nebius": {
        "openai__hyperparameters": "top_level",
        "openai__learning_rate_multiplier": 2e-5,
        "openai__extra_body": {"hyperparameters": {"lora": True, "lora_r": 16}},
        "openai__chat_model": "meta-llama/base-LoRa:desk",
        "openai__base_chat_model": "meta-llama/base-fast",
    },
    "minimal": {},
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_service_as_documented_is_trained_at_with_the_documented_parameters(hosted, monkeypatch, name):
    hosted.profile = PROFILES[name]
    set_params(**AS_DOCUMENTED[name])
    if name == "azure":
        monkeypatch.setenv("OPENAI_BASE_URL", f"{hosted.url}?api-version=preview")
    run_all()
    assert len(hosted.jobs) == 1
    assert json.loads(MEASURES.read_text())["test"]["gain"]["exact_match"]["value"] == 1.0


def test_what_azure_and_nebius_want_is_in_the_request(hosted):
    hosted.profile = AZURE
    set_params(**AS_DOCUMENTED["azure"])
    finetune.main()
    assert hosted.bodies[-1]["trainingType"] == "Standard" and "method" in hosted.bodies[-1]
    hosted.profile = NEBIUS
    set_params(openai__extra_body={})
    set_params(**AS_DOCUMENTED["nebius"])
    finetune.main()
    sent = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2e-5, "lora": True, "lora_r": 16}
    assert hosted.bodies[-1]["hyperparameters"] == sent and "method" not in hosted.bodies[-1]
    assert len(hosted.jobs) == 2


def test_evaluation_alone_may_exceed_the_limit_on_the_sum(hosted):
    base.main()
    finetune.main()
    spent = json.loads(RUN.read_text())["price_usd"]
    set_params(openai__max_cost_usd=spent, evaluate__max_new_tokens=8000)
    with pytest.raises(
        UserError, match=r"openai.max_cost_usd: 3 answers of the base model cost about \$0.04, after \$"
    ):
        evaluate.main()
    assert hosted.requests.count(ASKED) == 0


def test_answers_are_an_out_with_every_request_once(hosted):
    run_all()
    lines = [json.loads(line) for line in ANSWERS.read_text().splitlines()]
    assert len({line["request"] for line in lines}) == len(lines) == 6
    assert {line["model"] for line in lines} == {MODEL, json.loads((TUNED / "model.json").read_text())["model"]}
    assert {line["endpoint"] for line in lines} == {hosted.url}
    first = ANSWERS.read_bytes()
    evaluate.main()
    assert ANSWERS.read_bytes() == first


def test_the_history_of_a_service_with_epochs_has_them(hosted):
    finetune.main()
    with HISTORY.open(newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)][-1] == 3.0
