"""The routes of the API. Requests are checked by OpenAI's published description before anything is done."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from stages.core.cli import notice
from stages.endpoint import contract
from stages.endpoint.access import MAX_JSON
from stages.endpoint.catalog import BaseModel
from stages.endpoint.chat import Chat
from stages.endpoint.exchange import Served
from stages.endpoint.jobs import ORGANIZATION, Jobs, refuse_full
from stages.endpoint.refusals import RefusedError
from stages.endpoint.store import Json, Store, new_id
from stages.endpoint.workers import Workers, remove

OPERATIONS = (
    "createFile", "listFiles", "retrieveFile", "downloadFile", "deleteFile", "createFineTuningJob",
    "listPaginatedFineTuningJobs", "retrieveFineTuningJob", "cancelFineTuningJob", "pauseFineTuningJob",
    "resumeFineTuningJob", "listFineTuningEvents", "listFineTuningJobCheckpoints", "listModels", "retrieveModel",
    "deleteModel", "createChatCompletion",
)  # fmt: skip
_DEEPEST = 64
_LONGEST_NAME = 255
_COPIED = 1 << 20


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    store: Store
    jobs: Jobs
    workers: Workers
    chat: Chat
    started: int
    max_upload: int


def application(service: Service) -> FastAPI:
    """The API under /v1, in the form of OpenAI's errors for everything else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _broken)
    for method, path, route in _routes(service):
        app.add_api_route(f"/v1{path}", route, methods=[method], response_model=None)
    return app


def _routes(service: Service) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    described = contract.load(OPERATIONS)
    files, jobs, models = Files(service, described), FineTuning(service, described), Models(service, described)
    yield "POST", "/files", files.create
    yield "GET", "/files", files.list
    yield "GET", "/files/{file_id}", files.retrieve
    yield "GET", "/files/{file_id}/content", files.content
    yield "DELETE", "/files/{file_id}", files.delete
    yield "POST", "/fine_tuning/jobs", jobs.create
    yield "GET", "/fine_tuning/jobs", jobs.list
    yield "GET", "/fine_tuning/jobs/{job_id}", jobs.retrieve
    yield "POST", "/fine_tuning/jobs/{job_id}/cancel", jobs.cancel
    yield "POST", "/fine_tuning/jobs/{job_id}/pause", jobs.pause
    yield "POST", "/fine_tuning/jobs/{job_id}/resume", jobs.resume
    yield "GET", "/fine_tuning/jobs/{job_id}/events", jobs.events
    yield "GET", "/fine_tuning/jobs/{job_id}/checkpoints", jobs.checkpoints
    yield "GET", "/models", models.list
    # Names of the Hub have a slash.
    yield "GET", "/models/{name:path}", models.retrieve
    yield "DELETE", "/models/{name:path}", models.delete
    yield "POST", "/chat/completions", models.chat


@dataclass(frozen=True)
class _Routes:
    service: Service
    described: contract.Contract

    def query(self, request: Request, operation: str) -> Json:
        """The query, checked.

        Raises:
            RefusedError: the description does not allow it.
        """
        query = self.described.query(operation, request.url.query)
        self.check(f"operations/{operation}/query", query)
        if query.get("limit", 1) < 1:
            raise RefusedError(400, f"Invalid 'limit': {query['limit']}.", "limit", "integer_below_min_value")
        return query

    async def body(self, request: Request, operation: str) -> Json:
        """The JSON body, checked.

        Raises:
            RefusedError: it is not JSON, or not what the description allows.
        """
        body = _decoded(await request.body())
        self.check(f"operations/{operation}/body", body)
        return dict(body)

    def check(self, pointer: str, value: Any) -> None:
        """Compare a value with the description.

        Raises:
            RefusedError: the description does not allow it.
        """
        if problem := self.described.problem(pointer, value):
            message = f"Invalid value for {problem.param or 'the request'}: {problem.message}"
            raise RefusedError(400, message, problem.param)


class Files(_Routes):
    """/files"""

    async def create(self, request: Request) -> Json:
        """Keep a file."""
        with _readable_form():
            async with request.form(max_files=1, max_fields=8, max_part_size=_COPIED) as form:
                fields = contract.nested(
                    [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
                )
                upload = form.get("file")
                if not isinstance(upload, UploadFile):
                    raise RefusedError(400, "'file' is a required property", "file")
                return await self._keep(upload, fields)

    async def _keep(self, upload: UploadFile, fields: Json) -> Json:
        expires = fields.get("expires_after")
        if isinstance(expires, dict) and str(expires.get("seconds", "")).isdecimal():
            expires["seconds"] = int(expires["seconds"][:12])
        self.check("operations/createFile/body", fields | {"file": ""})
        name, store = upload.filename or "", self.service.store
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise RefusedError(
                400, f"The file's name must be printable, with at most {_LONGEST_NAME} characters.", "file"
            )
        if fields["purpose"] != "fine-tune":
            raise RefusedError(400, "Files are kept for fine-tuning only here; purpose must be fine-tune.", "purpose")
        if not name.endswith(".jsonl"):
            raise RefusedError(400, "Invalid file format for Fine-Tuning API. Must be .jsonl", "file")
        if (upload.size or 0) > self.service.max_upload:
            raise RefusedError(
                413, f"The file exceeds the {self.service.max_upload:,} bytes that are accepted here.", "file"
            )
        refuse_full(store, self.service.jobs.max_bytes, upload.size or 0)
        part = store.contents / new_id("part-")
        try:
            with part.open("wb") as out:
                while piece := await upload.read(_COPIED):
                    out.write(piece)
            return store.add_file(part, name, fields["purpose"], expires["seconds"] if expires else None)
        finally:
            part.unlink(missing_ok=True)

    async def list(self, request: Request) -> Json:
        """A page of files."""
        query = self.query(request, "listFiles")
        newest_first = query.get("order", "desc") == "desc"
        limit = min(query.get("limit", 10_000), 10_000)
        return _page(*self.service.store.list_files(query.get("purpose"), query.get("after"), limit, newest_first))

    async def retrieve(self, file_id: str) -> Json:
        """Describe a file."""
        return self.service.store.file(file_id)

    async def content(self, file_id: str) -> FileResponse:
        """A file's content."""
        found = self.service.store.file(file_id)
        return FileResponse(self.service.store.content(found["id"]), media_type="application/octet-stream")

    async def delete(self, file_id: str) -> Json:
        """Delete a file."""
        self.service.store.delete_file(file_id)
        return {"id": file_id, "object": "file", "deleted": True}


class FineTuning(_Routes):
    """/fine_tuning/jobs"""

    async def create(self, request: Request) -> Json:
        """Add a job to the queue."""
        job = self.service.jobs.create(await self.body(request, "createFineTuningJob"))
        self.service.workers.wake()
        return job

    async def list(self, request: Request) -> Json:
        """A page of jobs."""
        query = self.query(request, "listPaginatedFineTuningJobs")
        metadata = (query["metadata"],) if "metadata" in query else ()
        limit = min(query.get("limit", 20), 100)
        return _page(*self.service.store.list_jobs(query.get("after"), limit, *metadata))

    async def retrieve(self, job_id: str) -> Json:
        """A job."""
        return self.service.store.job(job_id)

    async def cancel(self, job_id: str) -> Json:
        """Cancel a job."""
        return self._ended(job_id, self.service.jobs.cancel(job_id))

    async def pause(self, job_id: str) -> Json:
        """Pause a job."""
        return self._ended(job_id, self.service.jobs.pause(job_id))

    async def resume(self, job_id: str) -> Json:
        """Resume a paused job."""
        job = self.service.jobs.resume(job_id)
        self.service.workers.wake()
        return job

    def _ended(self, job_id: str, job: Json) -> Json:
        self.service.workers.end(job_id)
        return job

    async def events(self, request: Request, job_id: str) -> Json:
        """A page of a job's events."""
        query, store = self.query(request, "listFineTuningEvents"), self.service.store
        store.job(job_id)
        return _page(*store.list_events(job_id, query.get("after"), min(query.get("limit", 20), 100)))

    async def checkpoints(self, request: Request, job_id: str) -> Json:
        """A job's checkpoints."""
        query = self.query(request, "listFineTuningJobCheckpoints")
        found = self.service.jobs.checkpoints(job_id)
        if "after" in query:
            if query["after"] not in (one["id"] for one in found):
                raise RefusedError(400, f"Invalid 'after': no such object: {query['after']}", "after")
            found = []
        return _page(found, False)


class Models(_Routes):
    """/models and /chat/completions"""

    async def list(self) -> Json:
        """All models, bases first."""
        tuned = [name for name, _, _ in self.service.store.models()]
        return {"object": "list", "data": [self._described(name) for name in (*self._bases, *tuned)]}

    async def retrieve(self, name: str) -> Json:
        """A model."""
        return self._described(name)

    async def delete(self, name: str) -> Json:
        """Delete a tuned model."""
        served = self._served(name)
        if served.job is None:
            raise RefusedError(403, f"{name} is a base model, which cannot be deleted.", "model")
        self.service.store.delete_models(served.job.name)
        remove(served.job)
        return {"id": name, "object": "model", "deleted": True}

    async def chat(self, request: Request) -> JSONResponse | StreamingResponse:
        """Answer a conversation."""
        body = await self.body(request, "createChatCompletion")
        served = self._served(body["model"])
        if body.get("stream"):
            events = await self.service.chat.stream(served, body)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await self.service.chat.complete(served, body, request.is_disconnected))

    @property
    def _bases(self) -> Mapping[str, BaseModel]:
        return self.service.jobs.bases

    def _described(self, name: str) -> Json:
        """A model; `owned_by` and `served_by` say whose and what it really is."""
        served, created = self._served(name), self.service.started
        if served.job:
            created = next(at for _, job, at in self.service.store.models() if job == served.job.name)
        owner = ORGANIZATION if served.job else "system"
        return {"id": name, "object": "model", "created": created, "owned_by": owner, "served_by": served.said}

    def _served(self, name: str) -> Served:
        """The model of this name, or of a checkpoint of it.

        Raises:
            RefusedError: there is none.
        """
        if base := self._bases.get(name):
            return Served(base.folder, None, base.said())
        tuned, _, _ = name.partition(":ckpt-step-")
        for known, job_id, _ in self.service.store.models():
            checkpoints = [one["fine_tuned_model_checkpoint"] for one in self.service.jobs.checkpoints(job_id)]
            if known == tuned and name in (known, *checkpoints):
                said = f"{self.service.store.job(job_id)['served_by']}, fine-tuned by {job_id}"
                return Served(self.service.jobs.base_of(job_id), self.service.store.folder_of(job_id), said)
        message = f"The model `{name}` does not exist or you do not have access to it."
        raise RefusedError(404, message, "model", "model_not_found")


@contextmanager
def _readable_form() -> Iterator[None]:
    try:
        yield
    except HTTPException as error:
        raise RefusedError(400, f"We could not parse the body of your request: {error.detail}") from None
    except (MultiPartException, MultipartParseError, UnicodeError, KeyError) as error:
        raise RefusedError(400, f"We could not parse the body of your request: {error}") from None


def _decoded(raw: bytes) -> Any:
    """JSON that is neither too long nor nested too deeply.

    Raises:
        RefusedError: it is not such JSON.
    """
    if len(raw) > MAX_JSON:
        raise RefusedError(413, f"The request exceeds the {MAX_JSON:,} bytes that are accepted here.")
    if not raw.strip():
        return None
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise RefusedError(400, f"We could not parse the JSON body of your request: {why}") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [one for outer in level for one in _inside(outer)]
    if level:
        raise RefusedError(400, "We could not parse the JSON body of your request: it is nested too deeply")
    return value


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _page(found: list[Json], more: bool) -> Json:
    ids = (found[0]["id"], found[-1]["id"]) if found else ("", "")
    return {"object": "list", "data": found, "has_more": more, "first_id": ids[0], "last_id": ids[1]}


async def _refused(_: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, RefusedError)
    return JSONResponse(refusal.body(), refusal.status)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    refusal = RefusedError(error.status_code, f"Invalid URL ({request.method} {request.url.path})")
    return JSONResponse(refusal.body(), error.status_code)


async def _left(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(RefusedError(499, "The client is gone.").body(), 499)


async def _broken(_: Request, error: Exception) -> JSONResponse:
    notice(f"serve: unexpected {type(error).__name__} in a request; start with -v to see more")
    refusal = RefusedError(500, "The server had an error while processing your request.")
    return JSONResponse(refusal.body(), 500)
