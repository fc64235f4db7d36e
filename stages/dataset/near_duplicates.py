"""Prompts that are nearly the same: sketches, groups and nearest neighbours, without comparing every pair."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from rensa import RMinHash

# Share of common character 4-grams from which two prompts count as nearly the same.
SIMILAR = 0.8
_PERMUTATIONS = 64
# Bands of four: prompts at 0.8 share one with a probability above 0.999.
_BAND = 4
# How many bands decide on the order in which prompts with a band in common are compared, and with how many before it.
_SORTED_BY = 3
_BEFORE = 2
_SEED = 1
_GRAM = 4
# Characters of a prompt that count.
_LENGTH = 10_000
SKETCH_BYTES = 4 * _PERMUTATIONS
# Pairs compared at once, to bound memory.
_AT_ONCE = 100_000


def sketch(text: str) -> bytes:
    """MinHash (Broder 1997) of the set of character 4-grams in the text's first 10,000 characters."""
    text = text[:_LENGTH]
    made = RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    made.update(list({text[at : at + _GRAM] for at in range(max(1, len(text) - _GRAM + 1))}))
    return np.array(made.digest(), np.uint32).tobytes()


def matrix(sketches: pa.ChunkedArray) -> np.ndarray:
    """A column of sketches, of which none may be null, as an array of shape (prompts, permutations)."""
    flat = sketches.combine_chunks()
    values = np.frombuffer(flat.buffers()[1], np.uint32) if len(flat) else np.empty(0, np.uint32)
    return values.reshape(-1, _PERMUTATIONS)[flat.offset : flat.offset + len(flat)]


def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of sketches: the share of permutations in which they agree."""
    return (left == right).mean(axis=-1)


def groups(sketches: np.ndarray) -> np.ndarray:
    """A group's number for each prompt, shape (prompts,): nearly equal prompts, and those that they link, share one.

    Prompts with the same values in a band are sorted by the bands after it, and each is compared with the first of
    them and with the few before it, so that time grows with the number of prompts and not with its square.
    """
    parents = np.arange(len(sketches))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = at = parents[parents[at]]
        return at

    for band in range(_PERMUTATIONS // _BAND):
        for these, those in _candidates([_key(sketches, band + after) for after in range(_SORTED_BY)]):
            for some in np.array_split(np.arange(len(these)), len(these) // _AT_ONCE + 1):
                close = similarity(sketches[these[some]], sketches[those[some]]) >= SIMILAR
                for at, near in zip(these[some][close].tolist(), those[some][close].tolist(), strict=True):
                    one, other = root(at), root(near)
                    parents[max(one, other)] = min(one, other)
    return np.array([root(at) for at in range(len(sketches))], dtype=np.int64)


def _key(sketches: np.ndarray, band: int) -> np.ndarray:
    """A number for each prompt, which those that agree in the band share; after the last band comes the first."""
    weights = np.random.default_rng(_SEED).integers(1, 2**64 - 1, _BAND, np.uint64)
    values = np.take(sketches, range(band * _BAND, (band + 1) * _BAND), axis=1, mode="wrap")
    return values.astype(np.uint64) @ weights


def _candidates(keys: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of prompts with the same first key, as (these, those): each with the first of them, and the ones before."""
    order = np.lexsort(keys[::-1])
    first = keys[0][order]
    starts = np.r_[True, first[1:] != first[:-1]]
    heads = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    for back in range(1, _BEFORE + 1):
        later = np.arange(back, len(order))
        later = later[heads[later] <= later - back]
        yield order[later], order[later - back]
    far = np.flatnonzero(np.arange(len(order)) - heads > _BEFORE)
    yield order[far], order[heads[far]]


def nearest(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Similarity of each of `these` sketches to the most similar of `those`, shape (these,)."""
    step = max(1, _AT_ONCE // max(1, len(these)))
    best = np.zeros(len(these))
    for start in range(0, len(those), step):
        found = similarity(these[:, None], those[None, start : start + step])
        best = np.maximum(best, found.max(axis=1))
    return best
