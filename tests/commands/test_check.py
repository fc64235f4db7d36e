"""Real runs of a small pipeline under DVC, committed, and then looked at in a clone that has no cache."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.commands import check
from stages.core.cli import UserError
from tests.conftest import ROOT, set_params
from tests.support.history import begin, commit, git

PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p data && tr a-z A-Z < source.txt > data/upper.txt
    deps: [source.txt]
    outs: [data/upper.txt]
  train:
    cmd: cat data/upper.txt lib/a.py > model.txt && wc -c < model.txt > reports/size.txt
    params: [lr, layers, data.sources]
    deps: [data/upper.txt, lib]
    outs:
      - model.txt
      - reports/size.txt: {cache: false}
  report:
    cmd: cat reports/size.txt > reports/report.txt
    params:
      - params.yaml:
    deps: [reports/size.txt]
    outs:
      - reports/report.txt: {cache: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A committed run; tests work on clones of it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        shutil.copy(ROOT / "params.yaml", folder)
        shutil.copy(ROOT / ".dvcignore", folder)
        begin()
        for path, text in {
            "dvc.yaml": PIPELINE,
            "source.txt": "one\n",
            "lib/a.py": "x = 1\n",
            "reports/.gitkeep": "",
            "data/.gitkeep": "",
        }.items():
            Path(path).parent.mkdir(exist_ok=True)
            Path(path).write_text(text)
        subprocess.run([Path(sys.executable).with_name("dvc"), "repro", "-q"], check=True)
        commit()
    return folder


@pytest.fixture
def clone(finished, tmp_path, monkeypatch):
    """What a pull request's check sees: all that Git has, and no cache."""
    git("clone", "-q", str(finished), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert not Path("model.txt").exists() and not Path(".dvc/cache").exists()


def stale():
    """What the command names as stale, a line each."""
    with pytest.raises(UserError) as error:
        check.main()
    first, *rest = str(error.value).splitlines()
    count = len({line.split(":")[0] for line in rest})
    assert first.startswith(f"{count} of 3 stages {'is' if count == 1 else 'are'} stale: ")
    return rest


def replace(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_a_run_belongs_to_what_it_was_made_from(clone, capsys):
    check.main()
    expected = "dvc.lock and the reports match the code, parameters and data here: 3 stages\n"
    assert capsys.readouterr().out == expected
    assert git("status", "--porcelain") == ""


def test_a_run_that_still_has_its_outs_belongs_too(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    check.main()


def test_code_and_data_that_changed_are_named(clone):
    Path("source.txt").write_text("two\n")
    Path("lib/b.py").write_text("y = 2\n")
    assert stale() == ["prepare: source.txt changed", "train: lib changed"]


def test_bytecode_beside_code_changes_nothing(clone):
    Path("lib/__pycache__").mkdir()
    Path("lib/__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    check.main()


def test_code_that_is_gone_is_named(clone):
    shutil.rmtree("lib")
    assert stale() == ["train: lib is missing"]


def test_parameters_that_differ_are_named_with_both_values(clone):
    set_params(lr=0.002, layers__lr={"mlp": 0.5}, seed=7)
    assert stale() == [
        "train: lr 0.003 → 0.002",
        "train: layers.lr.mlp absent → 0.5",
        "report: seed 42 → 7",
        "report: lr 0.003 → 0.002",
        "report: layers.lr.mlp absent → 0.5",
    ]


def test_parameters_that_only_look_different_are_the_same(clone):
    replace("params.yaml", "lr: 0.003", "lr: 3.0e-3")
    check.main()


def test_credentials_in_an_address_are_not_shown(clone):
    # Nothing says that these are credentials.
    replace("params.yaml", "https://raw.", "sftp://MYSELF@raw.")
    found = stale()
    assert found and "MYSELF" not in "".join(found)


def test_a_command_that_changed_is_named(clone):
    replace("dvc.yaml", "tr a-z A-Z", "tr a-y A-Y")
    assert stale() == ["prepare: its command changed"]


def test_a_dependency_or_an_out_that_the_run_did_not_have_is_named(clone):
    Path("extra.txt").write_text("x")
    replace("dvc.yaml", "deps: [source.txt]", "deps: [source.txt, extra.txt]")
    replace("dvc.yaml", "outs: [data/upper.txt]", "outs: [data/upper.txt, data/more.txt]")
    assert stale() == ["prepare: extra.txt is a new dependency", "prepare: data/more.txt is a new out"]


def test_a_stage_that_never_ran_is_named(clone):
    Path("dvc.yaml").write_text(PIPELINE + "  extra:\n    cmd: date\n    deps: [source.txt]\n")
    with pytest.raises(UserError, match="1 of 4 stages is stale.*\nextra: dvc.lock has no run of it"):
        check.main()


def test_without_a_lock_no_stage_ever_ran(clone):
    Path("dvc.lock").unlink()
    assert stale() == [f"{name}: dvc.lock has no run of it" for name in ("prepare", "train", "report")]


def test_a_report_that_was_edited_is_named(clone):
    Path("reports/size.txt").write_text("1\n")
    assert stale() == ["train: reports/size.txt is not what the run wrote"]


def test_a_report_that_was_not_committed_is_named(clone):
    git("rm", "-q", "reports/report.txt")
    assert stale() == ["report: reports/report.txt is missing"]


def test_a_run_of_one_stage_alone_leaves_those_after_it_stale(clone):
    # As after `dvc repro prepare` on other data: its out is another, and train has not seen it.
    Path("source.txt").write_text("two\n")
    subprocess.run([Path(sys.executable).with_name("dvc"), "repro", "-q", "prepare"], check=True)
    assert stale() == ["train: data/upper.txt was made again since"]


def test_a_lock_with_merge_conflicts_is_refused(clone):
    Path("dvc.lock").write_text("<<<<<<< HEAD\n" + Path("dvc.lock").read_text())
    with pytest.raises(UserError, match="DVC cannot read dvc.yaml or dvc.lock"):
        check.main()


def test_wrong_parameters_are_named_first(clone):
    replace("params.yaml", "lr: 0.003", "lr: fast")
    with pytest.raises(UserError, match="lr: 'fast' is not allowed"):
        check.main()
