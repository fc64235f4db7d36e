"""Precision and recall of each finder of the gate on cells of our own, as docs/data-gate.md gives them."""

from collections import Counter

import pytest

from tests.support import finders

EACH = {part: finders.counts(part) for part in finders.PARTS}


def test_there_are_enough_cells_for_and_against_each_finder():
    cells = finders.cells()
    parts = Counter(cell["part"] for cell in cells)
    assert parts.total() >= 300 and min(parts.values()) >= 100
    assert len({cell["text"] for cell in cells}) == len(cells)
    for name in finders.FINDERS:
        for part in finders.PARTS:
            assert EACH[part][name]["has"] >= 3, (name, part)


@pytest.mark.parametrize("name", finders.FINDERS)
def test_a_finder_is_right_and_misses_little(name):
    own, held_out = (finders.precision_and_recall(EACH[part][name]) for part in finders.PARTS)
    assert min(own) >= 0.85 and min(held_out) >= 0.75


def test_the_figures_in_the_docs_are_those_of_today():
    text = finders.PAGE.read_text(encoding="utf-8")
    assert finders.page(text) == text
