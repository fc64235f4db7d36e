"""How far training moved each weight from the base: the Frobenius norm of the difference over that of the base.

Read from the files alone, tensor by tensor, so it takes the memory of one weight.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from stages.training.optimizer import layer_of, plain


class Weights:
    """The tensors of a folder's safetensors files, by name, in float32."""

    def __init__(self, folder: Path) -> None:
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._where))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._where[name].get_tensor(name).float()


def moved(base: Path, tuned: Path) -> list[dict[str, Any]]:
    """A row for each tensor that training changed: `layer` (empty outside the layers), `module`, `change`.

    `tuned` is the folder of an adapter or of a whole model; `change` is a share of the base's norm, 0.01 for 1 %.
    """
    before = Weights(base)
    changes = _of_adapter(before, tuned) if (tuned / "adapter_config.json").exists() else _of_model(before, tuned)
    rows = [_row(name, change) for name, change in changes]
    return sorted(rows, key=lambda row: (row["layer"] == "", row["layer"] or 0, row["module"]))


def _row(name: str, change: float) -> dict[str, Any]:
    layer = layer_of(name)
    module = name.removesuffix(".weight")
    module = module.partition(f".{layer}.")[2] if layer is not None else module
    return {"layer": "" if layer is None else layer, "module": module, "change": float(f"{change:.4g}")}


def _of_model(before: Weights, tuned: Path) -> Iterator[tuple[str, float]]:
    after = Weights(tuned)
    return ((name, _share(after[name] - before[name], before[name])) for name in after if name in before)


def _of_adapter(before: Weights, tuned: Path) -> Iterator[tuple[str, float]]:
    config = json.loads((tuned / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    adapter = Weights(tuned)
    for key in adapter:
        name, adapted, _ = plain(key).partition(".lora_A")
        if adapted:
            base = before[f"{name}.weight"]
            update = adapter[key.replace("lora_A", "lora_B")] @ adapter[key] * scale
            magnitude = f"{key.partition('.lora_A')[0]}.lora_magnitude_vector"
            if magnitude in adapter:
                update = _dora(base, update, adapter[magnitude]) - base
            yield f"{name}.weight", _share(update.reshape(base.shape), base)
        elif name in before:
            # A bias, or a module that is trained and saved whole.
            yield name, _share(adapter[key] - before[name], before[name])


def _dora(base: torch.Tensor, update: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA's weight: each row of base + update brought to its trained length (Liu et al. 2024, arXiv:2402.09353)."""
    directions = base + update
    return magnitude[:, None] * directions / directions.norm(dim=1, keepdim=True)


def _share(difference: torch.Tensor, base: torch.Tensor) -> float:
    return float(difference.norm() / base.norm().clamp(min=1e-12))
