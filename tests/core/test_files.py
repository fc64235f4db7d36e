import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core import files
from tests.conftest import ROOT


def test_a_failed_write_leaves_the_former_file_and_nothing_else(project):
    path = project / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert sorted(one.name for one in project.iterdir()) == ["a.json", "params.yaml"]


def test_scratch_is_empty_whatever_a_killed_run_left(project):
    Path("work").mkdir()
    Path("work/leftover").touch()
    with files.scratch(Path("work")) as folder:
        assert not list(folder.iterdir())
        (folder / "new").touch()
    assert not folder.exists()


def test_state_lies_in_the_main_checkout(project, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert files.state_dir("a", "b") == tmp_path / "main/.state/a/b"


@pytest.mark.parametrize(
    "write, new", [(files.write_text, "new\n"), (lambda path, text: files.write_json(path, text.strip()), '"new"\n')]
)
def test_who_is_reading_a_file_sees_none_of_its_replacement(project, write, new):
    path = project / "a.txt"
    files.write_text(path, "former\n" * 10_000)
    with path.open(encoding="utf-8") as reader:
        begun = reader.read(7)
        write(path, "new\n")
        assert begun + reader.read() == "former\n" * 10_000
    assert path.read_text(encoding="utf-8") == new


@pytest.mark.parametrize("write", [files.write_text, files.write_json])
def test_a_full_disk_leaves_the_former_text_whole(project, monkeypatch, write):
    path = project / "a.txt"
    write(path, "former")
    former = path.read_bytes()
    real = Path.write_text

    def half(path, text, *args, **kwargs):
        real(path, text[: len(text) // 2], *args, **kwargs)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        write(path, "a longer text")
    assert path.read_bytes() == former
    assert sorted(one.name for one in project.iterdir()) == ["a.txt", "params.yaml"]


def test_the_content_is_on_the_disk_before_the_name_is(project, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (done.append("replace"), replace(old, new))[1])
    files.write_text(project / "a.txt", "a")
    assert done == ["fsync", "replace"]


def test_the_temporary_file_is_a_hidden_one_beside_its_place_in_folders_that_are_made(project):
    path = project / "one/two/a.txt"
    with files.replacing(path) as temporary:
        # On another file system the rename would be a copy.
        assert temporary.parent == path.parent and not path.exists()
        assert temporary.name.startswith(".a.txt.") and temporary.name.endswith(".part")
    assert path.exists()


KILLED = """
import os, pathlib, sys
from stages.core import files
with files.replacing(pathlib.Path("a.txt")) as temporary:
    temporary.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_kept(project):
    command = [sys.executable, "-c", KILLED]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout.readline() == b"written\n"
        files.write_text(project / "a.txt", "whole")
        (half,) = project.glob(".a.txt.*.part")
        assert half.read_text() == "half"
        writer.kill()
    assert half.exists()
    files.write_text(project / "b.txt", "another file")
    assert half.exists()
    files.write_text(project / "a.txt", "again")
    assert not half.exists() and (project / "a.txt").read_text() == "again"


def test_git_never_takes_a_half_written_file(project):
    ignored = ["data/.raw.csv.x1_2.part", ".params.yaml.abc.part", "reports/eval/.measures.json.q.part"]
    found = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ignored


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_files_have_the_rights_that_the_umask_leaves(project, mask, mode):
    former = os.umask(mask)
    try:
        files.write_text(project / "a.txt", "a")
        assert os.umask(mask) == mask
    finally:
        os.umask(former)
    assert (project / "a.txt").stat().st_mode & 0o777 == mode


def test_writing_leaves_no_file_open(project):
    files.write_text(project / "a.txt", "a")
    before = len(list(Path("/dev/fd").iterdir()))
    files.write_text(project / "a.txt", "a")
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_text_is_utf_8_with_line_feeds_and_json_keeps_letters(project):
    files.write_text(project / "a.txt", "é\n日\n")
    assert (project / "a.txt").read_bytes() == b"\xc3\xa9\n\xe6\x97\xa5\n"
    files.write_json(project / "a.json", {"é": [1]})
    assert (project / "a.json").read_bytes() == b'{\n  "\xc3\xa9": [\n    1\n  ]\n}\n'


def test_checksums_are_the_published_ones_of_abc(project):
    path = project / "abc"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.md5(path) == "900150983cd24fb0d6963f7d28e17f72"


def test_without_dvc_state_lies_here_in_a_folder_that_is_made_once(project):
    assert files.state_dir("a", "b") == files.state_dir("a", "b") == project / ".state/a/b"
    assert (project / ".state/a/b").is_dir()


def test_a_scratch_folder_that_its_user_removed_is_no_error(project):
    with files.scratch(Path("deep/work")) as folder:
        folder.rmdir()
    assert not folder.exists()
