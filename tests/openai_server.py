"""A local stand-in for OpenAI's fine-tuning service that is as strict as the service is.

Requests and answers are held against OpenAI's published description (see `openai_contract`), and what departs
from it is noted in `violations`. It trains nothing: a job moves on with each look at it, its losses follow a curve,
and a "fine-tuned" model answers with the training response whose question is most like the one asked.
"""

import argparse
import base64
import contextlib
import fnmatch
import hashlib
import io
import json
import math
import re
import socket
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from tests.openai_contract import STREAM, Contract, Problem, load, nested

Json = dict[str, Any]

ORGANIZATION = "test-org"
BASE_MODELS = (
    "gpt-3.5-turbo-0125",
    "gpt-4o-mini-2024-07-18",
    "gpt-4o-2024-08-06",
    "gpt-4.1-nano-2025-04-14",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-2025-04-14",
)
CREATED = 1700000000
ENDED = ("succeeded", "failed", "cancelled")
UNLISTED_STATUS = "thinking"
LEAST_EXAMPLES = 10
KEPT_CHECKPOINTS = 3
VALIDATED_EACH = 10
TOKENS_PER_WORD = 1.3
ROLES = ("system", "user", "assistant", "tool", "function")
RECORD_KEYS = {"messages", "tools", "parallel_tool_calls"}
MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"}
WINDING_DOWN = (
    "OpenAI is winding down the fine-tuning platform and your organization is no longer able to create new "
    "fine-tuning training jobs."
)
DONE = b"data: [DONE]\n\n"
DEPRECATIONS = "https://platform.openai.com/docs/deprecations"
OPERATIONS = {
    "listModels": "_list_models",
    "retrieveModel": "_model",
    "createFile": "_create_file",
    "listFiles": "_list_files",
    "retrieveFile": "_file",
    "downloadFile": "_content",
    "deleteFile": "_delete_file",
    "createFineTuningJob": "_create_job",
    "listPaginatedFineTuningJobs": "_list_jobs",
    "retrieveFineTuningJob": "_job",
    "cancelFineTuningJob": "_cancel",
    "listFineTuningEvents": "_events",
    "listFineTuningJobCheckpoints": "_checkpoints",
    "createChatCompletion": "_chat",
}


class ServiceError(Exception):
    """An answer that refuses the request."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class FileError(Exception):
    """A file that cannot be trained on; the code is completed with the file's role in the job."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Request:
    """A request as received, and as understood."""

    method: str
    path: str
    query_text: str
    headers: Any
    raw: bytes
    query: Json = field(default_factory=dict)
    body: Any = None
    upload: tuple[str, bytes] | None = None


@dataclass
class Answer:
    """An answer before it is put on the wire."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """One failure to come, for the next requests that match."""

    method: str
    path_pattern: str
    how: str
    when: str
    times: int
    details: Json


@dataclass
class Work:
    """What a job holds beside its answer."""

    asked: Json
    suffix: str
    learned: dict[frozenset[str], str] = field(default_factory=dict)
    tokens: float = 0
    validated: bool = False
    steps: int = 0
    steps_per_epoch: int = 0
    rows: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    checkpoints: list[Json] = field(default_factory=list)


def tokens(text: str) -> int:
    """A plausible number of tokens for a text."""
    return math.ceil(len(text.split()) * TOKENS_PER_WORD)


def plain(content: Any) -> str:
    """The text of a message's content, which may be a list of parts or missing."""
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return content or ""


def check_message(message: Any, where: str) -> None:
    """Refuse a message that the service would not train on."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise FileError(f"{where}: role must be one of {', '.join(ROLES)}")
    if unknown := message.keys() - MESSAGE_KEYS:
        raise FileError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    calls = message["role"] == "assistant" and ("tool_calls" in message or "function_call" in message)
    content = message.get("content")
    parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if not (isinstance(content, str) or parts or (calls and content is None)):
        raise FileError(f"{where}: content must be text")
    if "weight" in message:
        weight = message["weight"]
        if message["role"] != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
            raise FileError(f"{where}: weight must be 0 or 1, and on assistant messages only")


def check_record(line: str, number: int) -> list[Json]:
    """The messages of one line of a training file, if it is a valid chat record."""
    where = f"Invalid file format. Line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise FileError(f"{where} is not valid JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise FileError(f"{where} has no list of messages")
    if unknown := record.keys() - RECORD_KEYS:
        raise FileError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    for index, message in enumerate(record["messages"]):
        check_message(message, f"{where}, message {index}")
    if all(message["role"] != "assistant" for message in record["messages"]):
        raise FileError(f"{where} has no assistant message")
    return record["messages"]


def check_file(content: bytes | None, least: int, name: str) -> list[list[Json]]:
    """The examples of a training file, if the service would train on it."""
    if content is None:
        raise FileError(f"{name} file does not exist")
    try:
        lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FileError("Invalid file format. The file is not UTF-8") from error
    examples = [check_record(line, number) for number, line in enumerate(lines, 1)]
    if len(examples) < least:
        message = f"{name} file has {len(examples)} example(s), but must have at least {least} examples"
        raise FileError(message, "invalid_n_examples")
    return examples


def resolve(asked: Json, examples: int) -> Json:
    """The hyperparameters with a value for each that was left to the service."""
    epochs = 3 if examples >= 34 else min(25, math.ceil(100 / examples))
    auto = {"n_epochs": epochs, "batch_size": max(1, examples // 500), "learning_rate_multiplier": 1.8}
    return {name: auto[name] if value == "auto" else value for name, value in asked.items()}


def metrics(step: int, total: int, epoch_ends: bool, validated: bool) -> Json:
    """The metrics of one step, on a falling curve; validation every few steps and in full after each epoch."""
    left = math.exp(-3 * step / total)
    row: Json = {"step": step, "train_loss": 0.3 + 1.7 * left, "train_mean_token_accuracy": 0.95 - 0.45 * left}
    if validated and (step % VALIDATED_EACH == 0 or epoch_ends):
        row |= {"valid_loss": 0.4 + 1.7 * left, "valid_mean_token_accuracy": 0.93 - 0.45 * left}
    if validated and epoch_ends:
        row |= {"full_valid_loss": 0.42 + 1.7 * left, "full_valid_mean_token_accuracy": 0.92 - 0.45 * left}
    return {name: value if name == "step" else round(value, 6) for name, value in row.items()}


def step_message(row: Json, total: int) -> str:
    """The service's sentence on one step."""
    names = {"train_loss": "training loss", "valid_loss": "validation loss"}
    names |= {"full_valid_loss": "full validation loss"}
    losses = ", ".join(f"{name}={row[key]:.2f}" for key, name in names.items() if key in row)
    return f"Step {row['step']}/{total}: {losses}"


def table(rows: list[Json]) -> str:
    """The result file: a line per step, with empty cells where nothing was validated."""
    names = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    lines += [",".join(str(row.get(name, "")) for name in names) for row in rows]
    return "\n".join(lines) + "\n"


def vocabulary(text: str) -> frozenset[str]:
    """The words of a text, for comparison."""
    return frozenset(re.findall(r"\w+", text.lower()))


def learned(examples: list[list[Json]]) -> dict[frozenset[str], str]:
    """Each trained response, by the words of the user message that it answers; the first of equal ones counts."""
    responses: dict[frozenset[str], str] = {}
    for messages in examples:
        question: frozenset[str] = frozenset()
        for message in messages:
            if message["role"] == "user":
                question = vocabulary(plain(message["content"]))
            elif message["role"] == "assistant" and message.get("content") and message.get("weight", 1):
                responses.setdefault(question, plain(message["content"]))
    return responses


def cut(text: str, limit: int | None) -> tuple[str, str]:
    """The text cut after the words that fit in so many tokens, and the reason for its end."""
    if limit is None or tokens(text) <= limit:
        return text, "stop"
    pieces = re.findall(r"\s*\S+", text)
    return "".join(pieces[: max(1, int(limit / TOKENS_PER_WORD))]), "length"


def page(items: list[Json], query: Json, default: int) -> Json:
    """The items after the one that the query names, as many as it asks for, as the service lists them."""
    limit, start = query.get("limit", default), 0
    if limit < 1:
        raise ServiceError(400, f"Invalid 'limit': {limit}.", "limit", "integer_below_min_value")
    if "after" in query:
        places = {item["id"]: place for place, item in enumerate(items, 1)}
        if query["after"] not in places:
            raise ServiceError(400, f"Invalid 'after': no such object: {query['after']}", "after")
        start = places[query["after"]]
    found = items[start : start + limit]
    ids = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": found, "has_more": start + limit < len(items), **ids}


class OpenAIServer:
    """The service on a local port, for use in a `with` statement."""

    def __init__(
        self,
        *,
        port: int = 0,
        steps_per_poll: int | None = None,
        result_encoding: str = "base64",
        retired: dict[str, str] | None = None,
    ) -> None:
        self.steps_per_poll = steps_per_poll
        self.result_encoding = result_encoding
        self.retired = retired or {}
        self.job_outcome = "succeeded"
        self.permissions = {"create_jobs"}
        # How many more lists of jobs lack what was created, whether they heed the metadata that is asked for (not every
        # compatible service does), and whether answers tell their tokens.
        self.lists_that_lag = 0
        self.filters_metadata = True
        self.counts_tokens = True
        self.models = dict.fromkeys(BASE_MODELS, CREATED)
        self.key = "sk-test-" + hashlib.sha256(b"a key for tests").hexdigest()[:32]
        self.requests: list[tuple[str, str]] = []
        self.chats: list[Json] = []
        self.violations: list[str] = []
        self.jobs: dict[str, Json] = {}
        self.files: dict[str, Json] = {}
        self.contents: dict[str, bytes] = {}
        self.verbose = False
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()
        self._contract: Contract = load(tuple(OPERATIONS))
        self._work: dict[str, Work] = {}
        self._tuned: dict[str, dict[frozenset[str], str]] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._ids = 0
        self._http = HTTPServer(("127.0.0.1", port), Handler)
        self._http.service = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "OpenAIServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every open connection, whatever is waiting on it."""
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def fail(
        self, method: str, path_pattern: str, how: str, when: str = "before", times: int = 1, **details: Any
    ) -> None:
        """Let the next requests that match fail: before the work is done, or after it on the way back.

        The path is without `/v1` and the query; `*` stands for any text. `how` is one of reset, status (with
        `status`, `code`, `message`, `headers`), hang (with `seconds`), slow (with `seconds`), truncate and garbage.
        Slow and truncate spoil a true answer, so they do the work whatever `when` says.
        """
        if how not in ("reset", "status", "hang", "slow", "truncate", "garbage") or when not in ("before", "after"):
            raise ValueError(f"unknown fault: {how} {when}")
        with self._lock:
            self._faults.append(Fault(method, path_pattern, how, when, times, details))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, which is then used up by one."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fnmatch.fnmatchcase(path, fault.path_pattern):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request: Request) -> Answer:
        """Do what a request asks, or refuse it."""
        with self._lock:
            try:
                return self._work_on(request)
            except ServiceError as error:
                return refusal(error.status, str(error), error.param, error.code)
            except Exception:
                self.violations.append(f"{request.method} {request.path}: the server failed: {traceback.format_exc()}")
                return refusal(500, "The server had an error while processing your request.")

    def _work_on(self, request: Request) -> Answer:
        """Check the request, call the operation, check its answer."""
        self._check_key(request)
        found = self._contract.find(request.method, request.path)
        if found is None:
            self._violate(request, Problem(None, "no such operation"))
            raise ServiceError(404, f"Invalid URL ({request.method} /v1{request.path})")
        name, values = found
        self._read(name, request)
        result = getattr(self, OPERATIONS[name])(request, *values)
        if isinstance(result, bytes):
            self._check(request, name, "answer", result.decode("latin-1"))
            return Answer(200, result, "application/octet-stream")
        for part in result if isinstance(result, list) else [result]:
            self._check(request, name, "stream" if isinstance(result, list) else "answer", part)
        if isinstance(result, list):
            return Answer(200, "".join(f"data: {json.dumps(part)}\n\n" for part in result).encode() + DONE, STREAM)
        return Answer(200, json.dumps(result).encode())

    def _check_key(self, request: Request) -> None:
        """Refuse a request without the right key."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != self.key:
            masked = f"Incorrect API key provided: {given[:8]}{'*' * 12}{given[-4:]}."
            message = masked if given else "You didn't provide an API key."
            raise ServiceError(401, message, code="invalid_api_key")

    def _violate(self, request: Request, problem: Problem) -> None:
        """Note a departure from the description."""
        self.violations.append(f"{request.method} {request.path}: {problem.param or 'body'}: {problem.message}")

    def _check(self, request: Request, name: str, shape: str, value: Any) -> None:
        """Note an answer that departs from the description, but for the status that a test asked for."""
        problem = self._contract.problem(f"operations/{name}/{shape}", value)
        if problem and not problem.message.startswith(f"'{UNLISTED_STATUS}'"):
            self._violate(request, problem)

    def _read(self, name: str, request: Request) -> None:
        """Read the query and the body, and refuse what the description does not allow."""
        request.query = self._contract.query(name, request.query_text)
        problem = self._contract.problem(f"operations/{name}/query", request.query)
        try:
            read_body(request)
        except ValueError as error:
            problem = Problem(None, f"We could not parse the body of your request: {error}")
        problem = problem or self._contract.problem(f"operations/{name}/body", request.body)
        if problem:
            self._violate(request, problem)
            message = f"Invalid value for {problem.param or 'the request'}: {problem.message}"
            raise ServiceError(400, message, problem.param)

    def _id(self, prefix: str, length: int = 24) -> str:
        """A new id; the same ones in the same order each time."""
        self._ids += 1
        return prefix + hashlib.sha256(str(self._ids).encode()).hexdigest()[:length]

    # Models

    def _base(self, name: str) -> str:
        """The base model under a known model; refuse unknown ones as the service does."""
        if name in self.retired:
            when = self.retired[name]
            message = f"The model `{name}` has been deprecated and was shut down on {when}, learn more: {DEPRECATIONS}"
            raise ServiceError(404, message, None, "model_not_found")
        if name not in self.models and name not in self._tuned:
            message = f"The model `{name}` does not exist or you do not have access to it."
            raise ServiceError(404, message, "model", "model_not_found")
        return name.split(":")[1] if name in self._tuned else name

    def _model(self, _: Request, name: str) -> Json:
        self._base(name)
        owner = "system" if name in self.models else ORGANIZATION
        return {"id": name, "object": "model", "created": self.models.get(name, CREATED), "owned_by": owner}

    def _list_models(self, request: Request) -> Json:
        names = [name for name in (*self.models, *self._tuned) if name not in self.retired]
        return {"object": "list", "data": [self._model(request, name) for name in names]}

    # Files

    def _create_file(self, request: Request) -> Json:
        if request.upload is None:
            raise ServiceError(400, "'file' is a required property", "file")
        name, content = request.upload
        if request.body["purpose"] == "fine-tune" and not name.endswith(".jsonl"):
            raise ServiceError(400, "Invalid file format for Fine-Tuning API. Must be .jsonl", "file")
        made = self._keep_file(name, content, request.body["purpose"])
        if "expires_after" in request.body:
            made["expires_at"] = made["created_at"] + request.body["expires_after"]["seconds"]
        return made

    def _keep_file(self, name: str, content: bytes, purpose: str) -> Json:
        """Store a file and describe it."""
        made = {"id": self._id("file-"), "object": "file", "bytes": len(content), "created_at": int(time.time())}
        made |= {"filename": name, "purpose": purpose, "status": "processed"}
        self.files[made["id"]], self.contents[made["id"]] = made, content
        return made

    def _file(self, _: Request, file_id: str) -> Json:
        if file_id not in self.files:
            raise ServiceError(404, f"No such File object: {file_id}", "id")
        return self.files[file_id]

    def _list_files(self, request: Request) -> Json:
        purpose = request.query.get("purpose")
        files = [file for file in self.files.values() if purpose in (None, file["purpose"])]
        if request.query.get("order", "desc") == "desc":
            files.reverse()
        return page(files, request.query, 10000)

    def _content(self, request: Request, file_id: str) -> bytes:
        self._file(request, file_id)
        return self.contents[file_id]

    def _delete_file(self, request: Request, file_id: str) -> Json:
        self._file(request, file_id)
        del self.files[file_id], self.contents[file_id]
        return {"id": file_id, "object": "file", "deleted": True}

    # Jobs

    def _create_job(self, request: Request) -> Json:
        body = request.body
        if "create_jobs" not in self.permissions:
            raise ServiceError(403, WINDING_DOWN, code="training_not_available")
        self._check_job(body)
        method = body.get("method") or {"type": "supervised"}
        asked = (method.get("supervised") or {}).get("hyperparameters") or body.get("hyperparameters") or {}
        asked = {name: asked.get(name, "auto") for name in ("n_epochs", "batch_size", "learning_rate_multiplier")}
        job = self._new_job(body, asked)
        self.jobs[job["id"]] = job
        self._work[job["id"]] = Work(asked, body.get("suffix") or "")
        self._event(job, f"Created fine-tuning job: {job['id']}")
        files = " and validation file: ".join(filter(None, (body["training_file"], body.get("validation_file"))))
        self._event(job, f"Validating training file: {files}")
        return job

    def _check_job(self, body: Json) -> None:
        """Refuse a job that names a model or a file the service cannot use, or a method this server cannot play."""
        model = body["model"]
        if model in self.retired or (model not in self.models and model not in self._tuned):
            message = f"Model {model} is not available for fine-tuning or does not exist."
            raise ServiceError(400, message, None, "model_not_available")
        for param in ("training_file", "validation_file"):
            file_id = body.get(param)
            if file_id is not None and self.files.get(file_id, {}).get("purpose") != "fine-tune":
                raise ServiceError(400, f"invalid {param}: {file_id}", param)
        if (body.get("method") or {}).get("type", "supervised") != "supervised":
            raise ServiceError(400, "This server fine-tunes by the supervised method only.", "method.type")

    def _new_job(self, body: Json, asked: Json) -> Json:
        """The answer that describes a new job."""
        job_id = self._id("ftjob-")
        seed = body.get("seed")
        return {
            "object": "fine_tuning.job",
            "id": job_id,
            "model": body["model"],
            "created_at": int(time.time()),
            "finished_at": None,
            "estimated_finish": None,
            "fine_tuned_model": None,
            "organization_id": ORGANIZATION,
            "result_files": [],
            "status": "validating_files",
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "hyperparameters": asked,
            "method": {"type": "supervised", "supervised": {"hyperparameters": asked}},
            "trained_tokens": None,
            "error": None,
            "user_provided_suffix": body.get("suffix"),
            "seed": int(job_id[-7:], 16) if seed is None else seed,
            "integrations": body.get("integrations") or [],
            "metadata": body.get("metadata"),
        }

    def _event(self, job: Json, message: str, level: str = "info", data: Json | None = None) -> None:
        """Add to the job's history."""
        event = {"object": "fine_tuning.job.event", "id": self._id("ftevent-"), "created_at": int(time.time())}
        event |= {"level": level, "message": message, "type": "metrics" if data else "message", "data": data or {}}
        self._work[job["id"]].events.append(event)

    def _found(self, job_id: str) -> Json:
        """A known job."""
        if job_id not in self.jobs:
            raise ServiceError(404, f"Could not find fine tune: {job_id}", "fine_tune_id", "fine_tune_not_found")
        return self.jobs[job_id]

    def _job(self, _: Request, job_id: str) -> Json:
        job = self._found(job_id)
        if job["status"] == "validating_files":
            self._validate(job)
        elif job["status"] == "queued":
            job["status"] = UNLISTED_STATUS if self.job_outcome == "unknown" else "running"
            job["estimated_finish"] = int(time.time()) + 600
            self._event(job, "Fine-tuning job started")
        elif job["status"] == "running":
            self._train(job)
        return job

    def _validate(self, job: Json) -> None:
        """Read the job's files and settle its hyperparameters, or let it fail."""
        work = self._work[job["id"]]
        param = "training_file"
        try:
            examples = check_file(self.contents.get(job[param]), LEAST_EXAMPLES, "Training")
            param = "validation_file"
            if job[param]:
                work.validated = bool(check_file(self.contents.get(job[param]), 1, "Validation"))
        except FileError as error:
            self._end_failed(job, error.code or f"invalid_{param}", str(error), param)
            return
        settled = resolve(work.asked, len(examples))
        text = " ".join(plain(message.get("content")) for messages in examples for message in messages)
        work.learned, work.tokens = learned(examples), len(text.split()) * TOKENS_PER_WORD
        work.steps_per_epoch = math.ceil(len(examples) / settled["batch_size"])
        work.steps = work.steps_per_epoch * settled["n_epochs"]
        job |= {"hyperparameters": settled, "status": "queued"}
        job["method"] = {"type": "supervised", "supervised": {"hyperparameters": settled}}
        self._event(job, "Files validated, moving job to queued state")

    def _end_failed(self, job: Json, code: str, message: str, param: str | None) -> None:
        """End a job as failed; as in the service, only a job that succeeds gets a time of finishing."""
        job |= {"status": "failed", "error": {"code": code, "message": message, "param": param}}
        job["estimated_finish"] = None
        self._event(job, message, "error")

    def _train(self, job: Json) -> None:
        """Train some steps, then end the job if it is done or was told to end otherwise."""
        work = self._work[job["id"]]
        if self.job_outcome == "unknown":
            job["status"] = UNLISTED_STATUS
            return
        done = len(work.rows)
        until = min(work.steps, done + (self.steps_per_poll or math.ceil(work.steps / 3)))
        for step in range(done + 1, until + 1):
            self._step(job, work, step)
        if self.job_outcome == "failed":
            self._end_failed(job, "server_error", "The job failed due to an internal error.", None)
        elif self.job_outcome == "cancelled":
            self._end_cancelled(job)
        elif until == work.steps:
            self._succeed(job, work)

    def _step(self, job: Json, work: Work, step: int) -> None:
        """Note one training step, and a checkpoint where an epoch ends."""
        epoch_ends = step % work.steps_per_epoch == 0
        row = metrics(step, work.steps, epoch_ends, work.validated)
        work.rows.append(row)
        self._event(job, step_message(row, work.steps), data=row | {"total_steps": work.steps})
        if epoch_ends:
            self._save_checkpoint(job, work, row)

    def _save_checkpoint(self, job: Json, work: Work, row: Json) -> None:
        """Keep a checkpoint; the last one is told of as the new model."""
        step = row["step"]
        name = f"{self._name(job, work)}:ckpt-step-{step}"
        checkpoint = {"object": "fine_tuning.job.checkpoint", "id": self._id("ftckpt_"), "created_at": int(time.time())}
        checkpoint |= {"fine_tuned_model_checkpoint": name, "fine_tuning_job_id": job["id"], "step_number": step}
        work.checkpoints.append(checkpoint | {"metrics": row})
        self._tuned[name] = work.learned
        for dropped in work.checkpoints[:-KEPT_CHECKPOINTS]:
            del self._tuned[dropped["fine_tuned_model_checkpoint"]]
        del work.checkpoints[:-KEPT_CHECKPOINTS]
        if step < work.steps:
            self._event(job, f"Checkpoint created at step {step}")

    def _name(self, job: Json, work: Work) -> str:
        """A new name for a model that this job made."""
        return f"ft:{self._base(job['model'])}:{ORGANIZATION}:{work.suffix}:{self._id('', 8)}"

    def _succeed(self, job: Json, work: Work) -> None:
        """Give the job its model and its result file."""
        name = self._name(job, work)
        self._tuned[name] = work.learned
        text = table(work.rows).encode()
        content = base64.b64encode(text) if self.result_encoding == "base64" else text
        result = self._keep_file("step_metrics.csv", content, "fine-tune-results")
        trained = round(work.tokens * job["hyperparameters"]["n_epochs"])
        job |= {"status": "succeeded", "fine_tuned_model": name, "result_files": [result["id"]]}
        job |= {"trained_tokens": trained, "finished_at": int(time.time()), "estimated_finish": None}
        self._event(job, "New fine-tuned model created")
        self._event(job, "The job has successfully completed")

    def _list_jobs(self, request: Request) -> Json:
        jobs = [] if self.lists_that_lag > 0 else list(reversed(self.jobs.values()))
        self.lists_that_lag -= 1
        if "metadata" in request.query and self.filters_metadata:
            wanted = request.query["metadata"]
            if wanted is None:
                jobs = [job for job in jobs if job["metadata"] is None]
            else:
                jobs = [job for job in jobs if wanted.items() <= (job["metadata"] or {}).items()]
        return page(jobs, request.query, 20)

    def _cancel(self, _: Request, job_id: str) -> Json:
        job = self._found(job_id)
        if job["status"] in ENDED:
            raise ServiceError(400, f"Job has already completed: {job_id}")
        self._end_cancelled(job)
        return job

    def _end_cancelled(self, job: Json) -> None:
        job |= {"status": "cancelled", "estimated_finish": None}
        self._event(job, "The job was cancelled")

    def _events(self, request: Request, job_id: str) -> Json:
        self._found(job_id)
        return page(self._work[job_id].events[::-1], request.query, 20)

    def _checkpoints(self, request: Request, job_id: str) -> Json:
        self._found(job_id)
        return page(self._work[job_id].checkpoints[::-1], request.query, 10)

    # Chat

    def teach(self, name: str, answers: dict[str, str]) -> None:
        """Serve a tuned model (ft:BASE:...) without a job: its answers by question."""
        self._tuned[name] = {vocabulary(question): answer for question, answer in answers.items()}

    def _chat(self, request: Request) -> Json | list[Json]:
        body = request.body
        self.chats.append(body)
        self._base(body["model"])
        text = self._reply(body["model"], body["messages"])
        text, reason = cut(text, body.get("max_completion_tokens") or body.get("max_tokens"))
        head = {"id": self._id("chatcmpl-"), "created": int(time.time()), "model": body["model"]}
        prompt = sum(3 + tokens(plain(message.get("content"))) for message in body["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens(text), "total_tokens": prompt + tokens(text)}
        if body.get("stream"):
            counted = (body.get("stream_options") or {}).get("include_usage")
            return chunks(head | {"object": "chat.completion.chunk"}, text, reason, usage if counted else None)
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        counted = {"usage": usage} if self.counts_tokens else {}
        return head | {"object": "chat.completion", "choices": [choice], **counted}

    def _reply(self, model: str, messages: list[Json]) -> str:
        """What the model says: a sentence of its own, or the learned response to the most similar question."""
        if model not in self._tuned:
            return f"This is {model}, which has learned nothing from you."
        asked = [message for message in messages if message["role"] == "user"]
        question = vocabulary(plain(asked[-1]["content"])) if asked else frozenset()
        responses = self._tuned[model]
        if question in responses:
            return responses[question]
        return responses[max(responses, key=lambda words: len(words & question))] if responses else ""


def chunks(head: Json, text: str, reason: str, usage: Json | None) -> list[Json]:
    """A completion in the pieces of a stream."""
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in re.findall(r"\s*\S+", text)] + [{}]
    ends = [None] * (len(deltas) - 1) + [reason]
    choices = [{"index": 0, "delta": delta, "finish_reason": end} for delta, end in zip(deltas, ends, strict=True)]
    last = [{"choices": [], "usage": usage}] if usage else []
    return [head | part for part in [{"choices": [choice]} for choice in choices] + last]


def read_body(request: Request) -> None:
    """Read a JSON or multipart body; an empty one is none."""
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    if not request.raw:
        return
    if kind == "application/json":
        request.body = json.loads(request.raw)
    elif kind == "multipart/form-data":
        parser = FormDataParser(silent=False)
        _, form, files = parser.parse(io.BytesIO(request.raw), kind, len(request.raw), options)
        pairs = [(name, int(value) if value.isdigit() else value) for name, value in form.items(multi=True)]
        request.body = nested(pairs) | {name: "" for name in files}
        if "file" in files:
            request.upload = (files["file"].filename, files["file"].read())
    else:
        raise ValueError(f"unexpected content type {kind!r}")


def refusal(status: int, message: str, param: str | None = None, code: str | None = None) -> Answer:
    """An error as the service words it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = code if code == "insufficient_quota" else "requests"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status, json.dumps({"error": error}).encode())


def spoiled(fault: Fault) -> Answer:
    """The answer of a fault that does not need the true one."""
    if fault.how == "garbage":
        return Answer(200, b"<html><body>Just a moment...</body></html>", "text/html")
    details = fault.details
    message = details.get("message", "A failure for a test.")
    answer = refusal(details.get("status", 500), message, None, details.get("code"))
    answer.headers = {name: str(value) for name, value in details.get("headers", {}).items()}
    return answer


class HTTPServer(ThreadingHTTPServer):
    """The socket's side, which stays quiet when a client goes away."""

    service: OpenAIServer
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: HTTPServer

    def setup(self) -> None:
        super().setup()
        self.server.service.connections.add(self.connection)

    def finish(self) -> None:
        self.server.service.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Say nothing: `serve` prints a line of its own where one is wanted."""

    def serve(self) -> None:
        """Answer one request, or fail as told."""
        service = self.server.service
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = url.path.removeprefix("/v1") if url.path.startswith("/v1/") else f"/..{url.path}"
        service.requests.append((self.command, path))
        fault = service.fault(self.command, path)
        how = fault.how if fault else None
        answer = Answer(200, b"")
        if fault is None or fault.when == "after" or how in ("slow", "truncate"):
            answer = service.answer(Request(self.command, path, url.query, self.headers, raw))
        if fault and how in ("status", "garbage"):
            answer = spoiled(fault)
        if service.verbose:
            print(self.command, self.path, how or answer.status, file=sys.stderr, flush=True)
        self._send(answer, how, fault.details if fault else {})

    do_GET = do_POST = do_DELETE = serve  # noqa: N815

    def _send(self, answer: Answer, how: str | None, details: Json) -> None:
        """Put the answer on the wire, or what the fault leaves of it."""
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}", f"Content-Type: {answer.content_type}"]
        lines += [f"Content-Length: {len(answer.body)}", "x-request-id: req_test"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        head = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
        if how == "reset":
            self._reset()
        elif how == "hang":
            self.server.service.stopped.wait(details.get("seconds", 30))
        elif how == "slow":
            self._send_slowly(head, answer.body, details.get("seconds", 1))
        elif how == "truncate":
            self.wfile.write(head + answer.body[: len(answer.body) // 2])
        else:
            self.wfile.write(head + answer.body)
        self.close_connection = self.close_connection or how in ("reset", "hang", "truncate")

    def _reset(self) -> None:
        """Drop the connection with a reset, which needs a close without the usual farewell."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def _send_slowly(self, head: bytes, body: bytes, seconds: float) -> None:
        """Send the body byte by byte over so many seconds, unless the server is stopped."""
        self.wfile.write(head)
        for place in range(len(body)):
            self.server.service.stopped.wait(seconds / len(body))
            self.wfile.write(body[place : place + 1])


def main() -> None:
    """Serve for a shell: say how to reach the server, then answer until interrupted."""
    parser = argparse.ArgumentParser(description="A local stand-in for OpenAI's fine-tuning service.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail", action="append", default=[], metavar='"METHOD PATH before|after HOW"')
    parser.add_argument("--outcome", default="succeeded", choices=("succeeded", "failed", "cancelled", "unknown"))
    args = parser.parse_args()
    server = OpenAIServer(port=args.port)
    server.verbose, server.job_outcome = True, args.outcome
    for text in args.fail:
        method, path, when, how = text.split()
        server.fail(method, path, how, when)
    with server:
        print(f"export OPENAI_BASE_URL={server.url}\nexport OPENAI_API_KEY={server.key}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
