"""Base and tuned model on the device, of which as little as possible is held twice.

They are loaded in 16 bit, in which they are exported and served, also after qlora: `export` merges its adapter into the
16-bit base. Only where that does not fit on the GPUs is the base loaded in 4 bit, as it was trained over.

Adapters are not merged to generate faster: merged weights are rounded once more, and taking the adapter out again would
not give the base back.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from stages.backends.unsloth.common import device
from stages.backends.unsloth.common.four_bit import trained_over
from stages.backends.unsloth.inference.attention import speed_up_steps
from stages.core.cli import UserError, notice

_DTYPE = torch.bfloat16
# Of the size of the weights, for caches and activations beside them.
_ROOM = 1.3


@dataclass(frozen=True)
class Adapted:
    """One model with an adapter that is disabled for the base.

    `biases` are trained ones, each with the base's values and the tuned model's: no adapter, so they are exchanged.
    """

    model: Any
    biases: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = ()

    @contextmanager
    def using(self, tuned: bool) -> Iterator[Any]:
        """The tuned model or the base."""
        if tuned:
            yield self.model
            return
        with self.model.disable_adapter():
            try:
                for weight, of_base, _ in self.biases:
                    weight.data.copy_(of_base)
                yield self.model
            finally:
                for weight, _, of_tuned in self.biases:
                    weight.data.copy_(of_tuned)


class Two:
    """Two whole models. Where memory does not hold both, the one that is not used makes room."""

    def __init__(self, base: Path, tuned: Path) -> None:
        self._folders, self._loaded = {False: base, True: tuned}, dict[bool, Any]()

    @contextmanager
    def using(self, tuned: bool) -> Iterator[Any]:
        """The tuned model or the base."""
        if tuned not in self._loaded:
            folder = self._folders[tuned]
            if _ROOM * _bytes(folder) > sum(device.free_memory()):
                self._loaded.clear()
                gc.collect()
                device.free_unused()
            self._loaded[tuned] = plain(folder)
        yield self._loaded[tuned]


def load(base: Path, tuned: Path) -> Adapted | Two:
    """Load the base and the adapter in `tuned`, or prepare to load two models.

    Raises:
        UserError: the base does not fit into the memory of the GPUs and the machine.
    """
    if not (tuned / "adapter_config.json").exists():
        return Two(base, tuned)
    four_bit = trained_over(tuned) and device.kind() != "cpu" and _ROOM * _bytes(base) > sum(device.free_memory())
    if four_bit:
        notice("evaluate: the base does not fit in 16 bit, so both models are measured in 4 bit, as they were trained")
    under = plain(base, four_bit)
    if PeftConfig.from_pretrained(str(tuned)).bias == "none":
        return Adapted(_adapted(under, tuned))
    # Trained biases overwrite the base's, and disabling the adapter would not restore them.
    own = [(weight, weight.clone()) for name, weight in under.named_parameters() if name.endswith("bias")]
    model = _adapted(under, tuned)
    held = {id(weight) for weight in model.parameters()}
    assert all(id(weight) in held for weight, _ in own), "peft replaced a bias, which would no longer be exchanged"
    return Adapted(model, [(weight, of_base, weight.clone()) for weight, of_base in own])


def plain(folder: Path, four_bit: bool = False) -> Any:
    """Load a model for answers, on the device as far as it fits.

    Raises:
        UserError: it does not fit into the memory of the GPUs and the machine.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **_placement(four_bit))
    except ValueError as error:
        # transformers would have to put the rest on disk.
        if "offload" not in str(error):
            raise
        raise UserError(
            "the model does not fit into the memory of this machine; free some, or choose a smaller one"
        ) from None
    # transformers slices the hidden states, and torch copies the head's weights for each row of a slice.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    model = model.requires_grad_(False).eval()
    speed_up_steps(model)
    return model


def precision(model: Any) -> str:
    """The number format of the weights."""
    return "nf4" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")


def _adapted(under: Any, tuned: Path) -> Any:
    return PeftModel.from_pretrained(under, str(tuned), local_files_only=True).eval()


def _placement(four_bit: bool) -> dict[str, Any]:
    """In which format and where: one GPU after another, and then the CPU, as far as each is too small."""
    if device.kind() == "cpu":
        return {"dtype": _DTYPE}
    half = device.half()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half
    )
    return {"dtype": half, "device_map": "sequential", **({"quantization_config": quantization} if four_bit else {})}


def _bytes(folder: Path) -> int:
    """Size of the weights in 16 bit."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(2 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total
