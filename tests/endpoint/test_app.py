"""The API as the `openai` package speaks it."""

import threading

import openai
import pytest

from stages.params import DEFAULTS
from tests.conftest import set_params
from tests.support.endpoint import ended, jsonl, talk, upload

SILENT = {"role": "assistant", "content": "x", "weight": 0}


def refused(what, **given):
    with pytest.raises(openai.APIStatusError) as error:
        what(**given)
    return error.value


def test_a_job_runs_from_upload_to_model_checkpoint_and_result_file(client):
    train, validation = upload(client), upload(client, [talk(50)])
    asked = {"training_file": train, "validation_file": validation, "suffix": "front desk", "metadata": {"a": "b"}}
    job = ended(client, client.fine_tuning.jobs.create(model="tiny", seed=7, **asked).id)
    assert job.status == "succeeded" and job.error is None and job.finished_at >= job.created_at
    assert job.metadata == {"a": "b"} and job.seed == 7 and job.organization_id == "local"
    assert job.fine_tuned_model.startswith("ft:tiny:local:front-desk:")
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-2"
    assert (checkpoint.step_number, checkpoint.metrics.full_valid_loss, checkpoint.metrics.train_loss) == (
        2,
        2.125,
        2.25,
    )
    (result,) = job.result_files
    assert client.files.content(result).text.splitlines() == [
        "step,train_loss,valid_loss,learning_rate",
        "1,2.5,,0.001",
        "2,2.25,2.125,0.0005",
    ]
    assert client.files.retrieve(result).purpose == "fine-tune-results"


def test_auto_is_resolved_by_the_recipe_and_reported(endpoint_of):
    set_params(epochs=4, batch_size=6, lr=0.002, seed=11)
    with endpoint_of().running() as endpoint, endpoint.client() as client:
        asked = {"n_epochs": "auto", "learning_rate_multiplier": 2.5}
        job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client), hyperparameters=asked)
        expected = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 2.5}
        assert job.hyperparameters.to_dict() == job.method.supervised.hyperparameters.to_dict() == expected
        assert job.seed == 11
        ended(client, job.id)
        (said,) = [e.message for e in client.fine_tuning.jobs.list_events(job.id, limit=100) if "auto" in e.message]
        # The recipe's 0.002, times 2.5.
        assert "n_epochs, batch_size auto" in said and "learning rate 0.005" in said
        assert endpoint.store_plan(job.id)["knobs"]["lr"] == pytest.approx(0.005)


def test_a_recipe_for_a_hosted_backend_trains_locally_with_numbers(endpoint_of):
    set_params(backend="openai", epochs="auto", batch_size="auto")
    with endpoint_of().running() as endpoint, endpoint.client() as client:
        job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
        shipped = (DEFAULTS["epochs"], DEFAULTS["batch_size"])
        assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == shipped


@pytest.mark.parametrize("kind", ["dpo", "reinforcement"])
def test_other_methods_are_refused(asker, kind):
    grader = {"type": "string_check", "name": "g", "input": "a", "reference": "b", "operation": "eq"}
    method = {"type": kind} | ({"reinforcement": {"grader": grader}} if kind == "reinforcement" else {})
    error = refused(asker.fine_tuning.jobs.create, model="tiny", training_file=upload(asker), method=method)
    assert error.status_code == 400 and error.param == "method.type" and f"'{kind}'" in error.body["message"]
    assert list(asker.fine_tuning.jobs.list()) == []


@pytest.mark.parametrize(
    "change, param",
    [
        ({"model": "gpt-4o"}, "model"),
        ({"training_file": "file-0"}, "training_file"),
        ({"training_file": "../../etc/passwd"}, "training_file"),
        ({"validation_file": "file-0"}, "validation_file"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"lr": 1}}, "hyperparameters"),
        ({"hyperparameters": {"learning_rate_multiplier": 1e9}}, "learning_rate_multiplier"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"extra_body": {"trainingType": 1}}, None),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ],
)
def test_a_wrong_job_is_refused_with_its_parameter(asker, change, param):
    asked = {"model": "tiny", "training_file": upload(asker), **change}
    error = refused(asker.fine_tuning.jobs.create, **asked)
    assert error.status_code == 400 and error.param == param


@pytest.mark.parametrize(
    "records, said",
    [
        ([talk(n) for n in range(9)], "has 9 example"),
        ([*[talk(n) for n in range(10)], {"messages": []}], "line 11: the last message is not the assistant's"),
        ([*[talk(n) for n in range(10)], {"messages": [{"role": "king", "content": "x"}]}], "line 11: Invalid enum"),
        ([*[talk(n) for n in range(10)], {"prompt": "a", "completion": "b"}], "line 11: "),
        ([{"messages": [*talk(n)["messages"][:1], SILENT]} for n in range(10)],
         "line 1: no assistant message has weight 1"),
        ([*[talk(n) for n in range(10)], {"messages": [{"role": "user", "content": "x" * 3000}, *talk(1)["messages"]]}],
         "line 11: 3"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trained_on_fails_the_job_by_line(asker, shared, records, said):
    job = asker.fine_tuning.jobs.create(model="tiny", training_file=upload(asker, records))
    job = ended(asker, job.id)
    assert job.status == "failed" and said in job.error.message
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file") and not shared.started


def test_a_validation_file_is_checked_too(asker):
    asked = {"training_file": upload(asker), "validation_file": upload(asker, [{"messages": []}])}
    job = ended(asker, asker.fine_tuning.jobs.create(model="tiny", **asked).id)
    assert job.status == "failed" and job.error.param == "validation_file"


def test_a_name_is_served_only_where_it_is_mapped_and_says_what_it_is(endpoint, client, endpoint_of):
    names = {model.id: model for model in client.models.list()}
    assert set(names) == {"tiny", "gpt-3.5-turbo-0125"}
    assert names["gpt-3.5-turbo-0125"].served_by == "the model in the folder tiny"
    job = client.fine_tuning.jobs.create(model="gpt-3.5-turbo-0125", training_file=upload(client))
    assert job.served_by == "the model in the folder tiny" and job.model == "gpt-3.5-turbo-0125"
    model = client.models.retrieve(ended(client, job.id).fine_tuned_model)
    assert model.served_by == f"the model in the folder tiny, fine-tuned by {job.id}" and model.owned_by == "local"
    assert refused(client.models.retrieve, model="gpt-4o").code == "model_not_found"


def test_files_are_kept_listed_read_and_deleted(client):
    ids = [upload(client, [talk(n)], name=f"{n}.jsonl") for n in range(3)]
    assert [file.id for file in client.files.list()] == ids[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == ids
    assert client.files.content(ids[1]).read() == jsonl([talk(1)])
    assert client.files.retrieve(ids[1]).filename == "1.jsonl" and client.files.delete(ids[1]).deleted
    for what in (client.files.retrieve, client.files.content, client.files.delete):
        assert refused(what, file_id=ids[1]).status_code == 404
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [ids[2], ids[0]]


def test_a_file_expires(asker):
    expires = {"anchor": "created_at", "seconds": 3600}
    file = asker.files.create(file=("a.jsonl", b"x"), purpose="fine-tune", expires_after=expires)
    assert file.expires_at == file.created_at + 3600
    assert refused(asker.files.create, file=("a.jsonl", b"x"), purpose="fine-tune",
                   expires_after={"anchor": "created_at", "seconds": 5}).status_code == 400  # fmt: skip


@pytest.mark.parametrize("name, purpose", [("a.csv", "fine-tune"), ("a.jsonl", "assistants"), ("x" * 300, "fine-tune")])
def test_a_file_for_another_purpose_or_with_a_wrong_name_is_refused(asker, name, purpose):
    assert refused(asker.files.create, file=(name, b"x"), purpose=purpose).status_code == 400


def test_lists_are_cut_into_pages_and_filtered_by_metadata(client, endpoint):
    endpoint.held.set()
    file = upload(client)
    made = [
        client.fine_tuning.jobs.create(model="tiny", training_file=file, metadata={"n": str(n % 2)} if n else None).id
        for n in range(5)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    page = client.fine_tuning.jobs.list(limit=2)
    assert page.has_more and [job.id for job in page.data] == made[:2:-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [made[3], made[1]]
    assert refused(client.fine_tuning.jobs.list, after="ftjob-0").param == "after"
    assert refused(client.fine_tuning.jobs.list, limit=0).param == "limit"
    events = client.fine_tuning.jobs.list_events(made[0], limit=1)
    assert len({event.id for event in events}) == len(list(client.fine_tuning.jobs.list_events(made[0], limit=100)))


def test_cancel_ends_a_running_job_within_a_second(client, endpoint):
    endpoint.held.set()
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
    ended(client, job.id, ("running",))
    while not endpoint.started:
        threading.Event().wait(0.01)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert endpoint.started[0].killed.wait(1)
    error = refused(client.fine_tuning.jobs.cancel, fine_tuning_job_id=job.id)
    assert error.status_code == 400 and "already completed" in error.body["message"]
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []


def test_a_paused_job_waits_and_resumes_in_its_place(client, endpoint):
    endpoint.held.set()
    file = upload(client)
    first, second, third = (client.fine_tuning.jobs.create(model="tiny", training_file=file).id for _ in range(3))
    ended(client, first, ("running",))
    assert client.fine_tuning.jobs.pause(first).status == "paused"
    ended(client, second, ("running",))
    ended(client, third, ("queued",))
    assert client.fine_tuning.jobs.resume(first).status == "queued"
    assert "queued" in refused(client.fine_tuning.jobs.resume, fine_tuning_job_id=first).body["message"]
    endpoint.held.clear()
    for job in (first, second, third):
        assert ended(client, job).status == "succeeded"
    assert [one.folder.name for one in endpoint.started] == [first, second, first, third]
    steps = [e.data["step"] for e in client.fine_tuning.jobs.list_events(first, limit=100) if e.type == "metrics"]
    # Two steps and the end of an epoch, each once, although the job began twice.
    assert sorted(steps) == [1, 2, 2]


def test_a_full_queue_refuses_more_and_has_room_again_later(endpoint_of):
    with endpoint_of(max_jobs=2).running() as endpoint, endpoint.client() as client:
        endpoint.held.set()
        file = upload(client)
        made = [client.fine_tuning.jobs.create(model="tiny", training_file=file).id for _ in range(2)]
        error = refused(client.fine_tuning.jobs.create, model="tiny", training_file=file)
        assert error.status_code == 429 and "2 jobs are waiting" in error.body["message"]
        client.fine_tuning.jobs.cancel(made[1])
        client.fine_tuning.jobs.create(model="tiny", training_file=file)


def test_uploads_are_limited_by_size_and_by_the_disk(endpoint_of):
    with endpoint_of(max_upload=1000, max_disk=400_000).running() as endpoint, endpoint.client() as client:
        assert refused(client.files.create, file=("a.jsonl", b"x" * 1001), purpose="fine-tune").status_code == 413
        error = None
        for _ in range(400):
            try:
                client.files.create(file=("a.jsonl", b"x" * 1000), purpose="fine-tune")
            except openai.APIStatusError as raised:
                error = raised
                break
        assert error and error.status_code == 413 and error.code == "storage_limit_exceeded"


def test_a_failed_training_says_why(client, endpoint):
    endpoint.held.set()
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
    while not endpoint.started:
        threading.Event().wait(0.01)
    endpoint.started[0].error = "training diverged after step 1"
    endpoint.held.clear()
    job = ended(client, job.id)
    assert job.status == "failed" and job.error.message == "training diverged after step 1"
    assert job.fine_tuned_model is None and job.result_files == []


def test_a_tuned_model_is_deleted_with_its_folder(client, endpoint):
    job = ended(client, client.fine_tuning.jobs.create(model="tiny", training_file=upload(client)).id)
    folder = endpoint.started[0].folder
    assert folder.exists() and client.models.delete(job.fine_tuned_model).deleted and not folder.exists()
    assert refused(client.models.retrieve, model=job.fine_tuned_model).status_code == 404
    assert refused(client.models.delete, model="tiny").status_code == 403


def test_a_deleted_file_fails_a_job_that_still_needs_it_and_no_other(client, endpoint):
    endpoint.held.set()
    file = upload(client)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file)
    ended(client, job.id, ("running",))
    client.files.delete(file)
    endpoint.held.clear()
    assert ended(client, job.id).status == "succeeded"
    assert refused(client.fine_tuning.jobs.create, model="tiny", training_file=file).param == "training_file"
