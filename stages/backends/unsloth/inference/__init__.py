"""Answers of the base model and the tuned model on this machine."""

from stages.backends.protocol import ModelPair
from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.reader import Chat
from stages.core.cli import UserError
from stages.core.paths import TUNED
from stages.params import Params


def pair(knobs: Params) -> ModelPair:
    """Load the base model and the tuned model.

    Raises:
        UserError: one of them was made with another backend.
    """
    if not any((TUNED / name).exists() for name in ("adapter_config.json", "config.json")):
        raise UserError(
            f"{TUNED}/adapter_config.json is missing: {TUNED} has no local model, but backend is unsloth; set it"
            " back, or run `dvc repro`"
        )
    # Takes seconds to import.
    from stages.backends.unsloth.inference.local import LocalPair

    return LocalPair.load(weights_folder(), TUNED, Chat.load(), knobs.evaluate.batch_size)
