"""LoRA and full fine-tuning with Unsloth, on this machine's GPU or CPU.

Nothing imported here may import torch: Unsloth must be imported before transformers, which it patches.
"""

import shutil
from contextlib import ExitStack
from dataclasses import replace

import pandas as pd

from stages.backends.protocol import LocalModel, Log, Result
from stages.backends.unsloth.base import RECORD, weights, weights_folder
from stages.backends.unsloth.reader import IGNORED, Chat, Example
from stages.core import files
from stages.core.cli import UserError, notice, without_banners
from stages.core.locks import alone
from stages.core.paths import BASE, SIGNALS, SPLITS, TUNED
from stages.dataset import conversations
from stages.params import Params

HISTORY: tuple[str, ...] = ("step", "epoch", "train_loss", "lr")
VALIDATION_HISTORY: tuple[str, ...] = ("step", "epoch", "validation_loss")
_NAMED = 10


def finetune(knobs: Params, log: Log) -> Result:
    """Train on the train split and write the epoch with the best validation loss to `models/tuned`.

    Checkpoints are in `.state/training/FINGERPRINT`, so only an identical training resumes from them.

    Raises:
        UserError: a parameter is not supported, conversations are too long, training diverged, or the same training
            is already running.
    """
    from stages.backends.unsloth.training import model, run, save
    from stages.backends.unsloth.training.fingerprint import fingerprint
    from stages.backends.unsloth.training.weight_change import moved

    model.refuse_impossible(knobs)
    model.start()
    chat = Chat.load()
    refuse_beyond(chat.context, knobs.unsloth.max_length)
    base = weights_folder()
    with without_banners():
        loaded = model.load(base, knobs)
    if knobs.unsloth.overlong == "stop":
        refuse_overlong(pd.read_parquet(SIGNALS, columns=["row", "n_tokens"]), knobs.unsloth.max_length)
    train, validation = (examples(chat, split, knobs.unsloth.max_length) for split in ("train", "validation"))
    kept = files.state_dir("training") / fingerprint(knobs, RECORD)
    with ExitStack() as held:
        busy = "the same training is already running in another copy of this folder"
        held.enter_context(alone(kept.with_suffix(".lock"), busy))
        # Not earlier: the previous holder of the lock may have deleted it.
        kept.mkdir(exist_ok=True)
        save.keep_start(loaded.model, kept, knobs)
        with without_banners():
            done = run.train(loaded, train, validation, knobs, log, kept)
        save.write(loaded.model, run.best(kept), TUNED, knobs)
        weights.copy_tokenizer(BASE, TUNED)
        notice(f"tuned: saved epoch {done.metrics['best_epoch']:g}, which had the best validation loss, to {TUNED}")
        local = LocalModel(knobs.method != "full", {"train": len(train), "validation": len(validation)})
        rows, unlike = moved(base, TUNED)
        if unlike:
            notice(f"tuned: how far {unlike} weights moved is unknown, because the base stores them in another form")
        result = replace(done, weights=rows, local=local)
        # Hold the lock until the folder is deleted, so that no other process resumes from it.
        held.callback(shutil.rmtree, kept)
        return replace(result, clean_up=held.pop_all().close)


def refuse_beyond(context: int, max_length: int) -> None:
    """Reject a `max_length` beyond the model's context, for which Unsloth would rescale the positions.

    Raises:
        UserError: `max_length` exceeds the context.
    """
    if max_length > context:
        raise UserError(
            f"unsloth.max_length: {max_length} exceeds the model's context of {context} tokens; lower it, or"
            " choose another unsloth.model"
        )


def refuse_overlong(signals: pd.DataFrame, max_length: int) -> None:
    """Reject conversations longer than `max_length` tokens: truncated, they would teach unfinished answers.

    Raises:
        UserError: names the first rows in the source.
    """
    long = signals[signals["n_tokens"] > max_length]
    if len(long):
        first = zip(long["row"][:_NAMED], long["n_tokens"][:_NAMED], strict=True)
        named = [f"row {row}: {tokens:.0f} tokens" for row, tokens in first]
        do = "raise unsloth.max_length, shorten them, or set unsloth.overlong: drop"
        raise UserError("\n".join([f"{len(long)} conversations exceed unsloth.max_length {max_length}; {do}", *named]))


def examples(chat: Chat, split: str, max_length: int) -> list[Example]:
    """Tokenize and label the split's conversations, dropping those longer than `max_length` tokens.

    Raises:
        UserError: no conversation is left, or none has learned tokens.
    """
    path = SPLITS[split]
    made = [one for conversation in conversations.read_jsonl(path) for one in chat.examples(conversation)]
    kept = [one for one in made if len(one.input_ids) <= max_length]
    if len(kept) < len(made):
        notice(
            f"{split}: dropped {len(made) - len(kept)} of {len(made)} conversations, longer than {max_length} tokens"
        )
    if not kept:
        raise UserError(f"{path}: every conversation exceeds unsloth.max_length {max_length}; raise it")
    if not any(label != IGNORED for one in kept for label in one.labels[1:]):
        raise UserError(
            f"{path}: nothing to learn, because all assistant messages have weight 0; set some to 1, or change seed for"
            " another split"
        )
    return kept
