"""LoRA and full fine-tuning with Unsloth, on this machine's GPU or CPU.

Nothing imported here may import torch: Unsloth must be imported before transformers, which it patches.
"""

import shutil
from contextlib import ExitStack
from dataclasses import replace

from stages.backends.protocol import LocalModel, Log, Result
from stages.backends.unsloth.base import RECORD, weights, weights_folder
from stages.backends.unsloth.reader import IGNORED, Chat, Example
from stages.core import files
from stages.core.cli import UserError, notice, without_banners
from stages.core.locks import alone
from stages.core.paths import BASE, SPLITS, SUITE, TUNED
from stages.dataset import conversations
from stages.params import Params
from stages.params.backends import Unsloth

HISTORY: tuple[str, ...] = ("step", "epoch", "train_loss", "lr")
VALIDATION_HISTORY: tuple[str, ...] = ("step", "epoch", "validation_loss")


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
    train, validation = (examples(chat, split, knobs.unsloth) for split in ("train", "validation"))
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


def examples(chat: Chat, split: str, limits: Unsloth) -> list[Example]:
    """Tokenize and label the split's conversations, dropping those longer than `max_length` tokens where that is asked.

    Raises:
        UserError: a conversation is too long and not to be dropped, none is left, or none has learned tokens.
    """
    path, max_length = SPLITS[split], limits.max_length
    made = [one for conversation in conversations.read_jsonl(path) for one in chat.examples(conversation)]
    kept = [one for one in made if len(one.input_ids) <= max_length]
    if len(kept) < len(made):
        longer = f"{len(made) - len(kept)} of {len(made)} conversations, longer than"
        if limits.overlong == "stop":
            # Truncated, they would teach unfinished answers. The gate names their rows, unless its rule was removed.
            raise UserError(
                f"{path} has {longer} unsloth.max_length {max_length}; raise it, set unsloth.overlong: drop, or put the"
                f" rule within_max_length back into {SUITE}, which names their rows"
            )
        notice(f"{split}: dropped {longer} {max_length} tokens")
    if not kept:
        raise UserError(f"{path}: every conversation exceeds unsloth.max_length {max_length}; raise it")
    if not any(label != IGNORED for one in kept for label in one.labels[1:]):
        raise UserError(
            f"{path}: nothing to learn, because all assistant messages have weight 0; set some to 1, or change seed for"
            " another split"
        )
    return kept
