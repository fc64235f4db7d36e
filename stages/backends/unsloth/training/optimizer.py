"""Parameter groups, each with its own learning rate and weight decay."""

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.cli import UserError
from stages.params import Params

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Group:
    """Trained tensors with the same multiplier of `lr`, all with or all without weight decay."""

    multiplier: float
    decays: bool
    names: list[str]
    tensors: list[Any]

    def options(self, knobs: Params) -> dict[str, Any]:
        """The group as torch's optimizers expect it; they keep `multiplier` but do not use it."""
        return {
            "params": self.tensors,
            "lr": knobs.lr * self.multiplier,
            "weight_decay": knobs.weight_decay if self.decays else 0.0,
            "multiplier": self.multiplier,
        }

    def row(self, knobs: Params) -> dict[str, Any]:
        """The group as a row of reports/train/groups.csv."""
        layers = sorted({layer for name in self.names if (layer := layer_of(name)) is not None})
        return {
            "lr": float(f"{knobs.lr * self.multiplier:.6g}"),
            "multiplier": float(f"{self.multiplier:.6g}"),
            "weight_decay": knobs.weight_decay if self.decays else 0.0,
            "layers": _ranges(layers),
            "tensors": len(self.tensors),
            "parameters": sum(tensor.numel() for tensor in self.tensors),
            "example": plain(self.names[0]),
        }


def groups(model: Any, knobs: Params) -> list[Group]:
    """Group the trained parameters by multiplier and decay, highest rate first.

    Weight decay applies to matrices only, not to biases, norms and DoRA's magnitudes, which have one dimension.

    Raises:
        UserError: a pattern of `layers.lr` matches no trained parameter, or 0 freezes all of them.
    """
    trained = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    depth = model.config.get_text_config().num_hidden_layers
    _refuse_idle_patterns(knobs.layers.lr, [plain(name) for name, _ in trained])
    found: dict[tuple[float, bool], list[tuple[str, Any]]] = defaultdict(list)
    for name, tensor in trained:
        found[multiplier(name, depth, knobs), tensor.ndim >= 2].append((name, tensor))
    ordered = sorted(found.items(), key=lambda item: item[0], reverse=True)
    if not ordered[0][0][0]:
        raise UserError("layers.lr: 0 freezes every trained weight; remove or narrow a pattern")
    return [Group(*key, [name for name, _ in held], [tensor for _, tensor in held]) for key, held in ordered]


def multiplier(name: str, depth: int, knobs: Params) -> float:
    """Multiplier of `lr` for the parameter `name` in a model of `depth` layers.

    `layers.lr_decay` to the power of the number of layers above, which is 0 for the top layer, its norm and the head,
    and highest for the embeddings (discriminative fine-tuning, Howard and Ruder 2018, arXiv:1801.06146); times the
    factors of all matching patterns; times LoRA+'s ratio for B matrices (Hayou et al. 2024, arXiv:2402.12354).
    """
    layer = layer_of(name)
    below = depth - 1 - layer if layer is not None else depth if "embed" in name else 0
    patterns = math.prod(factor for pattern, factor in knobs.layers.lr.items() if re.search(pattern, plain(name)))
    plus = knobs.lora.loraplus_lr_ratio if "lora_B" in name or "lora_embedding_B" in name else 1.0
    return knobs.layers.lr_decay**below * patterns * plus


def layer_of(name: str) -> int | None:
    """Layer number of a parameter or module, from 0 at the bottom; None outside the layers."""
    found = _LAYER.search(f".{name}.")
    return int(found[1]) if found else None


def plain(name: str) -> str:
    """The parameter's name in the base model, without peft's prefixes and infixes."""
    return name.removeprefix("base_model.model.").replace(".default", "").replace(".base_layer", "")


def _refuse_idle_patterns(patterns: dict[str, float], names: Sequence[str]) -> None:
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, parts, n=3, cutoff=0.4) or parts
            raise UserError(f"layers.lr: '{pattern}' matches no trained weight; their names contain {', '.join(near)}")


def _ranges(numbers: Sequence[int]) -> str:
    """Abbreviate sorted numbers: `0-3, 5`."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in _runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    for at, number in enumerate(numbers):
        if at == 0 or number > numbers[at - 1] + 1:
            first = number
        if at == len(numbers) - 1 or numbers[at + 1] > number + 1:
            yield first, number
