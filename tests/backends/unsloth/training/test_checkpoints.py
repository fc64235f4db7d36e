"""A checkpoint is complete if its manifest lists exactly the existing files, with sizes and digests."""

import hashlib
import json

import pytest

from stages.backends.unsloth.training import checkpoints
from stages.core import files


def checkpoint(parent, step, **state):
    """A sealed checkpoint with two files."""
    folder = checkpoints.folder_of(parent, step)
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"weights of step %d" % step)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, **state}))
    checkpoints.seal(folder)
    return folder


def names(parent):
    return sorted(path.name for path in parent.iterdir())


def test_the_folder_is_the_one_that_transformers_uses(tmp_path):
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

    folder = checkpoints.folder_of(tmp_path, 7)
    assert folder == tmp_path / f"{PREFIX_CHECKPOINT_DIR}-7"
    folder.mkdir()
    assert get_last_checkpoint(str(tmp_path)) == str(folder)


def test_the_manifest_lists_each_file_with_its_size_and_digest(tmp_path):
    (tmp_path / "b").write_bytes(b"some")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    checkpoints.seal(tmp_path)
    expected = {"a": [0, hashlib.sha256(b"").hexdigest()], "b": [4, hashlib.sha256(b"some").hexdigest()]}
    assert json.loads((tmp_path / "manifest.json").read_text()) == expected
    checkpoints.seal(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == expected, "the manifest does not list itself"


def test_every_file_is_synced_before_the_manifest_is_written(tmp_path, monkeypatch):
    done = []
    sync, write = files.sync, files.write_json
    monkeypatch.setattr(files, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(files, "write_json", lambda path, value: (done.append("manifest"), write(path, value)))
    checkpoint(tmp_path, 3)
    assert done[:3] == ["trainer_state.json", "weights.bin", "manifest"]


def test_the_latest_complete_checkpoint_is_found_by_its_number(tmp_path):
    for step in (9, 10, 2):
        checkpoint(tmp_path, step)
    found = checkpoints.recover(tmp_path)
    assert found.step == 10 and found.folder == tmp_path / "checkpoint-10"
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2", "checkpoint-9"], "older checkpoints are kept"


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "best").mkdir()
    assert checkpoints.recover(tmp_path) is None and names(tmp_path) == ["best", "checkpoint-best"]


def flip(folder):
    content = bytearray((folder / "weights.bin").read_bytes())
    content[3] ^= 1
    (folder / "weights.bin").write_bytes(content)


TEARS = {
    "a byte of the same length differs": flip,
    "cut short": lambda folder: (folder / "weights.bin").write_bytes(b"we"),
    "a file is missing": lambda folder: (folder / "weights.bin").unlink(),
    "a file is there that is not listed": lambda folder: (folder / "more.bin").write_bytes(b"x"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"weights.bin": ['),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_an_incomplete_checkpoint_is_deleted_and_the_previous_one_is_used(tmp_path, tear):
    for step in (3, 6, 9):
        checkpoint(tmp_path, step)
    TEARS[tear](tmp_path / "checkpoint-9")
    assert checkpoints.recover(tmp_path).step == 6
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]


def test_incomplete_checkpoints_are_deleted_even_if_none_is_left(tmp_path):
    for step in (3, 6):
        flip(checkpoint(tmp_path, step))
    assert checkpoints.recover(tmp_path) is None and names(tmp_path) == []


def test_only_checkpoints_of_later_steps_are_dropped(tmp_path):
    for step in (3, 6, 10):
        checkpoint(tmp_path, step)
    checkpoints.drop_after(tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]
    checkpoints.drop_after(tmp_path, 0)
    assert names(tmp_path) == []


def test_a_checkpoint_has_the_state_of_a_callback(tmp_path):
    kept = {"KeepBest": {"args": {"a": 1}, "attributes": {"stale": 2}}, "Other": {"attributes": {"stale": 5}}}
    checkpoint(tmp_path, 4, stateful_callbacks=kept)
    assert checkpoints.recover(tmp_path).callback("KeepBest") == {"stale": 2}
