"""The endpoint in this process, with answers checked by OpenAI's description, and trainings that a test controls."""

import contextlib
import json
import threading
from pathlib import Path

import openai
import uvicorn

from stages.core.paths import TUNED
from stages.endpoint import contract, server
from stages.endpoint.app import OPERATIONS
from stages.endpoint.jobs import RESULT
from stages.endpoint.store import Store

# The description lists no status for a job that its own operation paused.
UNLISTED = "'paused' is not one of"


class Strict:
    """Passes requests on, and records each answer that the description does not allow."""

    def __init__(self, application):
        self.application, self.violations = application, []
        self._contract = contract.load(OPERATIONS)

    async def __call__(self, scope, receive, send):
        start, parts = {}, []

        async def record(message):
            start.update(message if message["type"] == "http.response.start" else {})
            parts.append(message.get("body", b""))
            await send(message)

        await self.application(scope, receive, record)
        if scope["type"] == "http" and start:
            self._check(scope, start, b"".join(parts))

    def _check(self, scope, start, body):
        found = self._contract.find(scope["method"], scope["raw_path"].decode().removeprefix("/v1"))
        kind = dict(start["headers"])[b"content-type"].decode()
        where = f"{scope['method']} {scope['path']}"
        if start["status"] >= 400:
            self._note(where, "components/schemas/ErrorResponse", json.loads(body))
        elif kind.startswith(contract.STREAM):
            for line in filter(None, body.decode().removesuffix("data: [DONE]\n\n").split("\n\n")):
                self._note(where, f"operations/{found[0]}/stream", json.loads(line.removeprefix("data: ")))
        elif kind == "application/json":
            self._note(where, f"operations/{found[0]}/answer", json.loads(body))

    def _note(self, where, pointer, value):
        problem = self._contract.problem(pointer, value)
        if problem and not problem.message.startswith(UNLISTED):
            self.violations.append(f"{where}: {problem.param}: {problem.message}")


class Scripted:
    """A training whose rows and end a test decides, in place of the process."""

    def __init__(self, folder, rows, model, held):
        self.folder, self._rows, self._model, self._held = folder, rows, model, held
        self.killed = threading.Event()
        self.error = None

    def lines(self):
        for row in self._rows:
            if self.killed.is_set():
                return
            yield json.dumps({"row": row})
        while self._held.is_set() and not self.killed.wait(0.01):
            pass
        if self.killed.is_set():
            return
        if self.error:
            yield json.dumps({"error": self.error})
            return
        self._model(self.folder / TUNED)
        (self.folder / RESULT).write_text(json.dumps({"metrics": {"steps": 2, "best_epoch": 1}, "run": {}}))

    def kill(self):
        self.killed.set()

    def wait(self):
        return -9 if self.killed.is_set() else 0


ROWS = [
    {"step": 0, "epoch": 0.0, "validation_loss": 3.0},
    {"step": 1, "epoch": 0.5, "train_loss": 2.5, "lr": 0.001},
    {"step": 2, "epoch": 1.0, "train_loss": 2.25, "lr": 0.0005},
    {"step": 2, "epoch": 1.0, "validation_loss": 2.125},
]


class Endpoint:
    """A running endpoint: `started` are its trainings, and `held` keeps them from ending."""

    def __init__(self, model=lambda folder: folder.mkdir(parents=True), rows=ROWS, **options):
        self.options = server.Options(port=0, **options)
        self.model, self.rows = model, rows
        self.started, self.held = [], threading.Event()

    def _launch(self, folder, environment):
        self.started.append(Scripted(folder, self.rows, self.model, self.held))
        return self.started[-1]

    @contextlib.contextmanager
    def running(self):
        self.folder = Path.cwd()
        with server.assembled(self.options, self._launch) as (guarded, listening):
            self.strict = Strict(guarded)
            config = uvicorn.Config(self.strict, log_level="error", access_log=False, ws="none")
            serving = uvicorn.Server(config)
            thread = threading.Thread(target=serving.run, args=([listening],))
            thread.start()
            self.root = f"http://127.0.0.1:{listening.getsockname()[1]}"
            self.key = (self.folder / ".state/endpoint/key").read_text().strip()
            try:
                yield self
            finally:
                serving.should_exit = True
                thread.join()
        assert self.strict.violations == []

    @property
    def url(self):
        return f"{self.root}/v1"

    def store_plan(self, job_id):
        """What decides a job's training, from the database."""
        with contextlib.closing(Store(self.folder / ".state/endpoint")) as store:
            return store.plan(job_id)

    def client(self, **given):
        return openai.OpenAI(**{"base_url": self.url, "api_key": self.key, "max_retries": 0, **given})


def talk(number):
    question, answer = f"Where is room {number}?", f"Room {number} is on floor {number // 10}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def jsonl(records):
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def upload(client, records=None, name="talks.jsonl"):
    """Upload records, or twelve short talks; return the file's id."""
    content = jsonl([talk(n) for n in range(12)] if records is None else records)
    return client.files.create(file=(name, content), purpose="fine-tune").id


def ended(client, job_id, statuses=("succeeded", "failed", "cancelled")):
    """The job once it has one of these statuses."""
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in statuses:
        threading.Event().wait(0.01)
    return job
