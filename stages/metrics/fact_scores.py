"""Answers scored by their facts: parts and wholes, each of shape (answers,); their sums make a share."""

from collections.abc import Callable, Sequence

import numpy as np

from stages.metrics import facts
from stages.metrics.facts import Found
from stages.metrics.scoring import Expected

Shares = tuple[np.ndarray, np.ndarray]


def recall(answers: Sequence[str], expected: Sequence[Expected]) -> Shares:
    """Facts of the reference that the answer has, and all facts of the reference; those of the prompt do not count."""
    return _shares(answers, expected, lambda found: (found.recalled, found.wanted))


def precision(answers: Sequence[str], expected: Sequence[Expected]) -> Shares:
    """Facts of the answer that are in the reference, and all facts of the answer; those of the prompt do not count."""
    return _shares(answers, expected, lambda found: (found.right, found.stated))


def right(answers: Sequence[str], expected: Sequence[Expected]) -> Shares:
    """1 where the answer has all facts of the reference and no invented one; and 1 where the reference has facts."""
    return _shares(answers, expected, lambda found: (all_right(found), found.wanted > 0))


def all_right(found: Found) -> bool:
    """Whether the answer has all facts of a reference that has some, and no invented one."""
    return 0 < found.wanted == found.recalled and not found.invented


def _shares(answers: Sequence[str], expected: Sequence[Expected], counts: Callable[[Found], tuple[int, int]]) -> Shares:
    pairs = zip(answers, expected, strict=True)
    found = [counts(facts.compare(answer, one.reference, one.given)) for answer, one in pairs]
    parts, wholes = np.array(found, float).reshape(-1, 2).T
    return parts, wholes
