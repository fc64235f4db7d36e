"""The command as users start it, and the training process that it starts."""

import os
import signal
import subprocess
import sys
import time

import openai
import psutil
import pytest

from tests.conftest import ROOT, accept_ctrl_c
from tests.support.endpoint import ended, upload

pytestmark = pytest.mark.slow


@pytest.fixture
def start(endpoint_of, project):
    """start() runs the command until it has said how to reach it; returns its process and a client."""
    begun = []

    def run():
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.commands.serve", "--port", "0"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, preexec_fn=accept_ctrl_c,
        )  # fmt: skip
        begun.append(process)
        for line in process.stdout:
            if line.startswith("export OPENAI_BASE_URL="):
                break
        key = (project / ".state/endpoint/key").read_text().strip()
        return process, openai.OpenAI(base_url=line.strip().partition("=")[2], api_key=key, max_retries=0)

    yield run
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def trainings(process):
    """The processes that train for an endpoint, once there are any."""
    while not (found := psutil.Process(process.pid).children(recursive=True)):
        time.sleep(0.01)
    return found


def gone(processes, seconds):
    return psutil.wait_procs(processes, timeout=seconds)[1] == []


def test_a_training_ends_with_its_job_and_with_its_endpoint_however_that_ends(start):
    process, client = start()
    file = upload(client)
    first = client.fine_tuning.jobs.create(model="tiny", training_file=file).id
    running = trainings(process)
    begin = time.monotonic()
    assert client.fine_tuning.jobs.cancel(first).status == "cancelled"
    assert gone(running, 1) and time.monotonic() - begin < 1
    second = client.fine_tuning.jobs.create(model="tiny", training_file=file).id
    running = trainings(process)
    process.kill()
    assert gone(running, 30)
    process, client = start()
    running = trainings(process)
    assert client.fine_tuning.jobs.retrieve(second).status == "running"
    process.send_signal(signal.SIGINT)
    assert gone(running, 30) and process.wait(30) == 130
    process, client = start()
    job = ended(client, second)
    assert job.status == "succeeded" and job.trained_tokens
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "Room 3?"}], max_tokens=3
    )
    assert answer.usage.completion_tokens == 3
