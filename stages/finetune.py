"""finetune: train the base model on the train split, keep the epoch with the best validation loss in `models/tuned`.

`reports/train/history.csv` (each step) and `validation_history.csv` (each epoch) grow line by line while training runs,
so `dvc plots show` in a second terminal, or an editor that redraws DVC's plots, shows the curve live.
`reports/train/run.json` holds what varies by nature.
"""

import csv
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from stages import base, conversations, files, params
from stages.backends import unsloth
from stages.chat import Chat, Example
from stages.command import UserError, notice, run
from stages.paths import BASE, HISTORY, RUN, SIGNALS, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY

# Two tables, because DVC's plots break a line at every empty cell.
TABLES = {
    HISTORY: ("step", "epoch", "train_loss", "lr"),
    VALIDATION_HISTORY: ("step", "epoch", "validation_loss"),
}
_NAMED = 10
# A stage whose dvc was killed notices that within a second and ends; a training that really runs goes on for longer.
_LOCK_SECONDS = 15


def main() -> None:
    knobs = params.load()
    if knobs.unsloth.overlong == "stop":
        refuse_overlong(pd.read_parquet(SIGNALS), knobs.unsloth.max_length)
    unsloth.start()
    chat = Chat.load()
    train, validation = (examples(chat, split, knobs.unsloth.max_length) for split in ("train", "validation"))
    with alone(), files.scratch("finetune") as scratch:
        with history() as log:
            result = unsloth.finetune(base.weights(), train, validation, knobs, log, scratch)
        shutil.rmtree(TUNED, ignore_errors=True)
        shutil.copytree(result.adapter, TUNED)
    for file in sorted(BASE.glob("*token*")):
        shutil.copyfile(file, TUNED / file.name)
    files.write_json(RUN, result.run)
    files.write_json(TRAIN_METRICS, result.metrics)
    notice(f"tuned: epoch {result.metrics['best_epoch']} had the best validation loss and is kept in {TUNED}")


def refuse_overlong(signals: pd.DataFrame, max_length: int) -> None:
    """Stop where conversations are longer than `max_length` tokens: cut off, they would teach unfinished answers.

    Raises:
        UserError: some are; it names their rows in the source.
    """
    long = signals[signals["n_tokens"] > max_length]
    if len(long):
        first = zip(long["row"][:_NAMED], long["n_tokens"][:_NAMED], strict=True)
        named = [f"row {row}: {tokens:.0f} tokens" for row, tokens in first]
        do = "raise unsloth.max_length, shorten them, or set unsloth.overlong: drop"
        raise UserError("\n".join([f"{len(long)} conversations exceed unsloth.max_length {max_length}; {do}", *named]))


def examples(chat: Chat, split: str, max_length: int) -> list[Example]:
    """The split's conversations as tokens and labels, without those longer than `max_length` tokens.

    Raises:
        UserError: none are left.
    """
    path = SPLITS[split]
    made = [chat.example(conversation) for conversation in conversations.read_jsonl(path)]
    kept = [one for one in made if len(one.input_ids) <= max_length]
    if len(kept) < len(made):
        notice(f"{split}: left out {len(made) - len(kept)} conversations of more than {max_length} tokens")
    if not kept:
        raise UserError(f"no conversation of {path} is within unsloth.max_length {max_length}; raise it")
    return kept


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock that keeps a second training off this checkout."""
    try:
        with FileLock(files.state_dir() / "finetune.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError("another training runs in this checkout; wait for it or stop it, then run again") from None


@contextmanager
def history() -> Iterator[unsloth.Log]:
    """Yield a function that appends a row to the table that has its columns; each line is on disk at once."""
    with ExitStack() as stack:
        writers = [(set(columns), stack.enter_context(_table(path, columns))) for path, columns in TABLES.items()]

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
