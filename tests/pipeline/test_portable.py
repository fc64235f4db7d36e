"""What has to work on macOS too, where make is 3.81 and sed that of BSD."""

import re

import pytest

from tests.conftest import ROOT
from tests.support.commands import call

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_make_names_the_commands_of_the_environment_by_their_paths():
    # Make 3.81 starts simple commands itself and does not look for them in the PATH that it exports.
    done = ["--assume-old=setup", "--assume-old=.venv/complete"]
    targets = ["run", "test", "test-all", "lint", "review", "check", "chat"]
    commands = call("make", "--dry-run", "--directory", str(ROOT), "--no-print-directory", *done, *targets).splitlines()
    assert len(commands) == 10 and all(command.startswith(".venv/bin/") for command in commands)


def test_make_help_lists_each_target_with_a_sentence():
    targets = re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text())
    lines = call("make", "--directory", str(ROOT), "--no-print-directory", "help").splitlines()
    assert [line.split()[0] for line in lines] == targets and all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_use_no_command_that_only_gnu_has(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"sed -i |sha256sum|grep -\w*P|readlink -f|date -d|head -n -", text)
