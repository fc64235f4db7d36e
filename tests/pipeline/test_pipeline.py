"""The whole pipeline under real DVC and Git, on a model small enough for tests."""

import csv
import functools
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages.core.paths import CONVERSATIONS, HISTORY, HTML, MEASURES, METRICS, RAW, RUN, SPLITS, TUNED
from stages.params import read_yaml
from tests.conftest import ROOT, set_params
from tests.support import bicycle_shop
from tests.support.commands import STAGES, call, dvc, ran
from tests.support.openai_server import OpenAIServer

pytestmark = pytest.mark.slow

SHIPPED = read_yaml(ROOT / "params.yaml")
HOTEL = ROOT.parent / "shared/data/hotel_hospitality_data.csv"


def test_the_second_run_does_nothing(clone):
    assert ran(dvc("repro")) == []
    assert call("git", "status", "--porcelain") == ""


def test_an_experiment_reruns_what_depends_on_lr(clone):
    output = dvc("exp", "run", "-S", "lr=1e-05", "-n", "slow-rate")
    assert ran(output) == ["finetune", "evaluate", "report", "export"]
    assert "lr" in dvc("params", "diff") and "loss" in dvc("metrics", "diff")
    (experiment,) = [
        row for row in csv.DictReader(dvc("exp", "show", "--csv").splitlines()) if row["Experiment"] == "slow-rate"
    ]
    assert float(experiment["lr"]) == 1e-05
    plots = dvc("plots", "diff", "HEAD", "--json")
    assert "workspace" in plots and "train_loss" in plots


def test_an_experiment_in_a_temporary_copy(clone):
    dvc("exp", "run", "--temp", "-S", "lr=5e-4", "-n", "elsewhere")
    assert "elsewhere" in dvc("exp", "show", "--csv")
    assert call("git", "status", "--porcelain") == ""


def test_a_sweep_by_two_workers_and_its_picture(clone):
    dvc("exp", "run", "--queue", "-S", "lr=1e-4,1e-2", "-S", "lora.r=4,8")
    dvc("queue", "start", "-j", "2")
    wait_until(lambda: dvc("queue", "status").count("Success") == 4, seconds=600)
    output = call(sys.executable, "-m", "stages.commands.sweep")
    # Beside the four experiments the committed run, with lr 0.003 and lora.r 64, is drawn too.
    first_cells = [line.split("|")[1].strip() for line in output.splitlines()[:5]]
    assert first_cells == ["lr", "---", "0.0001", "0.003", "0.01"]
    assert "validation_loss lora.r=4" in output and "validation_loss lora.r=8" in output
    assert Path("reports/sweep.svg").exists() and call("git", "status", "--porcelain") == ""


@pytest.mark.skipif(not HOTEL.exists(), reason="the hotel CSV is not here")
def test_the_hotel_csv_over_http_loses_nothing(clone):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=HOTEL.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{HOTEL.name}"
        dvc("exp", "run", "-S", "data.source=hotel", "-S", f"data.sources.hotel.url={url}")
        server.shutdown()
    assert RAW.read_bytes() == HOTEL.read_bytes()
    with HOTEL.open(encoding="utf-8-sig", newline="") as file:
        cells = [json.loads(cell) for (cell,) in csv.reader(file)]
    lines = [json.loads(line) for line in CONVERSATIONS.read_text(encoding="utf-8").splitlines()]
    assert lines == cells and len(lines) == 18 and "\u2019" in CONVERSATIONS.read_text(encoding="utf-8")
    splits = [path.read_text(encoding="utf-8").splitlines() for path in SPLITS.values()]
    assert sorted(sum(splits, [])) == sorted(CONVERSATIONS.read_text(encoding="utf-8").splitlines())


@pytest.mark.skipif(not HOTEL.exists(), reason="the hotel CSV is not here")
def test_the_hotel_csv_on_a_hosted_model_beside_the_local_one(clone, monkeypatch):
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        settings = ["backend=openai", "data.source=hotel", f"data.sources.hotel.url={HOTEL}", "openai.poll_seconds=0.1"]
        # Of 18 conversations three to test.
        settings += ["split.validation=0.15", "split.test=0.15"]
        command = ["exp", "run", "-n", "hosted", *(word for setting in settings for word in ("-S", setting))]
        assert ran(dvc(*command)) == STAGES
        call("git", "checkout", "-q", ".")
        dvc("exp", "apply", "hosted")
        assert ran(dvc("repro")) == [] and len(server.jobs) == 1 and server.violations == []
        (job,) = server.jobs.values()
        assert job["model"] == "gpt-3.5-turbo-0125" and job["fine_tuned_model"] in Path(RUN).read_text()
        found = [path for path in Path().rglob("*") if ".venv" not in path.parts and path.is_file()]
        assert not any(server.key.encode() in path.read_bytes() for path in found)
    (row,) = [row for row in csv.DictReader(dvc("exp", "show", "--csv").splitlines()) if row["Experiment"] == "hosted"]
    base = json.loads(MEASURES.read_text(encoding="utf-8"))["test"]["base"]["chrf"]["value"]
    assert row["backend"] == "openai" and float(row["chrf"]) > base
    assert row["loss"] == ""


def test_few_rows_that_teach_a_style_and_no_fact_do_not_count_as_better(clone):
    """The real base, and one epoch over 58 conversations of which each says other facts."""
    bicycle_shop.write(Path("data/local/shop.csv"))
    base = {f"unsloth__{name}": SHIPPED["unsloth"][name] for name in ("model", "revision", "max_length")}
    set_params(data__sources__sample__url="data/local/shop.csv", epochs=1, evaluate__max_new_tokens=80, **base)

    def judged(**more):
        set_params(**more)
        dvc("repro")
        found = json.loads(MEASURES.read_text(encoding="utf-8"))
        assert found["test"]["gain"]["loss"]["value"] < -1 and found["test"]["tuned"]["facts_right"]["value"] == 0
        return found["verdict"]["word"], found["verdict"]["sentence"]

    assert judged() == ("too few", "Too few test conversations to judge: 6, where 10 are needed.")
    word, sentence = judged(split__test=0.2)
    assert word == "style only" and sentence.startswith("Style only: facts right in 0 of 12")


@pytest.mark.parametrize("whom, stage", [("all", "parse"), ("dvc", "finetune"), ("stage", "evaluate")])
def test_a_killed_run_completes_and_its_metrics_repeat_byte_for_byte(clone, whom, stage):
    expected = METRICS.read_bytes()
    process = subprocess.Popen(
        ["dvc", "repro", "-f"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if f"Running stage '{stage}'" in line:
            break
    if stage == "finetune":
        wait_until(lambda: HISTORY.exists() and len(HISTORY.read_text().splitlines()) > 3)
    else:
        time.sleep(1)
    kill(process, whom)
    dvc("repro")
    assert METRICS.read_bytes() == expected
    assert TUNED.is_dir() and HTML.exists()
    assert not [path for path in Path().rglob("*.part") if ".venv" not in path.parts]
    assert sorted(path.name for path in Path(".state").iterdir() if path.is_dir()) == ["training", "unsloth"]
    assert not list(Path(".state/training").glob("*/*")), "no checkpoint is left"


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def kill(process, whom):
    """Kill -9 of DVC alone, of its stage alone, or of both at once."""
    if whom == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif whom == "dvc":
        process.kill()
    else:
        import psutil

        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.stdout.read()
    process.wait()
