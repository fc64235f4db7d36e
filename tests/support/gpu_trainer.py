"""A pytest plugin, `-p tests.support.gpu_trainer`: TRL's trainer as Unsloth rewrites it on a GPU, but on the CPU.

`CHANGED` has each default of TRL's configuration that Unsloth replaces, by name: TRL's and Unsloth's.
"""

import dataclasses
import inspect
import os
import tempfile
from typing import Any

CHANGED: dict[str, tuple[Any, Any]] = {}


def pytest_configure() -> None:
    # Unsloth then takes its path for NVIDIA, with no device; it reads the second when it writes the trainer.
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp()
    import trl
    import unsloth  # noqa: F401
    from unsloth.models import rl

    own = {field.name: field.default for field in dataclasses.fields(trl.SFTConfig)}
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    try:
        rl._patch_trl_rl_trainers("sft_trainer")
    finally:
        os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    for name, parameter in inspect.signature(trl.SFTConfig.__init__).parameters.items():
        if name in own and parameter.default not in (own[name], inspect.Parameter.empty):
            CHANGED[name] = own[name], parameter.default
    assert trl.SFTTrainer.__module__.startswith("Unsloth") or "Unsloth" in trl.SFTTrainer.__name__, trl.SFTTrainer
