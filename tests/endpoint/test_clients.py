"""Clients that know nothing of this endpoint: the flows that their own documentation shows."""

import json
import time

import pytest

from tests.support.endpoint import ended, jsonl, talk


@pytest.fixture
def talks(tmp_path):
    """A file of twelve conversations."""
    path = tmp_path / "talks.jsonl"
    path.write_bytes(jsonl([talk(n) for n in range(12)]))
    return path


@pytest.fixture
def environment(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", endpoint.key)


def test_the_flow_of_the_notebook_on_chat_models(talks, environment, endpoint, small_base):
    import openai

    endpoint.model = small_model(small_base)
    client = openai.OpenAI()
    with talks.open("rb") as file:
        training = client.files.create(file=file, purpose="fine-tune").id
    with talks.open("rb") as file:
        validation = client.files.create(file=file, purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(
        training_file=training, validation_file=validation, model="gpt-3.5-turbo-0125", suffix="recipe-ner"
    )
    while job.status != "succeeded":
        job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status in ("validating_files", "queued", "running", "succeeded")
    events = client.fine_tuning.jobs.list_events(job.id).data
    events.reverse()
    messages = [event.message for event in events]
    assert messages[0].startswith("Created fine-tuning job") and messages[-1] == "The job has successfully completed"
    # One epoch, as the scripted training has it: 58 tokens each, and 60 with rooms 10 and 11.
    assert job.trained_tokens == 10 * 58 + 2 * 60
    assert ":recipe-ner:" in job.fine_tuned_model
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=talk(3)["messages"][:1], temperature=0, max_tokens=5
    )
    assert isinstance(answer.choices[0].message.content, str)


def small_model(small_base):
    """A function that writes a whole model, as `method: full` does."""
    import shutil

    return lambda folder: shutil.copytree(small_base, folder)


def test_the_calls_of_litellm(talks, environment, endpoint):
    litellm = pytest.importorskip("litellm")
    where = {"custom_llm_provider": "openai", "api_base": endpoint.url, "api_key": endpoint.key}
    endpoint.held.set()
    with talks.open("rb") as file:
        uploaded = litellm.create_file(file=file, purpose="fine-tune", **where)
    job = litellm.create_fine_tuning_job(
        model="tiny", training_file=uploaded.id, hyperparameters={"n_epochs": 2}, suffix="desk", **where
    )
    assert job.id.startswith("ftjob-") and job.status in ("validating_files", "queued")
    listed = litellm.list_fine_tuning_jobs(limit=5, **where)
    assert [one.id for one in listed] == [job.id]
    found = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **where)
    assert found.id == job.id and found.hyperparameters.n_epochs == 2
    assert litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, **where).status == "cancelled"
    answer = litellm.completion("openai/tiny", talk(1)["messages"][:1], api_base=endpoint.url, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"


def test_the_fine_tuning_of_dspy(environment, endpoint, client, monkeypatch, tmp_path):
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "cache"))
    dspy = pytest.importorskip("dspy")
    monkeypatch.setattr(time, "sleep", lambda seconds, wait=time.sleep: wait(min(seconds, 0.1)))
    lm = dspy.LM("openai/tiny", api_base=endpoint.url, api_key=endpoint.key)
    training = lm.finetune(
        train_data=[talk(n) for n in range(12)], train_data_format="chat", train_kwargs={"n_epochs": 1}
    )
    tuned = training.result()
    (job,) = client.fine_tuning.jobs.list()
    assert job.status == "succeeded" and tuned.model == job.fine_tuned_model


def test_the_backend_of_this_project(environment, endpoint, project):
    """The hosted backend creates one job, follows it, and reads its curves."""
    from stages import base, finetune
    from stages.core.paths import HISTORY, TUNED, VALIDATION_HISTORY
    from tests.conftest import set_params
    from tests.support import hosted

    set_params(
        backend="openai", openai__model="gpt-3.5-turbo-0125", openai__poll_seconds=0.01, openai__max_cost_usd=None
    )
    made = {"train": range(12), "validation": range(20, 23), "test": range(2)}
    hosted.write_splits(**{split: [hosted.talk(n) for n in numbers] for split, numbers in made.items()})
    base.main()
    finetune.main()
    finetune.main()
    with endpoint.client() as client:
        (job,) = client.fine_tuning.jobs.list()
        assert ended(client, job.id).status == "succeeded"
    assert [(row["step"], row["train_loss"]) for row in hosted.rows(HISTORY)] == [("1", "2.5"), ("2", "2.25")]
    assert [row["validation_loss"] for row in hosted.rows(VALIDATION_HISTORY)] == ["2.125"]
    assert json.loads((TUNED / "model.json").read_text())["model"] == job.fine_tuned_model
