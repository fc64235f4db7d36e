"""The endpoint killed at any moment, with real trainings of a tiny model."""

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pandas as pd
import psutil
import pytest

from stages.core.paths import SIGNALS, SPLITS, TUNED
from stages.endpoint.catalog import own_name
from tests.conftest import ROOT, set_params, use_base
from tests.support.endpoint import ended, jsonl, talk
from tests.support.endpoint_lab import ask

KILLS, SEED, EPOCHS = 10, 20261125, 20
# Every second kill comes at most so many seconds after a start, the others after a step of a training.
LONGEST, LONGEST_IN_TRAINING = 2.0, 0.5
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The socket of a process that starts endpoints."""
    path = str(tmp_path_factory.mktemp("lab") / "socket")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LAB": path}
    environment.pop("DVC_ROOT", None)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.endpoint_lab", path],
        env=environment, cwd=Path(path).parent, text=True, stdout=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line == "ready\n":
                break
        yield path
        os.killpg(process.pid, signal.SIGKILL)


class Runs:
    """Endpoints in one folder, one after the other."""

    def __init__(self, lab, folder):
        self.lab, self.folder = lab, folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self):
        environment = {"DVC_ROOT": str(self.folder)}
        self.connection, self.pid = ask(self.lab, folder=str(self.folder), port=self.port, environment=environment)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.connection.close()

    def client(self):
        """A client, once the endpoint answers."""
        while True:
            try:
                key = (self.folder / ".state/endpoint/key").read_text().strip()
                client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)
                client.models.list()
                return client
            except (OSError, openai.APIConnectionError):
                assert psutil.pid_exists(self.pid)
                time.sleep(0.02)


def in_training(client, jobs):
    """Wait until a job has done a step since its last start, or all have ended."""
    while True:
        found = [client.fine_tuning.jobs.retrieve(job) for job in jobs]
        running = [job.id for job in found if job.status == "running"]
        if not running and all(job.finished_at for job in found):
            return
        for job in running:
            # The newest event comes first.
            (newest, *_) = client.fine_tuning.jobs.list_events(job, limit=1).data
            if "learning rate=" in newest.message:
                return
        time.sleep(0.02)


def three_jobs(client, model="tiny", epochs=4):
    def upload(numbers):
        content = jsonl([talk(n) for n in numbers])
        return client.files.create(file=("talks.jsonl", content), purpose="fine-tune").id

    train, validation = upload(range(40)), upload(range(40, 46))
    asked = {"model": model, "training_file": train, "validation_file": validation}
    # Five steps an epoch, with a checkpoint after every second.
    numbers = {"n_epochs": epochs, "batch_size": 8}
    return [client.fine_tuning.jobs.create(seed=seed, hyperparameters=numbers, **asked).id for seed in (1, 2, 3)]


def weights(folder, job):
    return digests(folder / ".state/endpoint/jobs" / job / TUNED)


def digests(tuned):
    return {
        name: hashlib.sha256((tuned / name).read_bytes()).hexdigest()
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }


def test_a_job_gives_the_bytes_of_the_finetune_stage_with_the_same_parameters(lab, project, small_base):
    SPLITS["train"].parent.mkdir(parents=True)
    for split, numbers in (("train", range(40)), ("validation", range(40, 46)), ("test", range(46, 48))):
        SPLITS[split].write_bytes(jsonl([talk(n) for n in numbers]))
    pd.DataFrame({"row": [1], "n_tokens": [50.0]}).to_parquet(SIGNALS)
    use_base(small_base)
    set_params(seed=1, epochs=4, batch_size=8)
    connection, _ = ask(lab, folder=str(project), stage="stages.finetune")
    while connection.recv(100):
        pass
    endpoint = Runs(lab, project)
    endpoint.start()
    client = endpoint.client()
    first, *others = three_jobs(client, own_name(str(small_base)))
    for job in others:
        client.fine_tuning.jobs.cancel(job)
    assert ended(client, first).status == "succeeded"
    endpoint.kill()
    assert weights(project, first) == digests(project / TUNED)


def test_ten_kills_of_three_queued_jobs_leave_three_models_each_trained_once_to_the_same_bytes(
    lab, project, small_base, tmp_path_factory, capsys
):
    tiny = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(small_base, tiny)
    set_params(unsloth__model=str(tiny), unsloth__revision=None, checkpoint__every=2)
    quiet = tmp_path_factory.mktemp("quiet")
    shutil.copy("params.yaml", quiet)
    undisturbed = Runs(lab, quiet)
    undisturbed.start()
    client = undisturbed.client()
    begin = time.monotonic()
    expected = [
        weights(quiet, job) for job in three_jobs(client, epochs=EPOCHS) if ended(client, job).status == "succeeded"
    ]
    undisturbed.kill()
    seconds = time.monotonic() - begin
    assert len({str(one) for one in expected}) == 3

    disturbed, chance = Runs(lab, project), random.Random(SEED)
    disturbed.start()
    jobs = three_jobs(disturbed.client(), epochs=EPOCHS)
    waits = [chance.uniform(0, LONGEST_IN_TRAINING if number % 2 else LONGEST) for number in range(KILLS)]
    for number, wait in enumerate(waits):
        if number % 2:
            in_training(disturbed.client(), jobs)
        time.sleep(wait)
        disturbed.kill()
        disturbed.start()
    client = disturbed.client()
    found = [ended(client, job) for job in jobs]
    assert [job.status for job in found] == ["succeeded"] * 3
    assert [weights(project, job) for job in jobs] == expected
    models = [model.id for model in client.models.list() if model.id.startswith("ft:")]
    assert models == [job.fine_tuned_model for job in found]
    results = client.files.list(purpose="fine-tune-results").data
    assert sorted(file.id for file in results) == sorted(job.result_files[0] for job in found)
    restarts = 0
    for job in jobs:
        events = list(client.fine_tuning.jobs.list_events(job, limit=100))
        steps = [event.data["step"] for event in events if "learning rate=" in event.message]
        assert sorted(steps) == list(range(1, 5 * EPOCHS + 1))
        assert sum("New fine-tuned model" in event.message for event in events) == 1
        restarts += sum("restarted" in event.message for event in events)
    # No training outlived its endpoint, and the queue's order was kept.
    assert [job.finished_at for job in found] == sorted(job.finished_at for job in found)
    disturbed.kill()
    with capsys.disabled():
        print(
            f"\nundisturbed {seconds:.0f} s; killed after {', '.join(f'{w:.1f}' for w in waits)} s; {restarts} resumed"
        )
    assert restarts > 2
