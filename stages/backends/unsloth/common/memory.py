"""The memory of this process."""

import contextlib
import ctypes

# Options of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_AT_ONCE = 64 * 2**20


def keep_freed() -> None:
    """Keep what a tensor frees for the next one, where the C library is glibc.

    Otherwise each large tensor on the CPU gets new pages from the system, which took a tenth of a training's time.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _AT_ONCE)):
            mallopt(option, value)
