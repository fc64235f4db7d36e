"""Text that many prompts share, such as an instruction: it says nothing of which prompts are alike.

Windows of a fixed number of characters are counted over a sample of the prompts. The sample holds those with the
smallest hashes (bottom-k sampling, Cohen and Kaplan 2007), so what is found does not depend on the order of rows.
"""

import heapq

import numpy as np

# Prompts in the sample, and the characters of each that count.
_SAMPLE = 500
_LENGTH = 10_000
# From which share of the prompts on which windows are shared: most prompts share an instruction, and several tasks can
# have one each, which is longer than what questions about one thing have in common.
_SHARED = ((0.5, 40), (0.2, 100))
# Fewer prompts are a group of similar ones and no task.
_FEWEST = 10
_BASE, _MODULUS = 0x9E3779B97F4A7C15, 2**64


class Sample:
    """A sample of the different prompts that were seen; its size is bounded."""

    def __init__(self) -> None:
        self._kept: dict[int, str] = {}
        self._largest: list[int] = []

    def add(self, identity: int, prompt: str) -> None:
        """See a prompt, of which `identity` is a hash."""
        if identity in self._kept or (len(self._kept) == _SAMPLE and identity > -self._largest[0]):
            return
        heapq.heappush(self._largest, -identity)
        self._kept[identity] = prompt[:_LENGTH]
        if len(self._kept) > _SAMPLE:
            del self._kept[-heapq.heappop(self._largest)]

    def shared(self) -> "Shared":
        """What the prompts share."""
        prompts = list(self._kept.values())
        return Shared({length: _common(prompts, share, length) for share, length in _SHARED})


class Shared:
    """The windows that many prompts have in common: their hashes in order, by length in characters."""

    def __init__(self, windows: dict[int, np.ndarray]) -> None:
        self._windows = {length: hashes for length, hashes in windows.items() if len(hashes)}

    def __bool__(self) -> bool:
        return bool(self._windows)

    def without(self, prompt: str) -> str:
        """The prompt without what is shared; all of it where nothing else is in it, or where it shares nothing."""
        read = prompt[:_LENGTH]
        inside = np.zeros(len(read) + 1, np.int64)
        for length, hashes in self._windows.items():
            starts = np.flatnonzero(np.isin(_hashes(read, length), hashes))
            np.add.at(inside, starts, 1)
            np.add.at(inside, starts + length, -1)
        covered = np.cumsum(inside)[:-1] > 0
        if not covered.any():
            return prompt
        edges = np.flatnonzero(np.diff(np.r_[True, covered, True]))
        parts = (read[begin:end] for begin, end in edges.reshape(-1, 2).tolist())
        return "\n".join(part.strip() for part in (*parts, prompt[_LENGTH:]) if part.strip()) or prompt


def _common(prompts: list[str], share: float, length: int) -> np.ndarray:
    """Hashes of the windows that are in more than this share of the prompts."""
    each = [np.unique(_hashes(prompt, length)) for prompt in prompts]
    hashes, counts = np.unique(np.concatenate([*each, np.empty(0, np.uint64)]), return_counts=True)
    return hashes[(counts > share * len(prompts)) & (counts >= _FEWEST)]


def _hashes(text: str, length: int) -> np.ndarray:
    """A hash of each window, shape (windows,): a polynomial modulo 2^64, put together from windows of powers of two."""
    if len(text) < length:
        return np.empty(0, np.uint64)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    of_power, power, size = (codes + np.uint64(1)) * np.uint64(_BASE), _BASE, 1
    found, found_size = np.zeros(len(text) + 1, np.uint64), 0
    while True:
        if length & size:
            count = len(text) - found_size - size + 1
            found, found_size = (
                found[:count] * np.uint64(power) + of_power[found_size : found_size + count],
                found_size + size,
            )
        if size * 2 > length:
            return found
        of_power = of_power[: len(of_power) - size] * np.uint64(power) + of_power[size:]
        power, size = power * power % _MODULUS, size * 2
