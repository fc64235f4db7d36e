"""dvc.yaml says what each stage reads and writes; here each stage is run, and what it really did is compared."""

import importlib
import json
import shutil
from itertools import chain, islice
from pathlib import Path, PurePath
from unittest import mock

import pytest
import yaml

from stages.backends import model_card
from stages.backends.openai.base import models
from stages.backends.openai.training import jobs
from stages.backends.unsloth.export import gguf
from stages.core.paths import SUITE
from stages.params import Params
from tests.conftest import ROOT, set_params
from tests.support.commands import STAGES
from tests.support.openai_server import OpenAIServer
from tests.support.recorder import leaves, recorded

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
EVERYTHING = {"params.yaml": None}

# Knobs that a stage reads and does not declare, because no result of it depends on them.
KNOBS_WITHOUT_EFFECT = {
    # It must name the endpoint that finetune, which declares it, recorded in models/tuned; else the stage stops.
    ("evaluate", "openai.base_url"),
    # What an evaluation will cost is estimated before a training is paid.
    ("finetune", "evaluate.max_new_tokens"),
    # A limit stops the stage; it changes no result.
    ("evaluate", "openai.max_cost_usd"),
    # The card's words. finetune declares them, and writes them into the card in models/tuned, a dependency of export.
    *(("export", key) for key in (*model_card.shown(), "unsloth.model", "unsloth.revision")),
}
# A source that does not exist should be refused by the first stage, before DVC looks for what belongs to it.
DECLARED_TO_BE_CHECKED = {("base", "data.source")}
# The same of files: the card names the checksum of this split, and the price of an evaluation depends on its size.
FILES_WITHOUT_EFFECT = {("export", "data/splits/validation.jsonl"), ("finetune", "reports/splits.json")}
# Files that a stage declares and does not open: the report shows their checksums, which DVC writes into dvc.lock.
SHOWN_BY_CHECKSUM = {("report", "data/raw.csv"), ("report", "models/base"), ("report", "models/tuned")}
# A file that is opened only when something is wrong: a hosted training names the rows that its service would refuse.
READ_FOR_AN_ERROR = {("finetune", "data/signals.parquet")}
# params.yaml is declared key by key; dvc.lock changes with every run.
NO_DEPENDENCY = {"params.yaml", "dvc.lock"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_base, lab):
    """For each backend and stage what was recorded when it ran, on a few conversations and a small model."""
    with pytest.MonkeyPatch.context() as patch, OpenAIServer() as server:
        folder = tmp_path_factory.mktemp("project")
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        patch.setenv("XDG_STATE_HOME", str(folder / ".home"))
        patch.setenv("OPENAI_BASE_URL", server.url)
        patch.setenv("OPENAI_API_KEY", server.key)
        patch.setattr(jobs, "_LOOK_SECONDS", 0.01)
        write_project(small_base)
        # The other place that is watched for sources.
        set_params(data__source="mine")
        local = ran("download")
        set_params(data__source="sample")
        found = {name: {"unsloth": ran(name, lab)} for name in STAGES}
        found["download"]["local"] = local
        set_params(backend="openai")
        for name in (name for name in STAGES if "backend" in PIPELINE[name].get("params", [])):
            found[name]["openai"] = ran(name)
        assert server.violations == []
    return found


def write_project(base):
    shutil.copy(ROOT / "params.yaml", ".")
    SUITE.parent.mkdir()
    shutil.copy(ROOT / SUITE, SUITE)
    with (ROOT / "data/sample.csv").open(encoding="utf-8") as sample:
        Path("data/sample.csv").write_text("".join(islice(sample, 30)), encoding="utf-8")
    Path("data/local").mkdir()
    shutil.copy("data/sample.csv", "data/local/mine.csv")
    set_params(
        data__sources__mine={"url": "data/local/mine.csv", "sha256": None, "format": "messages"},
        unsloth__model=str(base),
        unsloth__revision=None,
        unsloth__max_length=2048,
        openai__poll_seconds=0.01,
        epochs=1,
        evaluate__max_new_tokens=2,
        evaluate__resamples=100,
        export__formats=["safetensors", "gguf", "ollama"],
    )


def ran(name, lab=None):
    """Run the stage, finetune in the process of `lab` where there is one, and return what was recorded."""
    if name == "finetune" and lab:
        print(json.dumps([str(Path.cwd()), "reads", []]), file=lab.stdin, flush=True)
        error, found = json.loads(lab.stdout.readline())
        assert error is None
        return found
    # What a stage of this process read before is read again.
    models.table.cache_clear()
    stage = importlib.import_module(f"stages.{name}")
    # GGUF is written by another program, which is fetched from the network.
    write = mock.patch.object(gguf, "write", lambda model, path, kind: path.write_text("GGUF"))
    with write, mock.patch.object(gguf, "check", lambda model: None), recorded() as found:
        stage.main()
    return found


def declared_knobs(name, backend):
    """The keys of params.yaml that the stage declares, each with the leaves that it covers."""
    keys = [key for key in PIPELINE[name].get("params", []) if isinstance(key, str)]
    declared = {key: covered(key) for key in (key.replace("${backend}", backend) for key in keys)}
    return declared | {knob: {knob} for knob in (leaves(Params) if EVERYTHING in PIPELINE[name]["params"] else ())}


def covered(key):
    # Sources have names of their own.
    key = "data.sources" if key.startswith("data.sources.") else key
    return {knob for knob in leaves(Params) if is_in(knob, key, ".")}


def is_in(name, place, separator="/"):
    return name == place or name.startswith(place + separator)


def declared_files(name, backend):
    entries = [entry for entry in PIPELINE[name].get("params", []) if isinstance(entry, dict) and entry != EVERYTHING]
    return {path.replace("${backend}", backend) for path in [*PIPELINE[name]["deps"], *chain(*entries)]}


def is_code(path):
    """Whether test_dependencies.py looks after it."""
    return path == "constraints.txt" or (path.startswith("stages/") and PurePath(path).suffix in ("", ".py"))


def declared_outs(name):
    entries = [*PIPELINE[name].get("outs", []), *PIPELINE[name].get("metrics", [])]
    return {path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)}


def knobs_taken(found):
    """What it asked for by name, and what it took with many others at once."""
    return {*found["knobs"], *chain(*found["dumped"].values())}


def files_read(name, found):
    """What it read and does not make itself; the folders around what it makes are looked for before they are made."""
    made = declared_outs(name)
    return {
        path
        for path in found["read"]
        if not any(is_in(path, out) or is_in(out, path) for out in made) and path not in NO_DEPENDENCY
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_every_knob_that_it_reads(name, runs):
    undeclared = set()
    for backend, found in runs[name].items():
        undeclared |= knobs_taken(found) - set().union(*declared_knobs(name, backend).values())
    assert undeclared == set().union(*(covered(key) for stage, key in KNOBS_WITHOUT_EFFECT if stage == name))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_every_knob_that_it_declares(name, runs):
    # All knobs at once, as a fingerprint takes them, say nothing about a single one; but the report shows them all.
    read = set().union(*(knobs_taken(found) if name == "report" else found["knobs"] for found in runs[name].values()))
    never = {key for one in runs[name] for key, knobs in declared_knobs(name, one).items() if not knobs & read}
    assert never == {key for stage, key in DECLARED_TO_BE_CHECKED if stage == name}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_every_file_that_it_reads(name, runs):
    undeclared = set()
    for backend, found in runs[name].items():
        deps = declared_files(name, backend)
        undeclared |= {path for path in files_read(name, found) if not any(is_in(path, dep) for dep in deps)}
    assert undeclared == {path for stage, path in FILES_WITHOUT_EFFECT if stage == name}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_every_file_that_it_declares(name, runs):
    read = set().union(*(files_read(name, found) for found in runs[name].values()))
    declared = {path for path in declared_files(name, "unsloth") if not is_code(path)}
    never = {dep for dep in declared if not any(is_in(path, dep) for path in read)}
    assert never == {path for stage, path in SHOWN_BY_CHECKSUM | READ_FOR_AN_ERROR if stage == name}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_the_outs_that_it_declares_and_nothing_else(name, runs):
    written, outs = runs[name]["unsloth"]["written"], declared_outs(name)
    assert {path for path in written if not any(is_in(path, out) for out in outs)} == set()
    assert {out for out in outs if not any(is_in(path, out) for path in written)} == set()


def test_every_stage_is_compared():
    assert list(PIPELINE) == STAGES
