from pathlib import Path

import pytest

from stages import files


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
