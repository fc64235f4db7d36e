import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from filelock import FileLock

from stages import backends, finetune
from stages.backends.protocol import Result
from stages.core import locks
from stages.core.cli import UserError
from stages.core.paths import HISTORY, WORKING
from tests.conftest import ROOT


def test_a_second_one_is_refused_with_who_holds_it(project, monkeypatch):
    monkeypatch.setattr(locks, "_WAIT_SECONDS", 0.1)
    path = project / ".state/some.lock"
    refused = pytest.raises(UserError, match=rf"busy \(process {os.getpid()}, since 20")
    with locks.alone(path, "busy"), refused, locks.alone(path, "busy"):
        pass
    with locks.alone(path, "busy"):
        pass


def test_who_waits_for_a_lock_that_is_removed_takes_a_new_one(project):
    path = project / ".state/some.lock"
    inside, done = threading.Event(), threading.Event()

    def second():
        with locks.alone(path, "busy"):
            inside.set()
            done.wait(10)

    waiting = threading.Thread(target=second)
    with locks.alone(path, "busy"):
        waiting.start()
        assert not inside.wait(0.2)
    assert inside.wait(10) and path.exists() and path.with_suffix(".holder").exists()
    done.set()
    waiting.join()
    assert not list(path.parent.iterdir()), "a lock leaves no files"


def test_a_killed_holder_leaves_the_lock_free(project, monkeypatch):
    monkeypatch.setattr(locks, "_WAIT_SECONDS", 0.1)
    path = project / ".state/some.lock"
    kill_itself = f"""
import os, pathlib
from stages.core import locks
with locks.alone(pathlib.Path({str(path)!r}), "busy"):
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", kill_itself], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -9
    with locks.alone(path, "busy"):
        pass


def test_a_holder_that_has_not_yet_written_its_name_is_named_as_new(project, monkeypatch):
    monkeypatch.setattr(locks, "_WAIT_SECONDS", 0)
    path = project / "some.lock"
    refused = pytest.raises(UserError, match=r"busy \(a process that just started\); wait for it or stop it")
    with FileLock(path), refused, locks.alone(path, "busy"):
        pass


@pytest.fixture
def trained(project, monkeypatch):
    """trained(meanwhile, at_the_end) runs finetune with a backend that logs one step and then calls `meanwhile`.

    `at_the_end` is called when the results are written.
    """
    monkeypatch.setattr(locks, "_WAIT_SECONDS", 0)

    def run(meanwhile=lambda: None, at_the_end=lambda: None):
        def train(knobs, log):
            log({"step": 1})
            meanwhile()
            return Result({}, {}, clean_up=at_the_end)

        backend = SimpleNamespace(HISTORY=("step",), VALIDATION_HISTORY=("epoch",), finetune=train)
        with monkeypatch.context() as patch:
            patch.setattr(backends, "training", lambda knobs: backend)
            finetune.main()

    return run


def test_a_second_training_in_the_same_folder_is_refused_and_touches_nothing(trained):
    def second():
        with pytest.raises(UserError, match=rf"another training runs in this folder \(process {os.getpid()}, since 20"):
            trained()

    trained(meanwhile=second, at_the_end=second)
    assert HISTORY.read_text() == "step\n1\n"
    trained()


def test_a_training_that_failed_leaves_the_folder_free(trained):
    with pytest.raises(ZeroDivisionError):
        trained(meanwhile=lambda: 1 / 0)
    assert not list(WORKING.iterdir()), "a lock leaves no files, or the next to be refused would be shown a dead holder"
    trained()


def test_an_experiment_in_a_copy_of_the_folder_trains_beside_it(trained, project, tmp_path_factory, monkeypatch):
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "params.yaml", copy)
    # As DVC sets it for both.
    monkeypatch.setenv("DVC_ROOT", str(project))

    def experiment():
        monkeypatch.chdir(copy)
        trained()
        monkeypatch.chdir(project)

    trained(meanwhile=experiment)
    assert (copy / HISTORY).exists() and HISTORY.exists()
