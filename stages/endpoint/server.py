"""Puts the service together and serves it."""

import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from stages.core import files
from stages.core.cli import UserError, notice
from stages.core.locks import alone
from stages.endpoint.access import LOOPBACK, Guard, key_in
from stages.endpoint.app import Service, application
from stages.endpoint.catalog import BaseModel, catalog, recipe, use_root
from stages.endpoint.chat import Chat
from stages.endpoint.jobs import Jobs
from stages.endpoint.store import Store
from stages.endpoint.workers import Launch, Process, Workers, devices, remove

if TYPE_CHECKING:
    from stages.endpoint.answers import Answers

_CONNECTIONS = 256
_STOP_SECONDS = 2


@dataclass(frozen=True)
class Options:
    """How to serve: `models` are mappings NAME=BASE, `expose` another address than loopback, sizes are in bytes."""

    port: int
    models: Sequence[str] = ()
    expose: str | None = None
    max_upload: int = 512_000_000
    max_disk: int = 50_000_000_000
    max_jobs: int = 100


def serve(options: Options) -> None:
    """Serve until interrupted; jobs that are running then resume with the next start.

    Raises:
        UserError: as `assembled`.
    """
    with assembled(options) as (guarded, listening):
        _run(guarded, listening)


@contextmanager
def assembled(options: Options, launch: Launch = Process) -> Iterator[tuple[Guard, socket.socket]]:
    """The service with its workers at work, and a socket that listens for it.

    Raises:
        UserError: params.yaml or an option is wrong, a base model is missing, the port is taken, or another endpoint
            runs in this folder.
    """
    root = Path.cwd()
    use_root(root)
    folder = files.state_dir("endpoint")
    folder.chmod(0o700)
    with alone(folder / "endpoint.lock", "another endpoint runs in this folder"), _bound(options) as listening:
        knobs = recipe()
        store = Store(folder)
        bases = catalog(knobs, options.models, store.bases)
        store.sweep(remove)
        key, new = key_in(folder / "key")
        jobs = Jobs(store, knobs, bases, options.max_jobs, options.max_disk)
        workers, chat = Workers(jobs, devices(), launch), Chat(_answers)
        service = Service(store, jobs, workers, chat, int(time.time()), options.max_upload)
        guarded = Guard(application(service), key, hosts(options.expose), options.max_upload)
        workers.start()
        try:
            _say(listening, folder, key if new else None, bases)
            yield guarded, listening
        finally:
            chat.stop()
            workers.stop()
            store.close()


def hosts(expose: str | None) -> Collection[str] | None:
    """The Host names that requests may have; None is any, because who listens everywhere does not know his names."""
    if expose is None:
        return LOOPBACK
    return None if ip_address(expose).is_unspecified else (*LOOPBACK, expose)


@contextmanager
def _bound(options: Options) -> Iterator[socket.socket]:
    """A socket that listens, taken before anything slow is done."""
    address = LOOPBACK[0] if options.expose is None else options.expose
    try:
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        listening = socket.create_server((address, options.port), family=family, backlog=_CONNECTIONS)
    except ValueError:
        raise UserError(f"--expose: '{address}' is not an IP address of this machine, such as 192.168.1.20") from None
    except OSError as error:
        raise UserError(
            f"cannot listen at {address}, port {options.port} ({error.strerror}); stop the other program, or choose"
            " another --port"
        ) from None
    with listening:
        yield listening


def _say(listening: socket.socket, folder: Path, key: str | None, bases: Mapping[str, BaseModel]) -> None:
    host, port = listening.getsockname()[:2]
    if host not in LOOPBACK:
        notice(f"serve: everybody who can reach {host} and has the key can train here; the traffic is not encrypted")
    notice(f"serve: models: {', '.join(bases)}")
    shown = folder.relative_to(Path.cwd()) / "key"
    notice(f"serve: the key is {key}" if key else f"serve: the key is in {shown}")
    notice(f"export OPENAI_BASE_URL=http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    notice(f"export OPENAI_API_KEY=$(cat {shown})")


def _run(application: Guard, listening: socket.socket) -> None:
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _answers() -> "Answers":
    # Takes seconds to import, and is needed only once somebody chats.
    from stages.endpoint.answers import Answers

    return Answers()
