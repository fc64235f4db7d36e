"""Prompts that are nearly the same: sketches, groups and nearest neighbours, without comparing every pair."""

import numpy as np
import pyarrow as pa
from rensa import RMinHash

# Share of common character 4-grams from which two prompts count as nearly the same.
SIMILAR = 0.8
_PERMUTATIONS = 64
# Bands of four: prompts at 0.8 share one with a probability above 0.999.
_BAND = 4
_SEED = 1
_GRAM = 4
# Characters of a prompt that count.
_LENGTH = 10_000
SKETCH_BYTES = 4 * _PERMUTATIONS
# Pairs compared at once, to bound memory.
_AT_ONCE = 500_000


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

    In each band, prompts with the same values are compared with the first of them only, so that time grows with the
    number of prompts and not with its square.
    """
    parents = np.arange(len(sketches))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = at = parents[parents[at]]
        return at

    for start in range(0, sketches.shape[1], _BAND):
        band = np.ascontiguousarray(sketches[:, start : start + _BAND])
        _, first, which = np.unique(band, axis=0, return_index=True, return_inverse=True)
        representative = first[which.reshape(-1)]
        others = np.flatnonzero(representative != np.arange(len(sketches)))
        for some in np.array_split(others, len(others) // _AT_ONCE + 1):
            close = similarity(sketches[some], sketches[representative[some]]) >= SIMILAR
            for at in some[close]:
                one, other = root(int(at)), root(int(representative[at]))
                parents[max(one, other)] = min(one, other)
    return np.array([root(at) for at in range(len(sketches))], dtype=np.int64)


def nearest(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Similarity of each of `these` sketches to the most similar of `those`, shape (these,)."""
    step = max(1, _AT_ONCE // max(1, len(these)))
    best = np.zeros(len(these))
    for start in range(0, len(those), step):
        found = similarity(these[:, None], those[None, start : start + step])
        best = np.maximum(best, found.max(axis=1))
    return best
