"""The file list is the architecture: nine stages, rooms, and files that fit on a few screens."""

import pytest

from tests.conftest import ROOT
from tests.support.commands import STAGES, call

ROOMS = {"backends", "commands", "core", "dataset", "endpoint", "gate", "metrics", "params", "reporting"}
LISTED = call("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.py").splitlines()
SOURCES = [path for path in LISTED if (ROOT / path).exists()]


def lines(path):
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def test_the_top_of_stages_holds_the_stages_and_nothing_else():
    names = {path.name for path in (ROOT / "stages").iterdir() if path.name != "__pycache__"}
    assert names == {"__init__.py", *(f"{stage}.py" for stage in STAGES), *ROOMS}


@pytest.mark.parametrize("path", SOURCES)
def test_no_file_has_more_than_400_lines(path):
    assert lines(path) <= 400


def test_the_readme_has_at_most_150_lines():
    assert lines("README.md") <= 150
