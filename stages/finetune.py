"""finetune: train the base model on the train split with the chosen backend, and leave the result in `models/tuned`.

`reports/train/history.csv` (each step) and `validation_history.csv` (each epoch) grow line by line while training runs,
so `dvc plots show` in a second terminal, or an editor that redraws DVC's plots, shows the curve live.
`reports/train/run.json` holds what varies by nature.
"""

import csv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stages import backends, files, params
from stages.backends import Log
from stages.command import UserError, run
from stages.paths import HISTORY, RUN, TRAIN_METRICS, VALIDATION_HISTORY, WORKING

# A stage whose dvc was killed notices that within a second and ends; a training that really runs goes on for longer.
_LOCK_SECONDS = 15


def main() -> None:
    knobs = params.load()
    backend = backends.chosen(knobs)
    # Two tables, because DVC's plots break a line at every empty cell.
    with alone(), history({HISTORY: backend.HISTORY, VALIDATION_HISTORY: backend.VALIDATION_HISTORY}) as log:
        result = backend.finetune(knobs, log)
    files.write_json(RUN, result.run)
    files.write_json(TRAIN_METRICS, result.metrics)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock that keeps a second training off this folder; an experiment in a copy of it has its own."""
    WORKING.mkdir(exist_ok=True)
    try:
        with FileLock(WORKING / "finetune.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError("another training runs in this folder; wait for it or stop it, then run again") from None


@contextmanager
def history(tables: dict[Path, tuple[str, ...]]) -> Iterator[Log]:
    """Yield a function that appends a row to the table that has its columns; each line is on disk at once."""
    with ExitStack() as stack:
        writers = [(set(columns), stack.enter_context(_table(path, columns))) for path, columns in tables.items()]

        def log(row: dict[str, Any]) -> None:
            next(writer for columns, writer in writers if columns == row.keys()).writerow(row)

        yield log


@contextmanager
def _table(path: Path, columns: tuple[str, ...]) -> Iterator[csv.DictWriter]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", buffering=1) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        yield writer


if __name__ == "__main__":
    run(main)
