import base64
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import openai
import pytest

from tests.conftest import ROOT, accept_ctrl_c
from tests.support.openai_server import OpenAIServer

MODEL = "gpt-4o-mini-2024-07-18"
CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Norway": "Oslo", "Greece": "Athens"}
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": f"What is the capital of {land}, guest {guest}?"},
            {"role": "assistant", "content": f"{town} it is, as guest {guest} may know.", "weight": 1},
        ]
    }
    for land, town in CAPITALS.items()
    for guest in range(4)
]


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


def connect(server, **options):
    return openai.OpenAI(base_url=server.url, api_key=server.key, **({"max_retries": 0} | options))


@pytest.fixture
def client(server):
    return connect(server)


def upload(client, records=RECORDS):
    text = "".join(json.dumps(record) + "\n" for record in records)
    return client.files.create(file=("train.jsonl", text.encode()), purpose="fine-tune").id


def create(client, **settings):
    return client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client), **settings)


def finish(client, job):
    seen = [job.status]
    while job.status not in ("succeeded", "failed", "cancelled"):
        job = client.fine_tuning.jobs.retrieve(job.id)
        seen.append(job.status)
        assert len(seen) < 20
    return job, seen


def ask(client, model, question="Which town is the capital of Norway?", **options):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **options)


def test_the_life_cycle_of_a_job(server, client):
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 5}}}
    settings = {"method": method, "suffix": "inn", "seed": 7, "metadata": {"run": "a1"}}
    job, seen = finish(client, create(client, validation_file=upload(client, RECORDS[:3]), **settings))
    assert seen == ["validating_files", "queued", "running", "running", "running", "succeeded"]
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:test-org:inn:")
    assert job.hyperparameters.model_dump() == job.method.supervised.hyperparameters.model_dump()
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (4, 5)
    assert job.method.supervised.hyperparameters.learning_rate_multiplier == 1.8
    assert (job.seed, job.metadata, job.error) == (7, {"run": "a1"}, None)
    assert job.trained_tokens == round(20 * 16 * 1.3 * 4)
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=3)]
    assert events[:2] == ["The job has successfully completed", "New fine-tuned model created"]
    assert events[2] == "Step 16/16: training loss=0.38, validation loss=0.48, full validation loss=0.50"
    assert events[-1] == f"Created fine-tuning job: {job.id}"
    assert "Checkpoint created at step 4" in events
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [16, 12, 8]
    assert checkpoints[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-16")
    assert checkpoints[0].metrics.full_valid_loss
    client.models.retrieve(job.fine_tuned_model)
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert server.violations == []


@pytest.mark.parametrize("encoding", ["base64", "plain"])
def test_the_result_file(encoding):
    with OpenAIServer(result_encoding=encoding, steps_per_poll=100) as server:
        client = connect(server)
        job, seen = finish(client, create(client, validation_file=upload(client, RECORDS[:3])))
        assert len(seen) == 4
        content = client.files.content(job.result_files[0]).read()
        text = (base64.b64decode(content) if encoding == "base64" else content).decode()
        head, *rows = text.splitlines()
        assert head == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
        losses = [float(row.split(",")[1]) for row in rows]
        assert len(losses) == 100 and all(after < before for before, after in pairwise(losses))
        assert rows[0].endswith(",,") and not rows[9].endswith(",")
        assert server.violations == []


def test_hyperparameters_chosen_by_the_service(server, client):
    job = create(client)
    assert job.hyperparameters.n_epochs == "auto"
    settled = client.fine_tuning.jobs.retrieve(job.id)
    assert settled.hyperparameters.n_epochs == 5 and settled.hyperparameters.batch_size == 1
    assert server.jobs[job.id]["method"]["supervised"]["hyperparameters"]["n_epochs"] == 5


def test_jobs_are_listed_by_metadata_and_page(server, client):
    first, second = create(client, metadata={"run": "1", "by": "me"}), create(client, metadata={"run": "2", "by": "me"})
    bare = create(client)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"run": "1"})] == [first.id]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"by": "me"}, limit=1)] == [second.id, first.id]
    assert [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [bare.id]
    assert server.violations == []


def test_files(server, client):
    ids = [upload(client) for _ in range(3)]
    assert [file.id for file in client.files.list(purpose="fine-tune", limit=2)] == ids[::-1]
    assert client.files.content(ids[0]).read() == server.contents[ids[0]]
    assert client.files.retrieve(ids[0]).bytes == len(server.contents[ids[0]])
    assert client.files.delete(ids[0]).deleted and ids[0] not in server.files
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(ids[0])
    assert client.files.list(purpose="batch").data == []
    assert server.violations == []


def test_a_tuned_model_answers_as_trained(server, client):
    job, _ = finish(client, create(client))
    assert ask(client, job.fine_tuned_model).choices[0].message.content.startswith("Oslo it is")
    (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    short = ask(client, checkpoint.fine_tuned_model_checkpoint, max_tokens=4)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("Oslo it is,", "length")
    assert short.usage.completion_tokens == 4
    base = ask(client, MODEL).choices[0]
    assert "Oslo" not in base.message.content and base.finish_reason == "stop"
    stream = ask(client, job.fine_tuned_model, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).startswith("Oslo it is, as")
    assert chunks[-1].usage.total_tokens
    assert server.violations == []


def test_cancel(server, client):
    job = create(client)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(job.id)
    assert server.violations == []


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "unknown"])
def test_a_job_can_end_in_any_other_status(server, client, outcome):
    server.job_outcome = outcome
    job = create(client)
    for _ in range(4):
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == ("thinking" if outcome == "unknown" else outcome)
    assert job.fine_tuned_model is None and (job.error is not None) == (outcome == "failed")
    assert server.violations == []


def bad(change):
    records = json.loads(json.dumps(RECORDS))
    change(records[3])
    return records


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (RECORDS[:9], "invalid_n_examples"),
        (bad(lambda record: record.update(extra=1)), "invalid_training_file"),
        (bad(lambda record: record["messages"].pop()), "invalid_training_file"),
        (bad(lambda record: record["messages"][0].update(weight=1)), "invalid_training_file"),
        (bad(lambda record: record["messages"][1].update(weight=0.5)), "invalid_training_file"),
        (bad(lambda record: record["messages"][0].update(role="owner")), "invalid_training_file"),
        (bad(lambda record: record["messages"][0].update(content=None)), "invalid_training_file"),
    ],
)
def test_a_bad_training_file_fails_the_job(server, client, records, code):
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client, records))
    job, _ = finish(client, job)
    assert (job.status, job.error.code, job.error.param) == ("failed", code, "training_file")
    assert server.violations == []


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"suffix": "x" * 65}, "suffix"),
        ({"metadata": {"run": "x" * 513}}, "metadata.run"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"extra_body": {"epochs": 3}}, None),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
    ],
)
def test_a_request_that_violates_the_description_is_rejected_and_recorded(server, client, settings, param):
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, **settings)
    assert refused.value.param == param and refused.value.type == "invalid_request_error"
    assert len(server.violations) == 1 and server.jobs == {}


def test_other_requests_that_violate_the_description(server, client):
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.jsonl", b"{}"), purpose="training")
    with pytest.raises(openai.BadRequestError):
        client.files.list(extra_query={"page": 2})
    with pytest.raises(openai.NotFoundError):
        client.get("/engines", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        openai.OpenAI(base_url=server.url.removesuffix("/v1"), api_key=server.key, max_retries=0).models.list()
    assert len(server.violations) == 4


def test_what_the_service_rejects(server, client):
    with pytest.raises(openai.AuthenticationError) as wrong:
        openai.OpenAI(base_url=server.url, api_key="sk-wrong", max_retries=0).models.list()
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, "gpt-9")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as untrainable:
        client.fine_tuning.jobs.create(model="gpt-9", training_file=upload(client))
    assert untrainable.value.code == "model_not_available"
    with pytest.raises(openai.BadRequestError, match="file-1"):
        client.fine_tuning.jobs.create(model=MODEL, training_file="file-1")
    with pytest.raises(openai.BadRequestError, match="jsonl"):
        client.files.create(file=("train.txt", b"{}"), purpose="fine-tune")
    server.permissions.discard("create_jobs")
    with pytest.raises(openai.PermissionDeniedError) as ended:
        create(client)
    assert ended.value.code == "training_not_available"
    assert server.violations == []


def test_a_retired_model():
    with OpenAIServer(retired={MODEL: "2026-10-23"}) as server:
        client = connect(server)
        with pytest.raises(openai.NotFoundError, match="2026-10-23") as gone:
            client.models.retrieve(MODEL)
        assert gone.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            create(client)
        assert server.violations == []


@pytest.mark.parametrize(("when", "jobs"), [("before", 0), ("after", 1)])
def test_a_reset_before_or_after_the_work(server, client, when, jobs):
    server.fail("POST", "/fine_tuning/jobs", "reset", when)
    with pytest.raises(openai.APIConnectionError):
        create(client)
    assert len(server.jobs) == jobs
    assert create(client).status == "validating_files"


def test_a_status_and_its_headers(server, client):
    headers = {"retry-after": "7", "x-ratelimit-remaining-requests": 0}
    server.fail("GET", "/fine_tuning/jobs/*", "status", status=429, code="rate_limit_exceeded", headers=headers)
    job = create(client)
    with pytest.raises(openai.RateLimitError) as limited:
        client.fine_tuning.jobs.retrieve(job.id)
    assert (limited.value.code, limited.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "7")
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"


def test_the_sdk_retries_until_the_fault_is_over(server):
    server.fail("GET", "/models", "status", times=2, status=503, headers={"retry-after-ms": 1})
    assert connect(server, max_retries=2).models.list().data
    assert server.requests == [("GET", "/models")] * 3


def test_hang_slow_truncate_and_garbage(server, client):
    server.fail("GET", "/models", "hang")
    with pytest.raises(openai.APITimeoutError):
        connect(server, timeout=0.2).models.list()
    server.fail("GET", "/models", "hang", seconds=0.05)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    server.fail("GET", "/models", "slow", seconds=0.3)
    start = time.monotonic()
    assert client.models.list().data and time.monotonic() - start > 0.3
    server.fail("GET", "/models", "truncate")
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    server.fail("GET", "/models/*", "garbage")
    assert "html" in str(client.models.retrieve(MODEL))
    assert server.violations == []


def test_stopping_the_server_ends_hanging_requests():
    with ThreadPoolExecutor() as pool, OpenAIServer() as server:
        server.fail("GET", "/models", "hang", seconds=60)
        client = connect(server)
        waiting = pool.submit(client.models.list)
        while not (server.requests or waiting.done()):
            time.sleep(0.01)
        start = time.monotonic()
        server.stop()
        assert isinstance(waiting.exception(timeout=5), openai.APIConnectionError)
        assert time.monotonic() - start < 1
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_the_command_line():
    command = [sys.executable, "-m", "tests.support.openai_server", "--fail", "GET /models before status"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=ROOT, preexec_fn=accept_ctrl_c, **pipes)
    lines = [process.stdout.readline().strip().removeprefix("export ") for _ in range(2)]
    settings = dict(line.split("=", 1) for line in lines)
    client = openai.OpenAI(base_url=settings["OPENAI_BASE_URL"], api_key=settings["OPENAI_API_KEY"], max_retries=0)
    with pytest.raises(openai.InternalServerError):
        client.models.list()
    assert client.models.list().data
    process.send_signal(signal.SIGINT)
    rest, requests = process.communicate(timeout=10)
    assert rest == "" and requests.splitlines() == ["GET /v1/models status", "GET /v1/models 200"]
