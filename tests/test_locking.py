import os
import subprocess
import sys
import threading

import pytest

from stages import locking
from stages.command import UserError


def test_a_second_one_is_refused_with_who_holds_it(project, monkeypatch):
    monkeypatch.setattr(locking, "_WAIT_SECONDS", 0.1)
    path = project / ".state/some.lock"
    refused = pytest.raises(UserError, match=rf"busy \(process {os.getpid()}, since 20")
    with locking.alone(path, "busy"), refused, locking.alone(path, "busy"):
        pass
    with locking.alone(path, "busy"):
        pass


def test_who_waits_for_a_lock_that_is_removed_takes_a_new_one(project):
    path = project / ".state/some.lock"
    inside, done = threading.Event(), threading.Event()

    def second():
        with locking.alone(path, "busy"):
            inside.set()
            done.wait(10)

    waiting = threading.Thread(target=second)
    with locking.alone(path, "busy"):
        waiting.start()
        assert not inside.wait(0.2)
    assert inside.wait(10) and path.exists() and path.with_suffix(".holder").exists()
    done.set()
    waiting.join()
    assert not list(path.parent.iterdir()), "a lock leaves no files"


def test_a_killed_holder_leaves_the_lock_free(project, monkeypatch):
    monkeypatch.setattr(locking, "_WAIT_SECONDS", 0.1)
    path = project / ".state/some.lock"
    kill_itself = f"""
import os, pathlib
from stages import locking
with locking.alone(pathlib.Path({str(path)!r}), "busy"):
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", kill_itself], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -9
    with locking.alone(path, "busy"):
        pass
