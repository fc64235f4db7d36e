"""finetune: train the base model on the train split with the chosen backend, and leave the result in `models/tuned`.

`reports/train/history.csv` (each step) and `validation_history.csv` (each epoch) grow line by line while training runs,
so `dvc plots show` in a second terminal, or an editor that redraws DVC's plots, shows the curve live. `groups.csv` has
the learning rate of each group of weights, `weights.csv` how far each weight moved. `run.json` holds what varies by
nature.
"""

import csv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stages import backends, params
from stages.backends import model_card
from stages.backends.protocol import Log
from stages.core import files
from stages.core.cli import run
from stages.core.locks import alone
from stages.core.paths import GROUPS, HISTORY, RUN, TRAIN_METRICS, TUNED, VALIDATION_HISTORY, WEIGHTS, WORKING

_GROUPS = ("lr", "multiplier", "weight_decay", "layers", "tensors", "parameters", "example")
_WEIGHTS = ("layer", "module", "change")


def main() -> None:
    knobs = params.load()
    training = backends.training(knobs)
    # An experiment in a copy of this folder has a lock of its own.
    with alone(WORKING / "finetune.lock", "another training runs in this folder"):
        # Two tables, because DVC's plots break a line at every empty cell.
        with history({HISTORY: training.HISTORY, VALIDATION_HISTORY: training.VALIDATION_HISTORY}) as log:
            result = training.finetune(knobs, log)
        if result.local:
            model_card.write(TUNED, knobs, result.metrics, result.local.conversations, result.local.adapter)
        _write_table(GROUPS, _GROUPS, result.groups)
        _write_table(WEIGHTS, _WEIGHTS, result.weights)
        files.write_json(RUN, result.run)
        files.write_json(TRAIN_METRICS, result.metrics)
        result.clean_up()


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with files.replacing(path) as temporary, _table(temporary, columns) as writer:
        writer.writerows(rows)


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
