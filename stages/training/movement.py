"""How far training moved each weight from the base: the Frobenius norm of the difference over that of the base.

Read from the files alone, tensor by tensor, so it takes the memory of one weight.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from stages.training.optimizer import layer_of, plain

_TIED = {"lm_head.weight": "model.embed_tokens.weight"}


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
    for name in after:
        base = _base(before, name)
        yield name, _share(after[name] - base, base)


def _of_adapter(before: Weights, tuned: Path) -> Iterator[tuple[str, float]]:
    config = json.loads((tuned / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    adapter = Weights(tuned)
    for name, parts in _parts(adapter).items():
        base = _base(before, name)
        yield name, _share(_difference(base, adapter, parts, scale), base)


def _parts(adapter: Weights) -> dict[str, dict[str, str]]:
    """Of each weight of the base that is trained, the adapter's tensors by their part in it; none is left out."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key in adapter:
        place, adapted, part = key.partition(".lora_")
        name, part = (f"{place}.weight", part.removesuffix(".weight")) if adapted else (key, "whole")
        found[plain(name)][part] = key
    return found


def _difference(base: torch.Tensor, adapter: Weights, parts: dict[str, str], scale: float) -> torch.Tensor:
    """Tuned weight minus base, for embeddings transposed: that is how peft holds their updates."""
    if "whole" in parts:
        # A bias, or a module that is trained and saved whole.
        return adapter[parts["whole"]] - base
    kind = "embedding_" if "embedding_A" in parts else ""
    base = base.T if kind else base
    update = (adapter[parts[f"{kind}B"]] @ adapter[parts[f"{kind}A"]] * scale).reshape(base.shape)
    if "magnitude_vector" in parts:
        return _dora(base, update, adapter[parts["magnitude_vector"]]) - base
    return update


def _base(before: Weights, name: str) -> torch.Tensor:
    # A head that shares its weights with the embeddings stands in no file.
    stands = name if name in before else _TIED.get(name, name)
    assert stands in before, f"{name} was trained, but the base has no weight of this name"
    return before[stands]


def _dora(base: torch.Tensor, update: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA's weight: each row of base + update brought to its trained length (Liu et al. 2024, arXiv:2402.09353)."""
    directions = base + update
    return magnitude[:, None] * directions / directions.norm(dim=1, keepdim=True)


def _share(difference: torch.Tensor, base: torch.Tensor) -> float:
    return float(difference.norm() / base.norm().clamp(min=1e-12))
