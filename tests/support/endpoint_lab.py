"""Endpoints that are killed and started again, with real trainings: python -m tests.support.endpoint_lab SOCKET

Unsloth is slow to import, so this process imports it once (see lab.py), and forks a child for each endpoint, each
training and each stage of the pipeline. Each connection to the socket asks for one in a line of JSON; the child answers
with a line that has its process id. A training talks over its connection from then on, which closes when the endpoint
that asked dies.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys

import uvicorn

from stages.endpoint import server, train
from tests.support import lab


def main() -> None:
    lab.warm_up()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            with contextlib.suppress(BaseException):
                work(connection)
            os._exit(1)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def work(connection: socket.socket) -> None:
    asked = json.loads(connection.makefile().readline())
    os.chdir(asked["folder"])
    os.environ.update(asked.get("environment", {}))
    connection.sendall(f"{json.dumps({'pid': os.getpid()})}\n".encode())
    if "port" in asked:
        serve(asked["port"])
        return
    if "stage" in asked:
        importlib.import_module(asked["stage"]).main()
        os._exit(0)
    os.setsid()
    for number in (0, 1):
        os.dup2(connection.fileno(), number)
    connection.close()
    sys.stdin = os.fdopen(0)
    train.main()


def serve(port: int) -> None:
    options = server.Options(port)
    with server.assembled(options, Forked) as (guarded, listening):
        uvicorn.Server(uvicorn.Config(guarded, log_level="error", access_log=False)).run([listening])


def ask(path: str, **asked) -> tuple[socket.socket, int]:
    """Ask for a process; return the connection and the process's id."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(f"{json.dumps(asked)}\n".encode())
    # Not buffered: what follows is for another reader.
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := connection.recv(1)):
            raise OSError("the process died")
        line += piece
    return connection, json.loads(line)["pid"]


class Forked:
    """A training in a fork of the process that has Unsloth, in place of a process of its own."""

    def __init__(self, folder, environment):
        self._connection, self._pid = ask(os.environ["LAB"], folder=str(folder), environment=dict(environment))

    def lines(self):
        yield from self._connection.makefile()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def wait(self):
        self._connection.close()
        return 0


if __name__ == "__main__":
    main()
