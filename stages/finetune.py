"""finetune: train the base model on the train split, keep the epoch with the best validation loss in `models/tuned`.

`reports/train/history.csv` grows line by line while training runs, so `dvc plots show` in a second terminal, or an
editor that redraws DVC's plots, shows the curve live. `reports/train/run.json` holds what varies by nature.
"""

import csv
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stages import base, conversations, files, params
from stages.backends import unsloth
from stages.chat import BASE, Chat, Example
from stages.command import UserError, notice, run
from stages.split import SPLITS

TUNED = Path("models/tuned")
HISTORY = Path("reports/train/history.csv")
RUN = Path("reports/train/run.json")
METRICS = Path("reports/train/metrics.json")
COLUMNS = ("step", "epoch", "train_loss", "validation_loss", "lr")
# A stage whose dvc was killed notices that within a second and ends; a training that really runs goes on for longer.
_LOCK_SECONDS = 15


def main() -> None:
    knobs = params.load()
    unsloth.start()
    chat = Chat.load()
    train = examples(chat, "train", knobs.unsloth)
    validation = examples(chat, "validation", knobs.unsloth)
    with alone(), tempfile.TemporaryDirectory(dir=files.state_dir(), prefix="best-") as best:
        with history() as log:
            result = unsloth.finetune(base.weights(), train, validation, knobs, log, Path(best))
        shutil.rmtree(TUNED, ignore_errors=True)
        shutil.copytree(best, TUNED)
    for file in sorted(BASE.glob("*token*")):
        shutil.copyfile(file, TUNED / file.name)
    files.write_json(RUN, result.run)
    files.write_json(METRICS, result.metrics)
    notice(f"tuned: epoch {result.metrics['best_epoch']} had the best validation loss and is kept in {TUNED}")


def examples(chat: Chat, split: str, knobs: params.Unsloth) -> list[Example]:
    """The split's conversations as tokens and labels.

    Raises:
        UserError: some are longer than `unsloth.max_length` and `unsloth.overlong` is `stop`, or none are left.
    """
    path = SPLITS / f"{split}.jsonl"
    made = [chat.example(conversation) for conversation in conversations.read_jsonl(path)]
    long = {line: len(one.input_ids) for line, one in enumerate(made, 1) if len(one.input_ids) > knobs.max_length}
    if long and knobs.overlong == "stop":
        named = [f"{path}, line {line}: {length} tokens" for line, length in list(long.items())[:10]]
        do = "raise unsloth.max_length, shorten them, or set unsloth.overlong: drop"
        raise UserError(
            "\n".join([f"{len(long)} conversations exceed unsloth.max_length {knobs.max_length}; {do}", *named])
        )
    if long:
        notice(f"{split}: left out {len(long)} conversations longer than {knobs.max_length} tokens (unsloth.overlong)")
    kept = [one for line, one in enumerate(made, 1) if line not in long]
    if not kept:
        raise UserError(f"no conversation of {path} is within unsloth.max_length {knobs.max_length}; raise it")
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
    """Yield a function that appends one line to history.csv; each line is on disk at once, to be watched live."""
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    with HISTORY.open("w", newline="", encoding="utf-8", buffering=1) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        yield writer.writerow


if __name__ == "__main__":
    run(main)
