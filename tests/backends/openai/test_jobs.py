"""A job is created once and found again, whatever the service lists or fails at; with an in-memory service."""

import dataclasses
import json
from types import SimpleNamespace as Some

import httpx
import openai
import pytest

from stages import params
from stages.backends.openai.training import jobs
from stages.core.cli import UserError
from stages.core.paths import SPLITS
from tests.support.service import LIMIT, LOST, REQUEST, SERVER, URL, Clock, Service, made, status


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(jobs, "time", clock)
    return clock


@pytest.fixture
def order(project, clock, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    SPLITS["train"].parent.mkdir(parents=True)
    for split, path in SPLITS.items():
        path.write_text(f"{split}\n")
    return jobs.Order.make(URL, params.load())


@pytest.fixture
def service():
    return Service()


def run(service, order):
    asked = []
    job = jobs.find_or_create(service, order, before=lambda: asked.append(service.count("upload")))
    return job, asked


def test_the_order_has_everything_that_determines_the_result(order):
    knobs = params.load()
    assert (order.endpoint, order.model, order.seed, order.suffix, order.attempt) == (
        URL,
        knobs.openai.model,
        42,
        None,
        1,
    )
    assert order.method["supervised"]["hyperparameters"] == {
        "n_epochs": 3,
        "batch_size": 4,
        "learning_rate_multiplier": "auto",
    }
    assert order.method["type"] == "supervised"
    # sha256sum of "train\n" and "validation\n"; the test split is not uploaded.
    assert {split: one[:8] for split, one in order.contents.items()} == {"train": "f6e12a5f", "validation": "2d586a86"}


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "http://other/v1"},
        {"model": "other"},
        {"method": {"type": "supervised"}},
        {"seed": 43},
        {"suffix": "desk"},
        {"attempt": 2},
        {"contents": {"train": "a" * 64, "validation": "b" * 64}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_order_affects_the_fingerprint_and_the_file_names(order, change):
    other = dataclasses.replace(order, **change)
    assert other.fingerprint != order.fingerprint and len(order.fingerprint) == 64
    assert other.file_name("train") != order.file_name("train") and other.state != order.state


def test_a_file_name_identifies_split_order_and_content(order):
    sha = order.contents["validation"]
    assert order.file_name("validation") == f"validation-{order.fingerprint[:16]}-{sha[:16]}.jsonl"


def test_a_new_job_is_requested_once_with_the_order(order, service, capsys):
    job, asked = run(service, order)
    (request,) = [one[1] for one in service.asked if one[0] == "create"]
    assert request == {
        "model": order.model,
        "training_file": "file0",
        "validation_file": "file1",
        "method": order.method,
        "seed": 42,
        "suffix": openai.omit,
        "metadata": {"fingerprint": order.fingerprint},
    }
    assert [file.data for file in service.kept] == [b"train\n", b"validation\n"]
    assert {one[2] for one in service.asked if one[0] == "upload"} == {"fine-tune"}
    # The price is checked before any upload, and the SDK does not retry paid requests.
    assert asked == [0] and service.retries == [0, 0, 0]
    assert json.loads(order.state.read_text()) == {"job": job.id} and "created job job0" in capsys.readouterr().out


def test_a_suffix_is_passed_on(order, service):
    run(service, dataclasses.replace(order, suffix="desk"))
    assert [one[1]["suffix"] for one in service.asked if one[0] == "create"] == ["desk"]


def test_a_job_in_the_state_file_is_used_without_reading_the_lists(order, service, capsys):
    first, _ = run(service, order)
    service.asked.clear()
    assert run(service, order) == (first, [])
    assert service.asked == [("retrieve", "job0")]
    assert "using job job0 of the same training (queued); no new job is created" in capsys.readouterr().out


def test_a_saved_job_that_no_longer_exists_is_looked_for_in_the_lists(order, service, capsys):
    order.state.write_text('{"job": "gone"}')
    service.listed = [made("mine", fingerprint=order.fingerprint)]
    assert run(service, order)[0].id == "mine" and "job gone no longer exists at" in capsys.readouterr().out
    assert json.loads(order.state.read_text()) == {"job": "mine"}


def test_a_saved_job_is_not_given_up_if_the_service_fails(order, service):
    order.state.write_text('{"job": "mine"}')
    service.faults["retrieve"] = [SERVER]
    with pytest.raises(UserError, match="the service failed"):
        run(service, order)
    assert service.count("create") == 0 and json.loads(order.state.read_text()) == {"job": "mine"}


def test_a_job_of_another_training_is_not_used_if_the_service_ignores_the_filter(order, service):
    service.filters = False
    service.listed = [
        made("none", "succeeded"),
        made("foreign", "succeeded", 1, fingerprint="0" * 64),
        made("empty", "succeeded", 2, metadata_is="odd"),
    ]
    service.listed[2].metadata = {}
    job, asked = run(service, order)
    assert job.id == "job3" and asked == [0]
    # Nor is it mistaken for an older job of the same order, or cancelled.
    assert service.count("cancel") == 0


def test_lists_are_requested_by_fingerprint_and_in_large_pages(order, service):
    run(service, order)
    lists = [one for one in service.asked if one[0] == "list"]
    assert ("list", 100, {"fingerprint": order.fingerprint}) in lists and {one[1] for one in lists} == {100}
    assert {one[1] for one in service.asked if one[0] == "files"} == {"fine-tune"}


@pytest.mark.parametrize(
    "found, chosen",
    [
        ([("a", "running", 1), ("b", "succeeded", 2)], "b"),
        ([("a", "failed", 1), ("b", "running", 2)], "b"),
        ([("a", "cancelled", 1), ("b", "queued", 2)], "b"),
        ([("a", "failed", 1), ("b", "succeeded", 2), ("c", "running", 0)], "b"),
        ([("a", "running", 2), ("b", "running", 1)], "b"),
        ([("b", "running", 1), ("a", "running", 1)], "a"),
        ([("a", "failed", 2), ("b", "cancelled", 1)], "b"),
        ([("a", "thinking", 2), ("b", "failed", 1)], "a"),
    ],
)
def test_of_several_jobs_a_succeeded_one_is_preferred_then_a_running_one_then_the_oldest(order, service, found, chosen):
    service.listed = [made(*one, fingerprint=order.fingerprint) for one in found]
    assert run(service, order)[0].id == chosen and service.count("create") == 0


def test_a_job_without_metadata_is_found_by_its_training_file(order, service):
    service.kept = [
        Some(id="f1", filename=order.file_name("train")),
        Some(id="f2", filename=order.file_name("validation")),
        Some(id="f3", filename="train-other.jsonl"),
    ]
    service.listed = [made("a", training_file="f3"), made("b", training_file="f2"), made("c", training_file="f1")]
    assert run(service, order)[0].id == "c"


def test_metadata_takes_precedence_over_the_training_file(order, service):
    service.kept = [Some(id="f1", filename=order.file_name("train"))]
    service.listed = [
        made("file", "succeeded", training_file="f1"),
        made("meta", "failed", fingerprint=order.fingerprint),
    ]
    assert run(service, order)[0].id == "meta"


def test_without_an_uploaded_training_file_the_full_list_is_not_requested(order, service):
    assert jobs.find(service, order) is None
    assert [one[2] for one in service.asked if one[0] == "list"] == [{"fingerprint": order.fingerprint}]


@pytest.mark.parametrize("others, kept", [([("other", "running", 400)], "other"), ([("a", "queued", 500)], "a")])
def test_of_two_machines_jobs_the_first_wins_and_the_later_one_is_cancelled(order, service, capsys, others, kept):
    def meanwhile():
        service.listed = [made(*one, fingerprint=order.fingerprint) for one in others]

    service.faults["upload"] = [meanwhile]
    job, _ = run(service, order)
    assert job.id == kept and [one[1] for one in service.asked if one[0] == "cancel"] == ["job1"]
    assert json.loads(order.state.read_text()) == {"job": kept}
    assert f"another machine created job {kept} first; cancelled job1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", [("z", "running", 501), ("z", "running", 500), ("a", "failed", 1), ("a", "cancelled", 1)]
)
def test_a_later_or_unsuccessful_job_does_not_win(order, service, other):
    service.faults["upload"] = [lambda: service.listed.append(made(*other, fingerprint=order.fingerprint))]
    job, _ = run(service, order)
    assert job.id == "job1" and service.count("cancel") == 0


@pytest.mark.parametrize("fault", [LOST, SERVER, status(408), status(409)])
def test_after_a_lost_response_the_created_job_is_found(order, service, clock, fault, capsys):
    def created():
        service.listed = [made("mine", fingerprint=order.fingerprint)]
        raise fault

    service.faults["create"] = [created]
    assert run(service, order)[0].id == "mine" and service.count("create") == 1
    assert "found the job, mine" in capsys.readouterr().out


def test_a_lagging_list_is_read_four_times_two_seconds_apart(order, service, clock):
    def created():
        service.listed = [made("mine", fingerprint=order.fingerprint)]
        real, service.listed = service.listed, []
        # Each attempt reads two lists, by metadata and by training file.
        service.faults["list"] = [None] * 6 + [lambda: service.listed.extend(real)]
        raise LOST

    service.faults["create"] = [created]
    assert run(service, order)[0].id == "mine" and clock.slept == [0, 0, 2.0, 2.0, 2.0]


def test_an_unknown_outcome_is_remembered_and_the_training_is_not_paid_twice(order, service, clock, capsys):
    service.faults["create"] = [LOST]
    with pytest.raises(UserError, match=r"^outcome unknown: .*\n.*fingerprint=\w{64} yet\n.* after 5 minutes$"):
        run(service, order)
    assert clock.slept == [0, 0, 2.0, 2.0, 2.0]
    saved = json.loads(order.state.read_text())
    assert saved == {"job": None, "asked": 1000.0, "files": {"train": "file0", "validation": "file1"}}
    clock.slept.clear()
    # 6 of 300 seconds have passed; at one attempt every two seconds, 147 are left, the first without a pause.
    service.asked.clear()
    job, asked = run(service, order)
    assert clock.slept == [0, 0, *[2.0] * 146] and asked == [0] and job.id == "job0"
    assert "looking for it for another 294 s before creating one" in capsys.readouterr().out
    assert service.count("create") == 1


def test_a_job_that_appears_during_the_wait_is_used(order, service, clock):
    service.faults["create"] = [LOST]
    with pytest.raises(UserError):
        run(service, order)
    appears = [None] * 20 + [lambda: service.listed.append(made("mine", fingerprint=order.fingerprint))]
    service.faults["list"] = appears
    job, asked = run(service, order)
    assert job.id == "mine" and asked == [] and service.count("create") == 1


@pytest.mark.parametrize("ago, looks", [(300.0, 4), (299.0, 4), (290.0, 5), (1e6, 4), (-1e6, 150)])
def test_the_wait_is_the_rest_of_five_minutes_and_never_longer(order, service, clock, ago, looks):
    order.state.write_text(json.dumps({"job": None, "asked": clock.now - ago}))
    run(service, order)
    assert clock.slept == [0, 0, *[2.0] * (looks - 1)]


def test_there_is_no_wait_if_no_job_was_requested(order, service, clock):
    run(service, order)
    assert clock.slept == [0]


@pytest.mark.parametrize("fault", [status(400), status(401), status(403), LIMIT, status(404)])
def test_a_rejected_request_leaves_no_state(order, service, fault):
    service.faults["create"] = [fault]
    with pytest.raises(UserError, match=r"refused"):
        run(service, order)
    assert not order.state.exists() and service.listed == []


def test_a_connection_that_was_never_established_leaves_no_state(order, service):
    fault = openai.APIConnectionError(request=REQUEST)
    fault.__cause__ = httpx.ConnectError("refused")
    service.faults["create"] = [fault]
    with pytest.raises(UserError):
        run(service, order)
    assert not order.state.exists()


def test_an_error_while_looking_for_the_job_leaves_the_outcome_unknown(order, service):
    service.faults["create"] = [LOST]
    service.faults["list"] = [None, SERVER]
    with pytest.raises(UserError, match="^outcome unknown: .*503"):
        run(service, order)
    assert json.loads(order.state.read_text())["asked"] == 1000.0


def test_ctrl_c_while_creating_the_job_says_that_it_may_be_running_and_where_to_look(order, service, capsys):
    service.faults["create"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run(service, order)
    assert json.loads(order.state.read_text())["asked"] == 1000.0
    out = capsys.readouterr().out
    assert f"fingerprint={order.fingerprint} in: curl {URL}/fine_tuning/jobs -H" in out and "$OPENAI_API_KEY" in out


def test_a_price_above_the_limit_stops_before_any_upload(order, service):
    def refuse():
        raise UserError("too much")

    with pytest.raises(UserError, match="too much"):
        jobs.find_or_create(service, order, before=refuse)
    assert service.count("upload") == service.count("create") == 0 and not order.state.exists()


@pytest.mark.parametrize(
    "change, uploads",
    [
        ({}, 0),
        ({"bytes": 5}, 1),
        ({"filename": "other.jsonl"}, 1),
        ({"status": "error"}, 1),
        ({"status": "uploaded"}, 0),
    ],
)
def test_an_uploaded_file_is_reused_by_name_and_size(order, service, change, uploads):
    whole = {"id": "old", "filename": order.file_name("train"), "bytes": 6, "status": "processed"}
    service.kept = [Some(**whole | change)]
    run(service, order)
    assert service.count("upload") == 1 + uploads
    request = next(one[1] for one in service.asked if one[0] == "create")
    assert (request["training_file"] == "old") == (uploads == 0)


@pytest.mark.parametrize("fault", [LOST, SERVER, LIMIT])
def test_an_upload_is_tried_three_times_with_pauses(order, service, clock, fault):
    service.faults["upload"] = [fault, fault]
    run(service, order)
    assert [one[1].split("-")[0] for one in service.asked if one[0] == "upload"] == ["train"] * 3 + ["validation"]
    assert clock.slept == [0, 2.0, 2.0]
    service.faults["upload"], other = [fault] * 3, dataclasses.replace(order, attempt=2)
    with pytest.raises(UserError):
        run(service, other)
    assert service.count("upload") == 4 + 3 and service.count("create") == 1


def test_an_upload_whose_response_was_lost_is_used(order, service):
    def arrived():
        service.kept.append(Some(id="there", filename=order.file_name("train"), bytes=6, status="processed"))
        raise LOST

    service.faults["upload"] = [arrived]
    run(service, order)
    assert next(one[1] for one in service.asked if one[0] == "create")["training_file"] == "there"


def test_a_rejected_upload_is_not_retried(order, service):
    service.faults["upload"] = [status(400)]
    with pytest.raises(UserError, match="400"):
        run(service, order)
    assert service.count("upload") == 1


def test_a_concurrent_run_of_the_same_order_is_waited_for_and_then_reported(order, service, monkeypatch, project):
    monkeypatch.setattr(jobs, "_LOCK_SECONDS", 0)
    with jobs._locked(order), pytest.raises(UserError, match="another run is creating the same job"):
        run(service, order)
    assert service.asked == []
    # Another order has another lock.
    with jobs._locked(order):
        run(service, dataclasses.replace(order, seed=7))
