import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.core import artifacts, revisions
from stages.core.cli import UserError
from tests.support.history import begin, commit, git

NOTE = Path("note.txt")


@pytest.fixture
def notes(repository):
    """notes(text) commits a text in note.txt."""

    def write(text):
        NOTE.write_text(text)
        return commit(text)

    return write


@pytest.mark.parametrize("name", ["HEAD~1", "HEAD^1", "v1", "topic", "short"])
def test_a_revision_has_the_files_of_its_commit(notes, name):
    first = notes("first")
    git("tag", "v1")
    git("branch", "topic")
    notes("second")
    NOTE.write_text("third")
    found = revisions.resolve(first[:8] if name == "short" else name)
    assert found.commit == first and found.text(NOTE) == "first"
    assert revisions.resolve("workspace").text(NOTE) == "third"
    assert found.text(Path("nowhere")) is None and revisions.WORKSPACE.text(Path("nowhere")) is None


def test_an_experiment_is_found_by_its_name(notes):
    notes("first")
    Path("dvc.yaml").write_text("params: [params.yaml]\n")
    commit()
    NOTE.write_text("tried")
    subprocess.run([Path(sys.executable).with_name("dvc"), "exp", "save", "-n", "slower"], check=True)
    git("checkout", "-q", ".")
    assert revisions.resolve("slower").text(NOTE) == "tried" and NOTE.read_text() == "first"


def test_an_unknown_revision_is_refused_with_where_to_look(repository):
    with pytest.raises(UserError, match="unknown Git revision 'slwoer'; `git log --all`"):
        revisions.resolve("slwoer")


def test_without_a_commit_there_is_nothing_to_compare_with(project):
    with pytest.raises(UserError, match="there is no commit here"):
        revisions.branching_point()
    begin()
    with pytest.raises(UserError, match="there is no commit here"):
        revisions.resolve("HEAD")


def test_work_is_compared_with_where_it_left_main(notes):
    left = notes("common")
    git("checkout", "-qb", "topic")
    notes("mine")
    git("checkout", "-q", "main")
    notes("theirs")
    git("checkout", "-q", "topic")
    assert revisions.branching_point() == revisions.Revision(f"main ({left[:7]})", left)


def test_the_shared_main_comes_before_the_own_one(notes):
    shared = notes("shared")
    git("update-ref", "refs/remotes/origin/main", shared)
    notes("not pushed yet")
    assert revisions.branching_point() == revisions.Revision(f"origin/main ({shared[:7]})", shared)


@pytest.mark.parametrize("trunk", ["master", "develop"])
def test_a_main_branch_of_another_name_is_found(notes, trunk):
    left = notes("common")
    git("branch", "-m", "main", trunk)
    git("update-ref", f"refs/remotes/origin/{trunk}", left)
    git("symbolic-ref", "refs/remotes/origin/HEAD", f"refs/remotes/origin/{trunk}")
    notes("mine")
    assert revisions.branching_point() == revisions.Revision(f"origin/{trunk} ({left[:7]})", left)


def test_master_is_a_main_branch_without_a_remote(notes):
    left = notes("common")
    git("branch", "-m", "main", "master")
    git("checkout", "-qb", "topic")
    notes("mine")
    assert revisions.branching_point() == revisions.Revision(f"master ({left[:7]})", left)


def test_a_history_that_is_cut_off_is_refused(notes, tmp_path_factory, monkeypatch):
    notes("common")
    git("checkout", "-qb", "topic")
    notes("mine")
    git("checkout", "-q", "main")
    notes("theirs")
    clone = tmp_path_factory.mktemp("shallow") / "clone"
    git("clone", "-q", "--depth", "1", "--no-single-branch", "--branch", "topic", Path.cwd().as_uri(), str(clone))
    monkeypatch.chdir(clone)
    with pytest.raises(UserError, match="origin/HEAD and .* cut off here; `git fetch --unshallow`, or name a revision"):
        revisions.branching_point()


def test_without_a_main_branch_work_is_compared_with_the_last_commit_and_never_with_itself(notes):
    notes("common")
    git("branch", "-m", "trunk")
    with pytest.raises(UserError, match="nothing differs from the last commit.*name a revision or an experiment"):
        revisions.branching_point()
    NOTE.write_text("changed")
    assert revisions.branching_point() == revisions.HEAD


def test_a_folder_inside_the_repository_has_its_own_files(notes, monkeypatch):
    Path("inner").mkdir()
    Path("inner/note.txt").write_text("inner")
    commit()
    monkeypatch.chdir("inner")
    assert revisions.HEAD.text(NOTE) == "inner"


def test_a_repository_of_another_user_is_named_with_the_command_that_trusts_it(project, monkeypatch):
    git("init", "-q")
    # Git's own way to test this.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(
        UserError, match=r"belongs to another user\n.*git config --global --add safe.directory"
    ) as error:
        revisions.branching_point()
    assert str(project) in str(error.value)


@pytest.mark.parametrize("md5", ["../../../etc/passwd", "ab", "0" * 31 + "G", "0" * 32 + "/x", 7, None])
def test_an_md5_that_is_none_never_becomes_a_path(repository, md5):
    lock = {"stages": {"split": {"outs": [{"path": "data/a", "md5": md5}]}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(UserError, match="dvc.lock of workspace is damaged"):
        revisions.WORKSPACE.checksums()


def test_checksums_of_files_and_folders_are_read(repository):
    outs = [{"path": "data/a", "md5": "0" * 32}, {"path": "models/b", "md5": "f" * 32 + ".dir"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"split": {"outs": outs}}}))
    assert revisions.WORKSPACE.checksums() == {"data/a": "0" * 32, "models/b": "f" * 32 + ".dir"}


def test_a_file_that_is_larger_than_any_of_ours_is_refused(notes, monkeypatch):
    notes("a note")
    monkeypatch.setattr(artifacts, "LIMIT", 3)
    for revision in (revisions.WORKSPACE, revisions.HEAD):
        with pytest.raises(UserError, match=rf"of {revision.name} is damaged \(it has more than 3 bytes\)"):
            revision.content(NOTE)
