import ast
import contextlib
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from stages import params
from stages.backends.openai import doctor as hosted
from stages.backends.unsloth.base import weights
from stages.commands import doctor
from stages.core.cli import UserError
from tests.conftest import ROOT, set_params

MACHINE = ["python", "packages", "device", "bf16", "disk", "model", "data"]
NAMES = [*MACHINE, "key", "endpoint", "time"]
# What each backend needs is not known before it can be asked, or while the parameters are wrong.
UNASKED = [*MACHINE, "access", "time"]
KEY = "sk-not-to-be-seen"
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def examine(project, monkeypatch, capsys):
    """A function that runs the doctor in the project, and returns its lines by name and the exit status.

    In a process of its own where this is asked for; else within this one, which has imported what the doctor imports.
    """
    for path in [*ROOT.glob("constraints*.txt"), *ROOT.glob("requirements*.txt")]:
        Path(path.name).write_bytes(path.read_bytes())
    Path("data").mkdir()
    Path("data/sample.csv").write_bytes(b"0" * 123_456)
    monkeypatch.setenv("OPENAI_BASE_URL", NOWHERE)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(doctor.gflops, "__defaults__", (0.01,))
    monkeypatch.setattr(sys, "argv", ["doctor"])

    def within():
        status = 0
        try:
            doctor.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    def process(command):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    def run(*command):
        status, out, error = process([*command, "-m", "stages.commands.doctor"]) if command else within()
        lines = {line.split()[1]: line for line in out.splitlines()}
        assert list(lines) in (NAMES, UNASKED) and error == ""
        return lines, status

    return run


def test_a_machine_that_has_all_that_the_default_run_needs(examine):
    lines, status = examine(sys.executable)
    assert status == 0 and not any(line.startswith("!!") for line in lines.values())
    assert "as pinned" in lines["packages"] and "123 kB" in lines["data"]
    assert re.search(r"about \d+ minute|not timed on a GPU", lines["time"])
    assert lines["key"].startswith("--") and "export OPENAI_API_KEY" in lines["key"]
    assert f"{NOWHERE} does not answer" in lines["endpoint"] and "refused" in lines["endpoint"]


def test_a_bare_python_is_asked_to_set_up(examine):
    lines, status = examine(sys.executable, "-S")
    assert status == 1 and lines["python"].startswith("ok") and lines["disk"].startswith("ok")
    assert all(lines[name].endswith("make setup") for name in ("packages", "device", "model", "data", "access", "time"))
    assert list(lines) == UNASKED


def test_a_hosted_model_needs_key_and_endpoint(examine):
    set_params(backend="openai")
    lines, status = examine()
    assert status == 1 and lines["key"].startswith("!!") and lines["endpoint"].startswith("!!")
    # Only of OpenAI's own address is it known when a model ends.
    assert lines["model"] == "ok model     gpt-3.5-turbo-0125, hosted"


def test_a_model_that_openai_shut_down_is_named(project, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    set_params(backend="openai")
    assert hosted.model(params.load()).text == "gpt-3.5-turbo-0125 was shut down by OpenAI on 2026-10-23"


def test_the_endpoint_is_asked_without_the_key_and_the_key_is_not_shown(examine, monkeypatch):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        set_params(backend="openai")
        lines, status = examine()
        server.shutdown()
    assert status == 0 and "answers (HTTP 401 without a key)" in lines["endpoint"]
    assert lines["key"] == "ok key       OPENAI_API_KEY is set" and KEY not in str(lines)
    assert [path for path, _ in asked] == ["/v1/models"] and KEY not in str(asked)


def test_what_is_missing_is_named(examine):
    Path("data/sample.csv").unlink()
    Path("constraints.txt").write_text(Path("constraints.txt").read_text().replace("tqdm==", "tqdm==0."))
    lines, status = examine()
    assert status == 1 and "data/sample.csv is missing" in lines["data"]
    assert re.search(r"1 of \d+ not as pinned: tqdm [\d.]+; rm -r .venv; make setup", lines["packages"])


def test_wrong_parameters_are_said_and_do_not_stop_it(examine):
    set_params(lr=-1)
    lines, status = examine()
    assert status == 1 and "params.yaml has 1 error" in lines["model"] and lines["device"].startswith("ok")


def test_a_directory_and_a_hub_model(examine, tmp_path):
    set_params(unsloth__model=str(tmp_path), unsloth__revision=None)
    assert f"{tmp_path}, in " in examine()[0]["model"]
    set_params(unsloth__model="owner/nothing-here", unsloth__revision="0" * 40)
    assert "owner/nothing-here, to be downloaded by the base stage" in examine()[0]["model"]


@pytest.mark.parametrize(
    "model, revision, said",
    [
        ("/nowhere/model", None, "unsloth.model: '/nowhere/model' is not a directory"),
        ("owner/name", None, "unsloth.revision: 'None' is not allowed; expected the commit"),
    ],
)
def test_a_model_that_cannot_be_had_is_reported_as_by_the_base_stage(examine, model, revision, said):
    set_params(unsloth__model=model, unsloth__revision=revision)
    lines, status = examine()
    assert status == 1 and lines["model"].startswith("!! model") and said in lines["model"]
    with pytest.raises(UserError) as error:
        weights.resolve(model, revision)
    assert str(error.value) in lines["model"]


@pytest.mark.parametrize(
    "url",
    ["http://[bad", "http://host:port/v1", "http://host:99999/v1", "http://exämple..com/v1", "http://a b/v1", "x"],
)
def test_an_address_that_is_none_is_one_finding(project, monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    finding = hosted.ACCESS["endpoint"](params.load())
    assert finding.text.endswith("is not an address such as https://api.openai.com/v1")
    assert finding.fix == "fix openai.base_url or OPENAI_BASE_URL"


@pytest.mark.parametrize("name, mark", [("bf16", "--"), ("packages", "!!")])
def test_an_error_that_nobody_expected_is_one_finding(project, monkeypatch, capsys, name, mark):
    monkeypatch.setattr(sys, "argv", ["doctor"])

    def fail():
        raise AttributeError("no such\nthing")

    monkeypatch.setattr(doctor, "_MACHINE", {"python": doctor._python, name: fail})
    with contextlib.suppress(SystemExit):
        doctor.main()
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("ok python")
    assert second == f"{mark} {name:<9} could not be found out (AttributeError: no such thing); rm -r .venv; make setup"


def test_a_torch_without_mkldnn_has_no_fast_bf16(monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._bf16().text.startswith("emulated")


@pytest.mark.parametrize(
    "shown, cuda, text, fix",
    [
        ("", None, "this torch has no CUDA", "pip install torch"),
        ("| CUDA Version: 12.4 |", "13.0", "for CUDA 12.4 at most, and this torch for 13.0", "built for CUDA 12.4"),
        ("| CUDA UMD Version: 12.9 |", "12.10", "for CUDA 12.9 at most", "update the driver"),
        ("| CUDA Version: 13.0 |", "13.0", "nvidia-smi is there, and torch has CUDA 13.0", "CUDA_VISIBLE_DEVICES"),
        ("no devices were found", "13.0", "nvidia-smi is there", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_torch_does_not_see_a_gpu(tmp_path, monkeypatch, shown, cuda, text, fix):
    import torch

    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{shown}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = doctor._device()
    assert text in found.text and fix in found.fix and found.needed


@pytest.mark.parametrize(
    "compiler, header, said", [(True, True, ""), (False, True, "no C compiler"), (True, False, "no Python.h")]
)
def test_what_triton_needs_is_looked_for_beside_a_gpu(tmp_path, monkeypatch, compiler, header, said):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" and compiler else None)
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    if header:
        (tmp_path / "Python.h").touch()
    found = doctor._device()
    assert found.text.startswith("Some GPU, 1.0 GiB free of 2.0 GiB") and said in found.text
    assert bool(found.fix) == bool(said)


def test_an_older_python_is_shown_which_one_is_needed(examine):
    # Where none is installed, this one still tells what an older one could not read.
    ast.parse(Path(doctor.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    for python in sorted(Path.home().glob(".pyenv/versions/3.[89].*/bin/python")):
        lines, status = examine(python, "-S")
        assert status == 1 and lines["python"].startswith("!! python")
        assert "3.11 or newer is needed; make setup PYTHON=" in lines["python"]
        assert all(lines[name].endswith("; make setup") for name in ("packages", "device", "model", "data", "time"))


def test_the_rate_counts_a_multiplication_and_an_addition_each(monkeypatch):
    ticks = iter([0.0, 0.5, 1.0, 1.5])
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks))
    # Two products of (1024, 576) by (576, 1536) in the 1.0 to 1.5 seconds that the clock says.
    assert doctor.gflops(seconds=1.2) == pytest.approx(2 * 2 * 1024 * 576 * 1536 / 1.5 / 1e9)
