import os
import subprocess
import sys

import pytest

from .conftest import ROOT

STAGE = """
from stages.command import UserError, run
def main():
    {body}
run(main)
"""


def call(body, **environment):
    return subprocess.run(
        [sys.executable, "-c", STAGE.format(body=body)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "body, status, message",
    [
        ("raise UserError('row 3 is odd\\nmend it')", 1, "error: row 3 is odd\n  mend it\n"),
        ("raise KeyboardInterrupt", 130, "error: stopped by Ctrl-C\n"),
        ("raise KeyError('x')", 1, "error: unexpected KeyError: 'x'\n  set TRACEBACK=1 to see where it happened\n"),
    ],
)
def test_errors_are_messages_without_a_traceback(body, status, message):
    done = call(body)
    assert (done.returncode, done.stderr) == (status, message)


def test_a_traceback_is_there_for_the_asking():
    done = call("raise UserError('odd')", TRACEBACK="1")
    assert "Traceback" in done.stderr and done.stderr.endswith("error: odd\n")
