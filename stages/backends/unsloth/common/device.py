"""The device that computes: an NVIDIA or AMD GPU (both are `cuda` to torch), an Intel one (`xpu`), or the CPU."""

from typing import Any

import psutil
import torch


def kind() -> str:
    """`cuda`, `xpu` or `cpu`, as Unsloth chooses too."""
    if torch.cuda.is_available():
        return "cuda"
    return "xpu" if torch.xpu.is_available() else "cpu"


def name() -> str:
    """The model of the device, and `cpu` for any CPU."""
    return "cpu" if kind() == "cpu" else str(_module().get_device_name())


def half() -> torch.dtype:
    """The 16-bit format that it computes in: bf16, or fp16 on NVIDIA GPUs before Ampere."""
    without = kind() == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if without else torch.bfloat16


def free_memory() -> list[int]:
    """Bytes that could be allocated now on each device of the kind."""
    if kind() == "cpu":
        return [int(psutil.virtual_memory().available)]
    module = _module()
    unused = (module.memory_reserved(one) - module.memory_allocated(one) for one in range(module.device_count()))
    return [int(module.mem_get_info(one)[0] + kept) for one, kept in enumerate(unused)]


def peak_memory() -> int | None:
    """Peak memory of the device in bytes; None for the CPU."""
    return None if kind() == "cpu" else int(_module().max_memory_allocated())


def random_states() -> list[torch.Tensor]:
    """States of the device's random numbers."""
    return [] if kind() == "cpu" else list(_module().get_rng_state_all())


def restore(states: list[torch.Tensor]) -> None:
    """Take up the random numbers again where they were."""
    if states:
        _module().set_rng_state_all(states)


def free_unused() -> None:
    """Give memory that torch keeps for later back to the device."""
    if kind() != "cpu":
        _module().empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the device or on the CPU."""
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _module() -> Any:
    return torch.xpu if kind() == "xpu" else torch.cuda
