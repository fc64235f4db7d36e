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

from stages import parse, validate
from stages.core.paths import RAW, SIGNALS, SPLITS, SUITE, VALIDATION
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.params import read_yaml
from tests.support import history
from tests.support.commands import STAGES, call, dvc, ran

ROOT = Path(__file__).parent.parent

# Parallel workers share the cores; by default torch would start one thread per core in each of them.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


# Lines of the shipped params.yaml that are chosen for the sample, and may be chosen anew.
COUNTED_ON = {
    "lr: 0.003": "lr: 0.001",
    "  r: 64": "  r: 16",
    "  alpha: 128": "  alpha: 32",
    "  layers_to_transform: upper_half": "  layers_to_transform: null",
    "  target_modules: mlp": ("  target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"),
    "  validation: 0.09": "  validation: 0.15",
    "  test: 0.1": "  test: 0.15",
    "  batch_size: 64": "  batch_size: 32",
    "  max_new_tokens: 80": "  max_new_tokens: 64",
    "  epsilon: null": "  epsilon: 1.0",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder as the current one, with params.yaml as shipped, but for values that tests count on."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for shipped, counted_on in COUNTED_ON.items():
        assert text.count(f"\n{shipped}\n") == 1, f"params.yaml has no line {shipped}"
        text = text.replace(f"\n{shipped}\n", f"\n{counted_on}\n")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A folder with a tokenizer, a chat template and a model with random weights, small enough to train in seconds."""
    from tests.support.small import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(project, small_base):
    """The project with the small base model."""
    use_base(small_base)
    return small_base


def use_base(folder):
    """Use the model in `folder` as the project's base."""
    set_params(unsloth__model=str(folder), unsloth__revision=None)
    from stages import base as stage

    stage.main()


def set_params(**values):
    """Set keys of params.yaml; lora__r is the key r in section lora."""
    path = Path("params.yaml")
    params = read_yaml(path)
    for key, value in values.items():
        *sections, last = key.split("__")
        at = params
        for section in sections:
            at = at[section]
        at[last] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def accept_ctrl_c():
    """For `preexec_fn`: restore Ctrl-C, which processes started in the background of a script inherit as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def splits(base):
    """The project with a base model and small splits, ready for the finetune stage."""
    SPLITS["train"].parent.mkdir(parents=True)
    for name, count in (("train", 16), ("validation", 4), ("test", 4)):
        conversations.write_jsonl(SPLITS[name], talks(count))
    pd.DataFrame({"row": [1, 2], "n_tokens": [20.0, 30.0]}).to_parquet(SIGNALS)


def talks(count):
    """Short conversations with a common prefix."""
    return [
        Conversation(
            (Message("system", "Be kind."), Message("user", f"Room {n}?"), Message("assistant", f"It is {n}."))
        )
        for n in range(count)
    ]


TALK = '{"messages": [{"role": "user", "content": "Pool %d?"}, {"role": "assistant", "content": "At 7."}]}'


def good_records(count):
    """Valid records, as cells of a CSV."""
    return [TALK % number for number in range(count)]


@pytest.fixture
def gate(base):
    """gate(records, **params) runs parse and validate on these records of a CSV, after `edit` of the suite.

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
    """A process that runs the finetune stage repeatedly (see tests/support/lab.py)."""
    command = [sys.executable, "-m", "tests.support.lab"]
    # One thread: a multi-threaded process cannot be forked safely.
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
    """observed(probe, *arguments, **params) runs the finetune stage; returns its error and the probe's findings.

    For probes see tests/support/probes.py.
    """

    def run(probe, *given, **knobs):
        set_params(**knobs)
        print(json.dumps([str(Path.cwd()), probe, given]), file=lab.stdin, flush=True)
        answer = lab.stdout.readline()
        assert answer, "the stage's process died"
        return json.loads(answer)

    return run


@pytest.fixture
def train(observed):
    """train(**params) runs the finetune stage and returns its error or None."""
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
    """A clone in which the pipeline has run once on the small model; tests use copies of it."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    for name in call("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not name.startswith("reports/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # Preserve its mtime, so that make considers the environment up to date.
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
            # Five examples in a prompt are thousands of tokens where each byte is one.
            evaluate__baselines=["nearest", "constant"],
        )
        for command in (["init", "-q"], ["config", "user.name", "t"], ["config", "user.email", "t@example.org"]):
            call("git", *command)
        # .gitignore lists a folder, which does not match a link.
        Path(".git/info/exclude").write_text(".venv\n")
        assert ran(dvc("repro")) == STAGES
        call("git", "add", "-A")
        call("git", "commit", "-qm", "run")
    return folder


@pytest.fixture
def clone(finished, tmp_path, monkeypatch):
    """A copy of `finished` as the current folder, with .venv activated."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    _enter(folder, monkeypatch)
    return folder


def _enter(folder, patch):
    patch.chdir(folder)
    patch.delenv("DVC_ROOT", raising=False)
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
