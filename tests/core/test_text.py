"""Text of others, as a terminal may show it."""

import subprocess
import sys

import pytest

from stages.core.text import harmless, printable
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("moc.\u202eelpmaxe", r"moc.\u202eelpmaxe"),
        ("one\rtwo\u2028three\x85", r"one\rtwo\u2028three\x85"),
        ("half \ud800", r"half \ud800"),
        # What people write stays as it is: spaces that do not break, and joiners within words and pictures.
        ("10\u00a0€ – 日本語 می\u200cخواهم 👩\u200d🍳", "10\u00a0€ – 日本語 می\u200cخواهم 👩\u200d🍳"),
        ("one\n\ttwo", "one\n\ttwo"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_all_else_stays(text, shown):
    assert harmless(text) == shown


def test_text_in_one_line_has_no_line_break_either():
    assert printable("one\ntwo\t\x1b") == r"one\ntwo\t\x1b"


HOSTILE = """
from stages.core.cli import UserError, notice, run

def main():
    notice("\\x1b[2Jnotice\\u202e")
    raise UserError("wrong\\x1b[31m\\nsecond\\rline")

run(main)
"""


def test_notices_and_errors_reach_the_terminal_as_text():
    done = subprocess.run([sys.executable, "-c", HOSTILE], cwd=ROOT, capture_output=True)
    assert done.stdout.decode() == "\\x1b[2Jnotice\\u202e\n"
    assert done.stderr.decode() == "error: wrong\\x1b[31m\n  second\\rline\n" and done.returncode == 1
