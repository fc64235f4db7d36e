"""What this backend needs from the machine: its base model."""

import os
from collections.abc import Callable, Mapping

from stages.backends.unsloth.base import weights
from stages.core.cli import UserError
from stages.core.diagnosis import Diagnosis
from stages.params import Params

ACCESS: Mapping[str, Callable[[Params], Diagnosis]] = {}


def model(knobs: Params) -> Diagnosis:
    """Check that the base model is named correctly, and whether its weights are on this machine."""
    name = knobs.unsloth.model
    try:
        folder = weights.find_local(name, knobs.unsloth.revision)
    except UserError as error:
        return Diagnosis(str(error), "fix unsloth.model and unsloth.revision in params.yaml")
    return Diagnosis(f"{name}, {f'in {os.path.relpath(folder)}' if folder else 'to be downloaded by the base stage'}")
