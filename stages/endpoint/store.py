"""Files, jobs, events and tuned models in SQLite, and the contents of files beside it.

Rows are numbered in the order in which they were made; pages of a list follow that order. A job's `status` changes only
from a status that the caller names, so that of two who end a job one wins. Paths are made from ids of our own, never
from what a client sent.
"""

import json
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core import files
from stages.core.cli import UserError
from stages.endpoint.refusals import RefusedError

Json = dict[str, Any]

_VERSION = 1
_TABLES = """
CREATE TABLE files (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, expires_at INTEGER, record TEXT NOT NULL);
CREATE TABLE jobs (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL,
    record TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL, name TEXT,
    record TEXT NOT NULL, UNIQUE (job, name));
CREATE TABLE models (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL,
    created_at INTEGER NOT NULL);
"""
ENDED = ("succeeded", "failed", "cancelled")


def new_id(prefix: str, digits: int = 24) -> str:
    """An id that nobody can guess and that is a safe file name."""
    return prefix + secrets.token_hex(digits // 2)


class Store:
    """The service's memory. Safe to use from several threads, and after a kill at any moment."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's database, or make it.

        Raises:
            UserError: another version of this program made it.
        """
        self.folder = folder
        self.contents, self.jobs, self.bases = folder / "files", folder / "jobs", folder / "bases"
        for one in (self.contents, self.jobs, self.bases):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._database = sqlite3.connect(folder / "endpoint.sqlite3", check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.create_function("holds", 2, _holds, deterministic=True)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise UserError(f"{folder} is of another version of this program; move it away, and start again")
        if not version:
            with self.transaction():
                for statement in _TABLES.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version={_VERSION}")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the block, or none of them."""
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _do(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _page(
        self, table: str, where: str, values: Iterable[Any], after: str | None, limit: int, newest_first: bool = True
    ) -> tuple[list[sqlite3.Row], bool]:
        """Rows of a table after the one with the id `after`, and whether there are more.

        Raises:
            RefusedError: no row has that id.
        """
        given = list(values)
        if after is not None:
            found = self._do(f"SELECT seq FROM {table} WHERE id = ? AND {where}", after, *given)
            if not found:
                raise RefusedError(400, f"Invalid 'after': no such object: {after}", "after")
            where += f" AND seq {'<' if newest_first else '>'} {found[0]['seq']:d}"
        order = "DESC" if newest_first else "ASC"
        rows = self._do(f"SELECT * FROM {table} WHERE {where} ORDER BY seq {order} LIMIT ?", *given, limit + 1)
        return rows[:limit], len(rows) > limit

    # Files

    def content(self, file_id: str) -> Path:
        """Where the content of a file that is in the database lies."""
        return self.contents / file_id

    def add_file(self, content: Path, filename: str, purpose: str, seconds: int | None = None) -> Json:
        """Move a file's content here and describe it; it expires after so many seconds."""
        file_id, now = new_id("file-"), int(time.time())
        record = {"id": file_id, "object": "file", "bytes": content.stat().st_size, "created_at": now}
        record |= {"filename": filename, "purpose": purpose, "status": "processed"}
        expires_at = None if seconds is None else now + seconds
        record |= {} if expires_at is None else {"expires_at": expires_at}
        files.sync(content)
        content.replace(self.content(file_id))
        self._do(
            "INSERT INTO files (id, purpose, bytes, expires_at, record) VALUES (?, ?, ?, ?, ?)",
            file_id, purpose, record["bytes"], expires_at, json.dumps(record),
        )  # fmt: skip
        return record

    def file(self, file_id: str) -> Json:
        """Describe a file.

        Raises:
            RefusedError: there is none of this id.
        """
        self._drop_expired()
        found = self._do("SELECT record FROM files WHERE id = ?", file_id)
        if not found:
            raise RefusedError(404, f"No such File object: {file_id}", "id")
        return dict(json.loads(found[0]["record"]))

    def list_files(
        self, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Json], bool]:
        """A page of files, and whether there are more."""
        self._drop_expired()
        where, values = ("purpose = ?", [purpose]) if purpose else ("1", [])
        rows, more = self._page("files", where, values, after, limit, newest_first)
        return [json.loads(row["record"]) for row in rows], more

    def delete_file(self, file_id: str) -> None:
        """Forget a file, and remove its content."""
        self.file(file_id)
        self._do("DELETE FROM files WHERE id = ?", file_id)
        self.content(file_id).unlink(missing_ok=True)

    def _drop_expired(self) -> None:
        for row in self._do("SELECT id FROM files WHERE expires_at <= ?", int(time.time())):
            self._do("DELETE FROM files WHERE id = ?", row["id"])
            self.content(row["id"]).unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes that the contents of files and the folders of jobs take."""
        return sum(_size(path) for path in self.folder.rglob("*"))

    # Jobs

    def folder_of(self, job_id: str) -> Path:
        """The folder of a job that is in the database."""
        return self.jobs / job_id

    def add_job(self, record: Json, plan: Json) -> None:
        """Add a job at the end of the queue; `plan` is what decides its training."""
        self._do(
            "INSERT INTO jobs (id, status, record, plan) VALUES (?, ?, ?, ?)",
            record["id"], record["status"], json.dumps(record), json.dumps(plan),
        )  # fmt: skip

    def job(self, job_id: str) -> Json:
        """A job as clients see it.

        Raises:
            RefusedError: there is none of this id.
        """
        found = self._do("SELECT record FROM jobs WHERE id = ?", job_id)
        if not found:
            raise RefusedError(404, f"Could not find fine tune: {job_id}", "fine_tune_id", "fine_tune_not_found")
        return dict(json.loads(found[0]["record"]))

    def plan(self, job_id: str) -> Json:
        """What decides the training of a job that is in the database."""
        return dict(json.loads(self._do("SELECT plan FROM jobs WHERE id = ?", job_id)[0]["plan"]))

    def update_job(self, job_id: str, was: Iterable[str], plan: Json | None = None, **changes: Any) -> bool:
        """Change a job whose status is one of `was`; return whether it was. `plan` adds to the job's plan."""
        with self.transaction():
            record = self.job(job_id)
            if record["status"] not in was:
                return False
            record |= changes
            whole = self.plan(job_id) | (plan or {})
            self._do(
                "UPDATE jobs SET status = ?, record = ?, plan = ? WHERE id = ?",
                record["status"], json.dumps(record), json.dumps(whole), job_id,
            )  # fmt: skip
            return True

    def with_status(self, *statuses: str) -> list[str]:
        """Ids of the jobs with one of these statuses, in the order of the queue."""
        marks = ", ".join("?" * len(statuses))
        return [row["id"] for row in self._do(f"SELECT id FROM jobs WHERE status IN ({marks}) ORDER BY seq", *statuses)]

    def list_jobs(self, after: str | None, limit: int, *metadata: Json | None) -> tuple[list[Json], bool]:
        """A page of jobs, newest first, and whether there are more.

        If `metadata` is given, only jobs whose metadata hold its keys and values, or are null if it is None.
        """
        where, values = ("holds(record, ?)", [json.dumps(metadata[0])]) if metadata else ("1", [])
        rows, more = self._page("jobs", where, values, after, limit)
        return [json.loads(row["record"]) for row in rows], more

    def add_event(
        self, job_id: str, message: str, level: str = "info", data: Json | None = None, name: str | None = None
    ) -> None:
        """Add an event to a job; one of a `name` that the job has already is left out."""
        event = {"object": "fine_tuning.job.event", "id": new_id("ftevent-"), "created_at": int(time.time())}
        event |= {"level": level, "message": message, "type": "metrics" if data else "message", "data": data or {}}
        self._do(
            "INSERT OR IGNORE INTO events (id, job, name, record) VALUES (?, ?, ?, ?)",
            event["id"], job_id, name, json.dumps(event),
        )  # fmt: skip

    def list_events(self, job_id: str, after: str | None, limit: int) -> tuple[list[Json], bool]:
        """A page of a job's events, newest first, and whether there are more."""
        rows, more = self._page("events", "job = ?", [job_id], after, limit)
        return [json.loads(row["record"]) for row in rows], more

    def measured(self, job_id: str) -> list[Json]:
        """The data of a job's events with metrics, in order."""
        rows = self._do("SELECT record FROM events WHERE job = ? AND name IS NOT NULL ORDER BY seq", job_id)
        return [data for row in rows if (data := json.loads(row["record"])["data"])]

    # Models

    def add_model(self, model_id: str, job_id: str) -> None:
        """Add a tuned model, which lies in its job's folder."""
        self._do("INSERT INTO models (id, job, created_at) VALUES (?, ?, ?)", model_id, job_id, int(time.time()))

    def models(self) -> list[tuple[str, str, int]]:
        """Id, job and time of creation of each tuned model, in the order of creation."""
        return [(row["id"], row["job"], row["created_at"]) for row in self._do("SELECT * FROM models ORDER BY seq")]

    def delete_models(self, job_id: str) -> None:
        """Forget the models of a job."""
        self._do("DELETE FROM models WHERE job = ?", job_id)

    # After a kill

    def sweep(self, remove: Callable[[Path], Any]) -> None:
        """Call `remove` for what a killed service left: contents that no row names, and folders of unknown jobs."""
        known = {row["id"] for row in self._do("SELECT id FROM files UNION SELECT id FROM jobs")}
        for path in (*self.contents.iterdir(), *self.jobs.iterdir()):
            if path.name not in known:
                remove(path)


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    # A training moves and deletes its files meanwhile.
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _holds(record: str, wanted: str) -> bool:
    """Whether a job's metadata hold all the keys and values in `wanted`, or are null if that is."""
    metadata, asked = json.loads(record)["metadata"], json.loads(wanted)
    return metadata is None if asked is None else dict(asked).items() <= (metadata or {}).items()
