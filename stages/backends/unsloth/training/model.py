"""The base model, prepared for training: adapters (lora, qlora, dora) or all weights (full).

Unsloth patches transformers and TRL on import, so `start` imports it before anything else imports them.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.backends.unsloth.common import memory
from stages.core import files
from stages.core.cli import UserError, notice, quiet_libraries, without_banners
from stages.params import Params
from stages.params.training import MODULE_SETS

if TYPE_CHECKING:
    from stages.backends.unsloth.training.micro_batches import MicroBatches
    from stages.backends.unsloth.training.optimizer import Group

# Linear layers of a model's blocks are named by the block's number.
_IN_BLOCK = re.compile(r"\.\d+\.")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
# They choose the experts of a token.
_ROUTERS = {"gate", "router"}


def start() -> None:
    """Import Unsloth and silence the libraries' banners, progress bars and warnings."""
    memory.keep_freed()
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(files.state_dir("unsloth"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with without_banners():
        import unsloth  # noqa: F401

    quiet_libraries()


def refuse_impossible(knobs: Params) -> None:
    """Reject parameters that cannot work on this machine, before any data is read.

    Raises:
        UserError: names the parameter and the reason.
    """
    from stages.backends.unsloth.common import device

    if device.kind() != "cpu":
        if knobs.attention_dropout:
            raise UserError("attention_dropout: not supported by Unsloth's GPU kernels; set it to 0")
        if knobs.gradient_checkpointing and knobs.adversarial.method == "pgd":
            raise UserError(
                "adversarial.method: pgd needs gradients of the embeddings alone, which Unsloth's"
                " gradient_checkpointing on a GPU does not support; choose freelb, or set gradient_checkpointing: false"
            )
    elif knobs.optim == "adamw_8bit":
        raise UserError("optim: adamw_8bit needs an NVIDIA GPU, and none was found; to save memory here, use adafactor")


@dataclass(frozen=True)
class Trainable:
    """A model whose trained weights require gradients, its tokenizer, micro-batching and parameter groups."""

    model: Any
    tokenizer: Any
    batches: "MicroBatches"
    groups: "list[Group]"


def load(base: Path, knobs: Params) -> Trainable:
    """Load the base model from the folder `base` and prepare it for training.

    Raises:
        UserError: the model does not support a parameter.
    """
    from unsloth import FastLanguageModel

    from stages.backends.unsloth.training import optimizer

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(base),
        max_seq_length=knobs.unsloth.max_length,
        load_in_4bit=knobs.method == "qlora",
        full_finetuning=knobs.method == "full",
        use_gradient_checkpointing=_checkpointing(knobs),
        local_files_only=True,
        **(_in_float32() if knobs.method == "full" else {}),
    )
    if knobs.method == "qlora" and not getattr(model, "is_loaded_in_4bit", False):
        raise UserError("method: qlora: bitsandbytes cannot load this model in 4 bit on this machine; choose lora")
    # A model that also sees comes with a processor.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    beyond = _beyond_text(model)
    if knobs.method != "full":
        model = _adapted(model, knobs, beyond)
    _freeze(model, beyond)
    _set_attention_dropout(model, knobs.attention_dropout)
    _widen(model)
    return Trainable(model, tokenizer, _micro_batches(model, tokenizer, knobs), optimizer.groups(model, knobs))


def _in_float32() -> dict[str, Any]:
    """Unsloth's options for float32 weights: by default it trains in bf16, where small updates are rounded away."""
    import torch

    from stages.backends.unsloth.common import device

    # On a GPU it still computes in bf16, by autocast.
    return {"dtype": torch.float32} if device.kind() == "cpu" else {"float32_mixed_precision": True}


def _checkpointing(knobs: Params) -> str | bool:
    # Unsloth's own implementation, which offloads activations to host memory.
    return "unsloth" if knobs.gradient_checkpointing else False


def _beyond_text(model: Any) -> list[str]:
    """Names of the outermost modules that text does not reach, such as a vision tower."""
    text = (model.get_decoder(), model.get_output_embeddings())
    inside = _dotted(name for name, module in model.named_modules() if any(module is one for one in text))
    beyond: list[str] = []
    for name, _ in model.named_modules():
        around = not name or any(one.startswith(f"{name}.") for one in inside)
        if not around and not f"{name}.".startswith((*inside, *_dotted(beyond))):
            beyond.append(name)
    return beyond


def _dotted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _freeze(model: Any, names: Sequence[str]) -> None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name in names:
        inner.get_submodule(name).requires_grad_(False)


def _adapted(model: Any, knobs: Params, beyond: Sequence[str]) -> Any:
    from unsloth import FastLanguageModel

    lora = knobs.lora
    layers = _layers(lora.layers_to_transform, model.config.get_text_config().num_hidden_layers)
    modules = _modules(lora.target_modules, model, beyond)
    without = {"exclude_modules": rf"({'|'.join(map(re.escape, beyond))})\..+"} if beyond else {}
    try:
        adapted = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=knobs.dropout,
            target_modules=modules,
            bias=lora.bias,
            use_rslora=lora.use_rslora,
            init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
            layers_to_transform=layers,
            use_dora=knobs.method == "dora",
            use_gradient_checkpointing=_checkpointing(knobs),
            random_state=knobs.seed,
            **without,
        )
    except ValueError as error:
        # peft found no match for a pattern, or cannot adapt the type of layer.
        raise UserError(f"lora.target_modules: {' '.join(str(error).split())}") from None
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    if lora.bias != "none" and not any(name.endswith("bias") for name in trained):
        where = "the target modules have" if lora.bias == "lora_only" else "the model has"
        raise UserError(f"lora.bias: {lora.bias} has no effect, because {where} no biases; set it to none")
    return adapted


def _modules(wanted: list[str] | str, model: Any, beyond: Sequence[str] = ()) -> list[str] | str:
    """The names of the linear layers in the model's blocks that a set means, without a mixture's router and without
    what text does not reach; or what is wanted by name or pattern.
    """
    import torch

    reached = [(name, one) for name, one in model.named_modules() if not f"{name}.".startswith(_dotted(beyond))]
    if isinstance(wanted, list):
        _refuse_unknown_modules(wanted, [name for name, _ in reached])
    if wanted not in MODULE_SETS:
        return wanted
    linear = [name for name, one in reached if isinstance(one, torch.nn.Linear) and _IN_BLOCK.search(name)]
    attention = {name for name in linear if _ATTENTION.search(name)}
    chosen = {"all-linear": set(linear), "attention": attention, "mlp": set(linear) - attention}[str(wanted)]
    names = {name.rpartition(".")[2] for name in chosen} - _ROUTERS
    if not names and wanted == "mlp":
        # Those of a mixture of experts are one tensor for all experts.
        names = {name.rpartition(".")[2] for name in attention}
        notice("finetune: lora.target_modules: this model's mlp has no linear layers, so its attention is trained")
    if not names:
        raise UserError(
            f"lora.target_modules: {model.config.model_type} models have no linear layers that belong to {wanted}; name"
            " layers that they have"
        )
    return sorted(names)


def _refuse_unknown_modules(names: Sequence[str], modules: Iterable[str]) -> None:
    """Reject unknown names, which peft ignores as long as one name matches."""
    # The model itself is listed with an empty name.
    known = [name for name in modules if name]
    last = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
    for name in names:
        if not any(f".{module}".endswith(f".{name}") for module in known):
            near = difflib.get_close_matches(name, last, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(last)}"
            raise UserError(f"lora.target_modules: the model has no module '{name}'; {hint}")


def _layers(wanted: list[int] | str | None, depth: int) -> list[int] | None:
    if isinstance(wanted, str):
        return list(range(depth // 2, depth))
    if wrong := [number for number in wanted or [] if number >= depth]:
        raise UserError(f"lora.layers_to_transform: the model has no layer {wrong[0]}; choose from 0 to {depth - 1}")
    return wanted


def _widen(model: Any) -> None:
    """Hold trained weights in float32 where the model is in float16, whose gradients cannot be unscaled."""
    import torch

    for weight in model.parameters():
        if weight.requires_grad and weight.dtype == torch.float16:
            weight.data = weight.data.float()


def _set_attention_dropout(model: Any, rate: float) -> None:
    """Set it on the modules, so that the saved configuration keeps the base's value."""
    modules = [module for module in model.modules() if hasattr(module, "attention_dropout")]
    if rate and not modules:
        raise UserError(f"attention_dropout: not supported by {model.config.model_type} models; set it to 0")
    for module in modules:
        module.attention_dropout = rate


def _micro_batches(model: Any, tokenizer: Any, knobs: Params) -> "MicroBatches":
    """Choose how batches are split, with what to fall back to; `isolation` tries it before the first step.

    Raises:
        UserError: packing is required, but the model's attention does not support it.
    """
    from stages.backends.unsloth.common import device
    from stages.backends.unsloth.training import prefix_tree
    from stages.backends.unsloth.training.micro_batches import PADDED, TREE, MicroBatches

    on_cpu = device.kind() == "cpu"
    # A perturbation belongs to one conversation, so its prefix cannot be shared.
    share = knobs.adversarial.method == "none"
    forms = [] if knobs.packing is False else _packed_forms(model, share)
    if knobs.packing is True and not forms:
        raise UserError(f"packing: not tested with {model.config.model_type} models; set it to auto")
    if TREE in forms:
        # On two cores, forward and backward are twice as fast as with the fused kernel.
        model.set_attn_implementation("eager")
    budget = prefix_tree.TREE_TOKENS if on_cpu else sys.maxsize
    form, *fallbacks = [*forms, PADDED]
    return MicroBatches(form, share, tokenizer.pad_token_id, budget, fallbacks)


def _packed_forms(model: Any, share: bool) -> list[str]:
    """Forms without padding that may be right for the model on this device, best first."""
    from stages.backends.unsloth.common import device
    from stages.backends.unsloth.training import prefix_tree
    from stages.backends.unsloth.training.micro_batches import SEGMENTS, SEQUENCE, TREE

    supported = prefix_tree.supported(model.config)
    if device.kind() == "cpu":
        return [TREE] if supported else []
    from unsloth.trainer import PADDING_FREE_BLOCKLIST
    from unsloth.utils.hf_packed_attention import enable_hf_packed_attention

    # Attention of its own, which Unsloth found to be wrong for a sequence of several conversations.
    if model.config.model_type in PADDING_FREE_BLOCKLIST:
        return []
    # Models that run transformers' code get the kernel for separate lengths too.
    enable_hf_packed_attention()
    return [SEGMENTS, SEQUENCE] if supported and share and device.kind() == "cuda" else [SEQUENCE]
