import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stages import conversations, parse, validate
from stages.conversations import Conversation, Message
from stages.params import read_yaml
from stages.paths import RAW, SIGNALS, SPLITS, SUITE, VALIDATION

from . import history
from .commands import STAGES, call, dvc, ran

ROOT = Path(__file__).parent.parent

# Workers beside each other share the processors; torch would start as many threads in each as there are.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder that holds the shipped params.yaml and is the current folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A folder with a tokenizer, a chat template and a model with random weights, small enough to train in seconds."""
    from tests.small import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(project, small_base):
    """The project with the small base model in its place."""
    use_base(small_base)
    return small_base


def use_base(folder):
    """Make the model in `folder` the base of the current project."""
    set_params(unsloth__model=str(folder), unsloth__revision=None)
    from stages import base as stage

    stage.main()


def set_params(**values):
    """Change keys of params.yaml; lora__r is the key r of the section lora."""
    path = Path("params.yaml")
    params = read_yaml(path)
    for key, value in values.items():
        *sections, last = key.split("__")
        at = params
        for section in sections:
            at = at[section]
        at[last] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def hear_ctrl_c():
    """For `preexec_fn`: a test run in the background of a script hands on that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def splits(base):
    """The project with a base model and small splits, ready for the finetune stage."""
    SPLITS["train"].parent.mkdir(parents=True)
    for name, count in (("train", 16), ("validation", 4), ("test", 4)):
        conversations.write_jsonl(SPLITS[name], talks(count))
    pd.DataFrame({"row": [1, 2], "n_tokens": [20.0, 30.0]}).to_parquet(SIGNALS)


def talks(count):
    """Short conversations that begin alike."""
    return [
        Conversation(
            (Message("system", "Be kind."), Message("user", f"Room {n}?"), Message("assistant", f"It is {n}."))
        )
        for n in range(count)
    ]


TALK = '{"messages": [{"role": "user", "content": "Pool %d?"}, {"role": "assistant", "content": "At 7."}]}'


def good_records(count):
    """Records without a fault, as cells of a CSV."""
    return [TALK % number for number in range(count)]


@pytest.fixture
def gate(base):
    """gate(records, **params) runs parse and validate over these records of a CSV, with `edit` made to the suite.

    `records` may also be the bytes of a whole source.
    """

    def run(records, edit=("", ""), form="messages", **knobs):
        text = Path("params.yaml").read_text().replace("format: messages", f"format: {form}", 1)
        for key, value in knobs.items():
            text = re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text)
        Path("params.yaml").write_text(text)
        SUITE.parent.mkdir(exist_ok=True)
        SUITE.write_text((ROOT / SUITE).read_text().replace(*edit))
        if isinstance(records, bytes):
            RAW.write_bytes(records)
        else:
            with RAW.open("w", newline="", encoding="utf-8") as out:
                csv.writer(out).writerows([record] if isinstance(record, str) else record for record in records)
        parse.main()
        validate.main()
        return json.loads(VALIDATION.read_text())

    return run


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A process that runs the finetune stage again and again (see tests/lab.py)."""
    command = [sys.executable, "-m", "tests.lab"]
    # With one thread: a process that has started more cannot be forked.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("DVC_ROOT", None)
    folder = tmp_path_factory.mktemp("lab")
    with subprocess.Popen(
        command, env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def observed(splits, lab):
    """A function that runs the finetune stage with some parameters changed; returns its error or None, and what the
    probe (see tests/probes.py), which may be given something, found."""

    def run(probe, *given, **knobs):
        set_params(**knobs)
        print(json.dumps([str(Path.cwd()), probe, given]), file=lab.stdin, flush=True)
        answer = lab.stdout.readline()
        assert answer, "the stage's process died"
        return json.loads(answer)

    return run


@pytest.fixture
def train(observed):
    """A function that runs the finetune stage with some parameters changed, and returns its error or None."""
    return lambda **knobs: observed("nothing", **knobs)[0]


@pytest.fixture
def repository(project):
    """The project under Git and DVC, on the branch main, with one finished run committed."""
    history.begin()
    history.write_run()
    history.commit()
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_base):
    """A clone in which the pipeline ran once on the small model; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    for name in call("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not name.startswith("reports/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # With its time, by which make sees that the set-up is newer.
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    with pytest.MonkeyPatch.context() as patch:
        _enter(folder, patch)
        set_params(
            unsloth__model=str(small_base),
            unsloth__revision=None,
            unsloth__max_length=2048,
            epochs=2,
            evaluate__max_new_tokens=4,
            evaluate__resamples=100,
        )
        for command in (["init", "-q"], ["config", "user.name", "t"], ["config", "user.email", "t@example.org"]):
            call("git", *command)
        # A link is no folder, which is what .gitignore names.
        Path(".git/info/exclude").write_text(".venv\n")
        assert ran(dvc("repro")) == STAGES
        call("git", "add", "-A")
        call("git", "commit", "-qm", "run")
    return folder


@pytest.fixture
def clone(finished, tmp_path, monkeypatch):
    """A copy of `finished`, as the current folder, with .venv activated."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    _enter(folder, monkeypatch)
    return folder


def _enter(folder, patch):
    patch.chdir(folder)
    patch.delenv("DVC_ROOT", raising=False)
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
