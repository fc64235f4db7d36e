"""What `make mutants` (tests/mutants.py) adds to pytest: see `pytest_*` below; and a lab that serves all mutants.

The lab (see support/lab.py) is started once, as python -m tests.mutants_plugin ADDRESS; each run is given its mutant.
"""

import itertools
import json
import os
import resource
import socket
import socketserver
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mutmut.state import state

# A mutant meets the fastest of the tests that get to its function, for as many seconds.
_SECONDS_OF_TESTS = 20
# A training of the small model takes a few.
_SECONDS_OF_TRAINING = 100
# A mutant may ask for memory without end.
_BYTES = 6 * 2**30
_MUTANT = "MUTANT_UNDER_TEST"


def pytest_configure(config: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    # With PYTHONWARNDEFAULTENCODING=1, what opens a file in the encoding of whatever machine it is on fails.
    config.addinivalue_line("filterwarnings", "error:'encoding' argument not specified$:EncodingWarning:stages")
    # mutmut itself knows that it is collecting which test gets to which function; other processes cannot tell it.
    if os.environ.get(_MUTANT) == "stats":
        del os.environ[_MUTANT]


def pytest_sessionfinish() -> None:
    seconds, tests_of = state().duration_by_test, state().tests_by_mangled_function_name
    for function, tests in tests_of.items():
        fastest = sorted(tests, key=lambda test: seconds[test])
        sums = itertools.accumulate(seconds[test] for test in fastest)
        tests_of[function] = {test for test, spent in zip(fastest, sums, strict=True) if spent < _SECONDS_OF_TESTS}


def pytest_fixture_setup(fixturedef: Any, request: Any) -> Any:
    if fixturedef.argname != "lab":
        return None
    fixturedef.cached_result = (Lab(), fixturedef.cache_key(request), None)
    return fixturedef.cached_result[0]


class Lab:
    """What a test sees of the process: as its input and output, a connection for each run."""

    address: str | None = None

    def __init__(self) -> None:
        if not Lab.address:
            Lab.address = str(Path(tempfile.mkdtemp(), "lab"))
            command = [sys.executable, "-m", "tests.mutants_plugin", Lab.address]
            process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
            while not Path(Lab.address).exists():
                assert process.poll() is None, "the lab did not start"
                time.sleep(0.1)
        self.stdin = self.stdout = self
        self._line = ""

    def write(self, text: str) -> None:
        self._line += text

    def flush(self) -> None:
        pass

    def readline(self) -> str:
        line, self._line = self._line, ""
        with socket.socket(socket.AF_UNIX) as link, link.makefile("rw", encoding="utf-8") as file:
            link.connect(Lab.address)
            # pytest_configure takes "stats" out of the environment.
            print(json.dumps([os.environ.get(_MUTANT, "stats"), *json.loads(line)]), file=file, flush=True)
            error, found, functions = json.loads(file.readline())
        state()._stats.update(functions)
        return json.dumps([error, found])


class _Run(socketserver.StreamRequestHandler):
    """A run of the stage in a fork, which answers also with the functions that it got to."""

    def handle(self) -> None:
        mutant, *request = json.loads(self.rfile.readline())
        child = os.fork()
        if not child:
            # Whatever happens: a fork that got out of here would be a second server.
            try:
                self._answer(*_train(mutant, request), sorted(state()._stats))
                os._exit(0)
            finally:
                os._exit(1)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            self._answer(f"the process ended with {code}", {}, [])

    def _answer(self, *answer: object) -> None:
        self.wfile.write((json.dumps(answer) + "\n").encode())


def _train(mutant: str, request: list[Any]) -> tuple[str | None, dict]:
    from tests.support import lab

    os.environ[_MUTANT] = mutant
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS_OF_TRAINING, _SECONDS_OF_TRAINING))
    return lab.run(*request)


class _Server(socketserver.UnixStreamServer):
    """Ends with the process that started it."""

    parent = os.getppid()

    def service_actions(self) -> None:
        if os.getppid() != self.parent:
            sys.exit()


def main() -> None:
    # Read where the settings are: the runs are in other folders.
    from mutmut.configuration import config

    from tests.support import lab

    config()
    os.environ[_MUTANT] = ""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        lab.warm_up()
    _Server(sys.argv[1], _Run).serve_forever()


if __name__ == "__main__":
    main()
