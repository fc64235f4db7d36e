"""The base model, made trainable: adapters (lora, qlora over 4 bit, dora with trained lengths) or all weights (full).

Unsloth patches transformers and TRL when it is imported, so `start` imports it before anything else touches them.
"""

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import files
from stages.command import UserError, quiet_libraries, without_banners
from stages.params import Params

if TYPE_CHECKING:
    from stages.training.micro_batches import MicroBatches
    from stages.training.optimizer import Group


def start() -> None:
    """Import Unsloth, and keep the libraries' banners, bars and warnings from burying the pipeline's own lines."""
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(files.state_dir("unsloth"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with without_banners():
        import unsloth  # noqa: F401

    quiet_libraries()


def refuse_impossible(knobs: Params) -> None:
    """Stop where a knob cannot work on this machine, before any data is read.

    Raises:
        UserError: which, and why.
    """
    import torch

    if torch.cuda.is_available():
        if knobs.attention_dropout:
            raise UserError("attention_dropout: Unsloth's kernels for a GPU have none; set it to 0")
        if knobs.packing is True:
            raise UserError("packing: Unsloth's kernels for a GPU take padded batches; set it to auto or false")
        if knobs.gradient_checkpointing and knobs.adversarial.method == "pgd":
            raise UserError(
                "adversarial.method: pgd differentiates by the embeddings alone, which Unsloth's gradient_checkpointing"
                " on a GPU does not allow; choose freelb, or set gradient_checkpointing: false"
            )
    elif knobs.optim == "adamw_8bit":
        raise UserError("optim: adamw_8bit needs an NVIDIA GPU, and there is none; adafactor saves memory here")


@dataclass(frozen=True)
class Trainable:
    """A model with what is trained switched on, its tokenizer, how batches are cut for it, and its groups of rates."""

    model: Any
    tokenizer: Any
    batches: "MicroBatches"
    groups: "list[Group]"


def load(base: Path, knobs: Params) -> Trainable:
    """Load the base model in folder `base` and make it trainable.

    Raises:
        UserError: a knob asks for what the model does not have.
    """
    from unsloth import FastLanguageModel

    from stages.training import optimizer

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
        raise UserError("method: qlora: bitsandbytes cannot hold this model in 4 bit on this machine; choose lora")
    if knobs.method != "full":
        model = _adapted(model, knobs)
    _set_attention_dropout(model, knobs.attention_dropout)
    return Trainable(model, tokenizer, _micro_batches(model, tokenizer, knobs), optimizer.groups(model, knobs))


def _in_float32() -> dict[str, Any]:
    """How Unsloth is asked for weights in float32: by itself it trains all in bf16, where small steps are lost."""
    import torch

    # On a GPU it then computes in bf16 all the same, by autocast.
    return {"float32_mixed_precision": True} if torch.cuda.is_available() else {"dtype": torch.float32}


def _checkpointing(knobs: Params) -> str | bool:
    # Unsloth's own kind, which keeps activations in the computer's memory where the GPU's is scarce.
    return "unsloth" if knobs.gradient_checkpointing else False


def _adapted(model: Any, knobs: Params) -> Any:
    from unsloth import FastLanguageModel

    lora = knobs.lora
    _refuse_unknown_layers(lora.layers_to_transform or [], model.config.get_text_config().num_hidden_layers)
    if isinstance(lora.target_modules, list):
        _refuse_unknown_modules(lora.target_modules, [name for name, _ in model.named_modules()])
    try:
        adapted = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=knobs.dropout,
            target_modules=lora.target_modules,
            bias=lora.bias,
            use_rslora=lora.use_rslora,
            init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
            layers_to_transform=lora.layers_to_transform,
            use_dora=knobs.method == "dora",
            use_gradient_checkpointing=_checkpointing(knobs),
            random_state=knobs.seed,
        )
    except ValueError as error:
        # peft's word for a pattern without a match, or a kind of layer that it cannot adapt.
        raise UserError(f"lora.target_modules: {' '.join(str(error).split())}") from None
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    if lora.bias != "none" and not any(name.endswith("bias") for name in trained):
        where = "the target modules have" if lora.bias == "lora_only" else "the model has"
        raise UserError(f"lora.bias: {lora.bias}, but {where} no biases; set it to none")
    return adapted


def _refuse_unknown_modules(names: Sequence[str], modules: Iterable[str]) -> None:
    """peft passes over a name that it does not find, if only it finds another."""
    # The model itself has an empty name.
    known = [name for name in modules if name]
    last = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
    for name in names:
        if not any(f".{module}".endswith(f".{name}") for module in known):
            near = difflib.get_close_matches(name, last, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(last)}"
            raise UserError(f"lora.target_modules: the model has no module '{name}'; {hint}")


def _refuse_unknown_layers(numbers: Sequence[int], depth: int) -> None:
    if wrong := [number for number in numbers if number >= depth]:
        raise UserError(f"lora.layers_to_transform: the model has layers 0 to {depth - 1}, and no {wrong[0]}")


def _set_attention_dropout(model: Any, share: float) -> None:
    """Set it on the modules, so that the configuration, which is saved, keeps what the base has."""
    modules = [module for module in model.modules() if hasattr(module, "attention_dropout")]
    if share and not modules:
        raise UserError(f"attention_dropout: a {model.config.model_type} model has none; set it to 0")
    for module in modules:
        module.attention_dropout = share


def _micro_batches(model: Any, tokenizer: Any, knobs: Params) -> "MicroBatches":
    """How batches are cut: on a GPU padded and whole, for Unsloth's kernels; elsewhere into trees where that is right.

    Raises:
        UserError: packing is asked for, and the model's attention does not allow it.
    """
    import torch

    from stages.training import branches
    from stages.training.micro_batches import MicroBatches

    supported = not torch.cuda.is_available() and branches.supported(model.config)
    if knobs.packing is True and not supported:
        raise UserError(f"packing: not tested with the attention of {model.config.model_type} models; set it to auto")
    packed = supported and knobs.packing is not False
    if packed:
        # On two cores the plain products take half the time of the fused kernel, forward and backward.
        model.set_attn_implementation("eager")
    # A perturbation belongs to one conversation, so its prefix cannot be shared.
    share = knobs.adversarial.method == "none"
    budget = sys.maxsize if torch.cuda.is_available() else branches.TREE_TOKENS
    return MicroBatches(packed, share, tokenizer.pad_token_id, budget)
