"""How far training moved each weight: the Frobenius norm of the difference, divided by that of the base weight.

Tensors are read from the files one at a time, so memory use is that of a single weight.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from stages.backends.unsloth.training.optimizer import layer_of, plain

_SEES = re.compile(r"vision|visual|image|multi_modal|audio", re.IGNORECASE)
_TIED = {"lm_head.weight": "model.embed_tokens.weight"}


class Weights:
    """The tensors in a folder's safetensors files by name, as float32."""

    def __init__(self, folder: Path) -> None:
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def in_place(self, place: str) -> list[str]:
        """The names that end so, without those of a part that sees."""
        return [name for name in self if name.endswith(f".{place}") and not _SEES.search(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._where))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._where[name].get_tensor(name).float()


def moved(base: Path, tuned: Path) -> tuple[list[dict[str, Any]], int]:
    """Return a row for each trained tensor: `layer` (empty outside the layers), `module`, `change`; and the number of
    tensors that cannot be compared, because the base stores them otherwise.

    `tuned` is the folder of an adapter or a full model; `change` is a fraction of the base's norm.
    """
    before = Weights(base)
    changes = list(_of_adapter(before, tuned) if (tuned / "adapter_config.json").exists() else _of_model(before, tuned))
    rows = [_row(name, change) for name, change in changes if change is not None]
    rows.sort(key=lambda row: (row["layer"] == "", row["layer"] or 0, row["module"]))
    return rows, len(changes) - len(rows)


def _row(name: str, change: float) -> dict[str, Any]:
    layer = layer_of(name)
    module = name.removesuffix(".weight")
    module = module.partition(f".{layer}.")[2] if layer is not None else module
    return {"layer": "" if layer is None else layer, "module": module, "change": float(f"{change:.4g}")}


def _of_model(before: Weights, tuned: Path) -> Iterator[tuple[str, float | None]]:
    after = Weights(tuned)
    # What text does not reach is not trained.
    for name in (name for name in after if not _SEES.search(name)):
        base = _base(before, name)
        weight = after[name]
        yield name, None if base is None or base.shape != weight.shape else _relative(weight - base, base)


def _of_adapter(before: Weights, tuned: Path) -> Iterator[tuple[str, float | None]]:
    config = json.loads((tuned / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    adapter = Weights(tuned)
    for name, parts in _parts(adapter).items():
        base = _base(before, name)
        difference = None if base is None else _difference(base, adapter, parts, scale)
        yield name, None if base is None or difference is None else _relative(difference, base)


def _parts(adapter: Weights) -> dict[str, dict[str, str]]:
    """For each trained weight of the base, the adapter's tensors by role; includes every tensor."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key in adapter:
        place, adapted, part = key.partition(".lora_")
        name, part = (f"{place}.weight", part.removesuffix(".weight")) if adapted else (key, "whole")
        found[plain(name)][part] = key
    return found


def _difference(base: torch.Tensor, adapter: Weights, parts: dict[str, str], scale: float) -> torch.Tensor | None:
    """Tuned weight minus base; transposed for embeddings, as in peft. None where the shapes do not fit."""
    if "whole" in parts:
        # A bias, or a module that is trained and saved in full.
        whole = adapter[parts["whole"]]
        return whole - base if whole.shape == base.shape else None
    kind = "embedding_" if "embedding_A" in parts else ""
    base = base.T if kind else base
    update = adapter[parts[f"{kind}B"]] @ adapter[parts[f"{kind}A"]] * scale
    if update.numel() != base.numel():
        return None
    update = update.reshape(base.shape)
    if "magnitude_vector" in parts:
        return _dora(base, update, adapter[parts["magnitude_vector"]]) - base
    return update


def _base(before: Weights, name: str) -> torch.Tensor | None:
    """The base's weight of this name, of a tied head the embeddings', or else the only one in the same place of the
    layers: models that also see pictures store the layers of their text model under other names.
    """
    for stored in (name, _TIED.get(name, name)):
        if stored in before:
            return before[stored]
    found = before.in_place(_place(name)) if layer_of(name) is not None else []
    return before[found[0]] if len(found) == 1 else None


def _place(name: str) -> str:
    return f"layers.{name.rpartition('layers.')[2]}"


def _dora(base: torch.Tensor, update: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA's weight: each row of base + update scaled to its trained magnitude (Liu et al. 2024, arXiv:2402.09353)."""
    directions = base + update
    return magnitude[:, None] * directions / directions.norm(dim=1, keepdim=True)


def _relative(difference: torch.Tensor, base: torch.Tensor) -> float:
    return float(difference.norm() / base.norm().clamp(min=1e-12))
