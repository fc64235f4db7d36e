import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

STAGE = """
from stages.command import UserError, run
def main():
    {body}
run(main)
"""


def call(body, *arguments):
    command = [sys.executable, "-c", STAGE.format(body=body), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "body, status, message",
    [
        ("raise UserError('row 3 is odd\\nmend it')", 1, "error: row 3 is odd\n  mend it\n"),
        ("raise KeyboardInterrupt", 130, "error: stopped by Ctrl-C\n"),
        ("raise KeyError('x')", 1, "error: unexpected KeyError: 'x'\n  add -v to see where it happened\n"),
    ],
)
def test_errors_are_messages_without_a_traceback(body, status, message):
    done = call(body)
    assert (done.returncode, done.stderr) == (status, message)


def test_a_traceback_is_there_for_the_asking():
    done = call("raise UserError('odd')", "-v")
    assert "Traceback" in done.stderr and done.stderr.endswith("error: odd\n")


CHATTY = """
    import warnings
    from stages.command import notice, without_banners
    with without_banners():
        print("=== LIBRARY 1.0 ===")
        warnings.warn("mind")
        notice("step 1")
"""


def test_libraries_are_quiet_and_notices_come_through():
    done = call(CHATTY)
    assert (done.stdout, done.stderr) == ("step 1\n", "")


def test_v_shows_what_libraries_say():
    done = call(CHATTY, "-v")
    assert done.stdout == "=== LIBRARY 1.0 ===\nstep 1\n" and "UserWarning: mind" in done.stderr


def test_dvc_hands_its_v_on(tmp_path):
    (tmp_path / "dvc.yaml").write_text(f"stages: {{say: {{cmd: '{sys.executable} say.py'}}}}")
    (tmp_path / "say.py").write_text("from stages.command import verbose; print('verbose is', verbose())")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    for words, answer in ((["repro"], "verbose is False"), (["repro", "-f", "-v"], "verbose is True")):
        done = subprocess.run([dvc, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert answer in done.stdout, done.stderr
