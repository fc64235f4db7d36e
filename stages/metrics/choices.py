"""References with one fact altered: a model that knows the fact finds the true one likelier than each of these."""

import random
import re
from collections.abc import Sequence

import numpy as np

from stages.metrics import facts
from stages.metrics.facts import Fact
from stages.metrics.intervals import Mean
from stages.metrics.scoring import Expected

ALTERED = 3
_DIGITS = re.compile(r"\d+")
# Numbers of fewer digits are moved by a little; longer ones are codes, and get other digits.
_SHORT = 2
_FARTHEST = 5


def altered(expected: Sequence[Expected], seed: int) -> list[list[str]]:
    """For each reference its three altered copies; none where no fact of it can be altered so often.

    The first fact that the prompt does not give is altered: its number, or else it becomes another fact of its kind
    from the other references.
    """
    wanted = [facts.unprompted(one.reference, one.given) for one in expected]
    pool: dict[str, dict[str, str]] = {}
    for one, found in zip(expected, wanted, strict=True):
        for fact in found:
            pool.setdefault(fact.kind, {}).setdefault(fact.value, one.reference[fact.start : fact.end])
    return [
        next(filter(None, (_copies(one.reference, fact, pool[fact.kind], seed) for fact in found)), [])
        for one, found in zip(expected, wanted, strict=True)
    ]


def chosen(nll: np.ndarray) -> Mean:
    """How often the reference is the likeliest, from the negative log-likelihoods of it and its altered copies.

    `nll` has the shape (conversations, 1 + altered), the reference first; NaN where a conversation has no copies.
    """
    measured = ~np.isnan(nll).any(axis=1)
    first = nll[:, 0] < np.min(nll[:, 1:], axis=1, initial=np.inf)
    return Mean((first & measured).astype(float), measured.astype(float))


def _copies(reference: str, fact: Fact, pool: dict[str, str], seed: int) -> list[str]:
    """The reference with another value in the fact's place, three times; none if there are not so many values."""
    text = reference[fact.start : fact.end]
    # The same choice for the same fact, whatever else is tested.
    draw = random.Random(f"{seed} {reference} {fact.start}")
    number = _DIGITS.search(text)
    if number:
        others = [text[: number.start()] + other + text[number.end() :] for other in _numbers(number[0], draw)]
    else:
        values = [other for value, other in sorted(pool.items()) if value != fact.value and other != text]
        others = draw.sample(values, min(ALTERED, len(values)))
    if len(others) < ALTERED:
        return []
    return [reference[: fact.start] + other + reference[fact.end :] for other in others]


def _numbers(digits: str, draw: random.Random) -> list[str]:
    if len(digits) <= _SHORT:
        near = range(max(1, int(digits) - _FARTHEST), int(digits) + _FARTHEST + 1)
        return [str(number) for number in draw.sample([one for one in near if one != int(digits)], ALTERED)]
    found: list[str] = []
    while len(found) < ALTERED:
        other = "".join(draw.choice("0123456789") for _ in digits)
        if other not in {digits, *found}:
            found.append(other)
    return found
