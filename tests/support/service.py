"""An in-memory service and a fake clock, for tests of the hosted backend's jobs."""

from types import SimpleNamespace as Some

import httpx
import openai

REQUEST = httpx.Request("POST", "http://service/v1")
URL = "http://service/v1"


def status(code, kind=openai.APIStatusError):
    return kind("refused", response=httpx.Response(code, request=REQUEST), body={"message": "refused"})


LOST = openai.APIConnectionError(request=REQUEST)
SERVER = status(503, openai.InternalServerError)
LIMIT = status(429, openai.RateLimitError)


def made(name, state="running", created=100, fingerprint=None, training_file="", model="ft:tuned", **more):
    metadata = None if fingerprint is None else {"fingerprint": fingerprint}
    given = {"metadata": metadata, "training_file": training_file, "fine_tuned_model": model, "error": None}
    return Some(id=name, status=state, created_at=created, **given | more)


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def time(self):
        return self.now

    monotonic = time


class Service:
    """A client with its service. `faults` of an operation are raised first, or called if they are functions."""

    def __init__(self):
        self.listed, self.kept, self.asked, self.faults, self.retries = [], [], [], {}, []
        self.events, self.filters = [], True
        self.fine_tuning = Some(jobs=self)
        self.files = Some(list=self._files, create=self._upload, retrieve=self._file)

    def _meet(self, operation, *details):
        self.asked.append((operation, *details))
        if queue := self.faults.get(operation):
            fault = queue.pop(0)
            if isinstance(fault, BaseException):
                raise fault
            if fault:
                fault()

    def with_options(self, max_retries):
        self.retries.append(max_retries)
        return self

    def list(self, limit, metadata=None):
        self._meet("list", limit, metadata)
        wanted = metadata.items() if metadata and self.filters else ()
        return [job for job in self.listed if wanted <= (job.metadata or {}).items()] if wanted else list(self.listed)

    def retrieve(self, name):
        self._meet("retrieve", name)
        found = [job for job in self.listed if job.id == name]
        if not found:
            raise status(404, openai.NotFoundError)
        return found[0]

    def create(self, **asked):
        self._meet("create", asked)
        job = made(f"job{len(self.listed)}", "queued", 500, asked["metadata"]["fingerprint"], asked["training_file"])
        self.listed.append(job)
        return job

    def cancel(self, name):
        self._meet("cancel", name)
        self.retrieve(name).status = "cancelled"

    def list_events(self, name, limit):
        self._meet("events", name, limit)
        return self.events

    def _files(self, purpose):
        self._meet("files", purpose)
        return list(self.kept)

    def _file(self, name):
        self._meet("file", name)
        return next(file for file in self.kept if file.id == name)

    def _upload(self, file, purpose):
        name, content = file
        self._meet("upload", name, purpose)
        data = content.read()
        self.kept.append(
            Some(id=f"file{len(self.kept)}", filename=name, bytes=len(data), status="processed", data=data)
        )
        return self.kept[-1]

    def count(self, operation):
        return sum(one[0] == operation for one in self.asked)
