"""Locks that say who holds them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from stages.core import files
from stages.core.cli import UserError

# A stage whose dvc was killed notices that within a second and ends; one that really runs takes longer.
_WAIT_SECONDS = 15


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; it is removed afterwards.

    Raises:
        UserError: another process holds it; the message starts with `what` and names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the lock: who tries to take a lock file empties it.
    holder = path.with_suffix(".holder")
    try:
        with FileLock(path, timeout=_WAIT_SECONDS):
            files.write_text(holder, f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
                # While it is held, and as the last act: filelock takes no file that was removed while it waited.
                path.unlink(missing_ok=True)
    except Timeout:
        who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "a process that just started"
        raise UserError(f"{what} ({who}); wait for it or stop it, then run again") from None
