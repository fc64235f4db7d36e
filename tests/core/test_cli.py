import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core import cli
from tests.conftest import ROOT
from tests.support.commands import STAGES

STAGE = """
from stages.core.cli import UserError, run
def main():
    {body}
run(main)
"""


def call(body, *arguments, flags=(), **environment):
    command = [sys.executable, *flags, "-c", STAGE.format(body=body), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(
    "body, status, message",
    [
        ("raise UserError('row 3 is odd\\nmend it')", 1, "error: row 3 is odd\n  mend it\n"),
        ("raise KeyboardInterrupt", 130, "error: stopped by Ctrl-C\n"),
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
    from stages.core.cli import notice, without_banners
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
    (tmp_path / "say.py").write_text("from stages.core.cli import verbose; print('verbose is', verbose())")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    for words, answer in ((["repro"], "verbose is False"), (["repro", "-f", "-v"], "verbose is True")):
        done = subprocess.run([dvc, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert answer in done.stdout, done.stderr


def test_the_traceback_of_an_unexpected_error_is_kept_without_secrets(tmp_path):
    secret = "sk-not-to-be-seen"
    done = call(f"raise KeyError('{secret}')", DVC_ROOT=str(tmp_path), OPENAI_API_KEY=secret)
    (kept,) = (tmp_path / ".state/errors").iterdir()
    first, second = done.stderr.splitlines()
    assert done.returncode == 1 and first.startswith("error: unexpected KeyError: ")
    assert second == f"  this is a bug; the traceback is in {os.path.relpath(kept, ROOT)}"
    text = kept.read_text(encoding="utf-8")
    assert "Traceback" in text and "KeyError: '•••'" in text and secret not in text


def test_only_the_last_tracebacks_are_kept(tmp_path):
    folder = tmp_path / ".state/errors"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"20200101-0000{number:02}-1.txt").write_text("old", encoding="utf-8")
    call("raise KeyError('x')", DVC_ROOT=str(tmp_path))
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 10 and names[0] == "20200101-000003-1.txt" and not names[-1].startswith("2020")


def test_an_error_of_the_user_keeps_no_traceback(tmp_path):
    call("raise UserError('odd')", DVC_ROOT=str(tmp_path))
    assert not (tmp_path / ".state").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_is_printed_whatever_the_encoding_of_the_terminal(encoding):
    done = call("print('a → b'); raise UserError('•••')", PYTHONIOENCODING=encoding)
    shown = {"utf-8": ("a → b", "•••")}.get(encoding, ("a \\u2192 b", "\\u2022\\u2022\\u2022"))
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{shown[0]}\n", f"error: {shown[1]}\n")


def test_python_without_docstrings_is_refused():
    for given in ({"flags": ["-OO"]}, {"PYTHONOPTIMIZE": "2"}):
        done = call("print('runs')", **given)
        assert (done.returncode, done.stdout) == (1, "") and "unset PYTHONOPTIMIZE" in done.stderr
    assert call("print('runs')", PYTHONOPTIMIZE="1").stdout == "runs\n"


# These read arguments of their own.
PARSING = {f"stages.commands.{name}" for name in ("chat", "doctor", "inspect", "review", "sweep")}
COMMANDS = [
    *(f"stages.{name}" for name in STAGES),
    *(f"stages.commands.{name}" for name in ("chat", "check", "docs", "doctor", "inspect", "review", "sweep")),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, monkeypatch, capsys):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        cli.run(module.main, parses=name in PARSING)
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith("usage: ") and module.__doc__.strip().splitlines()[0] in text
    assert module.__doc__.startswith(f"{name.rpartition('.')[2]}: ")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in PARSING])
def test_arguments_that_a_command_does_not_take_are_refused(name, monkeypatch, capsys):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--lr=1"])
    with pytest.raises(SystemExit) as end:
        cli.run(module.main)
    assert end.value.code == 2 and "unrecognized arguments: --lr=1" in capsys.readouterr().err
