"""The service: files, models, completions, and validation against the contract."""

import contextlib
import fnmatch
import hashlib
import json
import socket
import threading
import time
import traceback
from collections import Counter
from typing import Any

from stages.endpoint.contract import STREAM, Contract, Problem, load
from tests.support.openai_server.exchange import (
    BASE_MODELS,
    CREATED,
    DEPRECATIONS,
    DONE,
    OPERATIONS,
    ORGANIZATION,
    UNLISTED_STATUS,
    Answer,
    Fault,
    Json,
    Request,
    ServiceError,
)
from tests.support.openai_server.jobs import Jobs
from tests.support.openai_server.learning import Work, cut, page, plain, tokens, vocabulary
from tests.support.openai_server.profiles import OPENAI, Profile
from tests.support.openai_server.transport import Handler, HTTPServer, chunks, read_body, refusal


class OpenAIServer(Jobs):
    """The service on a local port, for use in a `with` statement."""

    def __init__(
        self,
        *,
        port: int = 0,
        steps_per_poll: int | None = None,
        result_encoding: str = "base64",
        retired: dict[str, str] | None = None,
        profile: Profile = OPENAI,
    ) -> None:
        # How it differs from OpenAI's service, and how often each file was asked for.
        self.profile = profile
        self.file_reads: Counter[str] = Counter()
        # Dates that model objects give, by name.
        self.shutdown_dates: dict[str, str] = {}
        self.steps_per_poll = steps_per_poll
        self.result_encoding = result_encoding
        self.retired = retired or {}
        self.job_outcome = "succeeded"
        self.permissions = {"create_jobs"}
        # How many more lists of jobs omit new ones, whether lists filter by metadata (as not every service does),
        # and whether completions report token usage.
        self.lists_that_lag = 0
        self.filters_metadata = True
        self.counts_tokens = True
        self.models = dict.fromkeys(BASE_MODELS, CREATED)
        self.key = "sk-test-" + hashlib.sha256(b"a key for tests").hexdigest()[:32]
        self.requests: list[tuple[str, str]] = []
        self.chats: list[Json] = []
        self.bodies: list[Json] = []
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
        """Close the port and all connections, even if requests are waiting."""
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
        """Make the next matching requests fail, before or after their work is done.

        The path excludes `/v1` and the query; `*` matches any text. `how` is one of reset, status (with
        `status`, `code`, `message`, `headers`), hang (with `seconds`), slow (with `seconds`), truncate and garbage.
        Slow and truncate modify a real response, so they do the work regardless of `when`.
        """
        if how not in ("reset", "status", "hang", "slow", "truncate", "garbage") or when not in ("before", "after"):
            raise ValueError(f"unknown fault: {how} {when}")
        with self._lock:
            self._faults.append(Fault(method, path_pattern, how, when, times, details))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault for this request, if any; counts as one of its times."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fnmatch.fnmatchcase(path, fault.path_pattern):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request: Request) -> Answer:
        """Handle a request, or return an error."""
        with self._lock:
            try:
                return self._work_on(request)
            except ServiceError as error:
                return refusal(error.status, str(error), error.param, error.code, self.profile.errors)
            except Exception:
                self.violations.append(f"{request.method} {request.path}: the server failed: {traceback.format_exc()}")
                return refusal(500, "The server had an error while processing your request.")

    def _work_on(self, request: Request) -> Answer:
        """Validate the request, call the operation, validate the response."""
        self._check_key(request)
        found = self._contract.find(request.method, request.path)
        if found is None:
            self._violate(request, Problem(None, "no such operation"))
            raise ServiceError(404, f"Invalid URL ({request.method} /v1{request.path})")
        name, values = found
        if name in self.profile.absent:
            raise ServiceError(404, "Not Found")
        self._read(name, request)
        result = getattr(self, OPERATIONS[name])(request, *values)
        if isinstance(result, bytes):
            self._check(request, name, "answer", result.decode("latin-1"))
            return Answer(200, result, "application/octet-stream")
        for part in result if isinstance(result, list) else [result]:
            self._check(request, name, "stream" if isinstance(result, list) else "answer", part)
        if isinstance(result, list):
            return Answer(200, "".join(f"data: {json.dumps(part)}\n\n" for part in result).encode() + DONE, STREAM)
        reads = self.file_reads[values[0]] if name == "retrieveFile" else 0
        if name == "retrieveFile":
            self.file_reads[values[0]] += 1
        return Answer(200, json.dumps(self.profile.bend(name, result, reads)).encode())

    def _check_key(self, request: Request) -> None:
        """Reject a request with a missing or wrong key."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != self.key:
            masked = f"Incorrect API key provided: {given[:8]}{'*' * 12}{given[-4:]}."
            message = masked if given else "You didn't provide an API key."
            raise ServiceError(401, message, code="invalid_api_key")

    def _violate(self, request: Request, problem: Problem) -> None:
        """Record a violation of the description."""
        self.violations.append(f"{request.method} {request.path}: {problem.param or 'body'}: {problem.message}")

    def _check(self, request: Request, name: str, shape: str, value: Any) -> None:
        """Record a response that violates the description, except for statuses that a test requested."""
        problem = self._contract.problem(f"operations/{name}/{shape}", value)
        if problem and not problem.message.startswith(f"'{UNLISTED_STATUS}'"):
            self._violate(request, problem)

    def _read(self, name: str, request: Request) -> None:
        """Parse query and body, and reject what the description does not allow."""
        request.query = self._contract.query(name, request.query_text)
        for extra in self.profile.query:
            request.query.pop(extra, None)
        problem = self._contract.problem(f"operations/{name}/query", request.query)
        try:
            read_body(request)
        except ValueError as error:
            problem = Problem(None, f"We could not parse the body of your request: {error}")
        if name == "createFineTuningJob" and isinstance(request.body, dict):
            self.bodies.append(json.loads(json.dumps(request.body)))
            self.profile.take(request)
        problem = problem or self._contract.problem(f"operations/{name}/body", request.body)
        if problem:
            self._violate(request, problem)
            message = f"Invalid value for {problem.param or 'the request'}: {problem.message}"
            raise ServiceError(400, message, problem.param)

    def _id(self, prefix: str, length: int = 24) -> str:
        """A new id; the sequence is deterministic."""
        self._ids += 1
        return prefix + hashlib.sha256(str(self._ids).encode()).hexdigest()[:length]

    # Models

    def _base(self, name: str) -> str:
        """The base of a known model; unknown ones are rejected as by the service."""
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
        date = {"shutdown_date": self.shutdown_dates[name]} if name in self.shutdown_dates else {}
        return {"id": name, "object": "model", "created": self.models.get(name, CREATED), "owned_by": owner, **date}

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
        """Store a file and return its description."""
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

    # Chat

    def teach(self, name: str, answers: dict[str, str]) -> None:
        """Serve a tuned model (ft:BASE:...) without a job: its answers by question."""
        self._tuned[name] = {vocabulary(question): answer for question, answer in answers.items()}

    def _chat(self, request: Request) -> Json | list[Json]:
        body = request.body
        self.chats.append(dict(body))
        body["model"] = self._deployed(body["model"])
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

    def _deployed(self, name: str) -> str:
        """The model behind a deployment, which is the only name for chat where there are any."""
        if not self.profile.deployments:
            return name
        if name not in self.profile.deployments:
            raise ServiceError(404, "The API deployment for this resource does not exist.", None, "DeploymentNotFound")
        if self.profile.deployments[name] == "base":
            return next(iter(self.models))
        return [job["fine_tuned_model"] for job in self.jobs.values() if job["fine_tuned_model"]][-1]

    def _reply(self, model: str, messages: list[Json]) -> str:
        """The model's answer: a fixed sentence, or the trained response to the most similar question."""
        if model not in self._tuned:
            return f"This is {model}, which has learned nothing from you."
        asked = [message for message in messages if message["role"] == "user"]
        question = vocabulary(plain(asked[-1]["content"])) if asked else frozenset()
        responses = self._tuned[model]
        if question in responses:
            return responses[question]
        return responses[max(responses, key=lambda words: len(words & question))] if responses else ""
