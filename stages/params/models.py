"""The whole of params.yaml as a typed model: each key with its range, its meaning and cost, and who reads it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params.backends import OpenAI, Unsloth
from stages.params.data import Data, Gate, Split
from stages.params.kinds import Auto, Backend, Count, Flag, Number, ReadBy, Section, knob
from stages.params.results import Evaluate, Export, Review, Verdict
from stages.params.training import Adversarial, Checkpoint, Layers, Lora, Schedule

_TRAINING = ReadBy(("finetune",))
_LOCAL = ReadBy(("finetune",), ("unsloth",))
_LOCAL_COST = ReadBy(("finetune",), ("unsloth",), decides="cost")


class Params(Section):
    """Parameters of the pipeline."""

    backend: Backend = knob(
        "Who trains: unsloth (open models, on this machine's GPU or CPU) or openai (hosted models behind OpenAI's"
        " fine-tuning API or a compatible one). It decides what a run costs.",
        ReadBy(("base", "parse", "validate", "finetune", "evaluate", "export")),
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = knob(
        "Seed of the split, the initial LoRA weights, the order of the data and the bootstrap.",
        ReadBy(("split", "finetune", "evaluate")),
    )
    lr: Annotated[Number, Field(gt=0, le=1)] = knob(
        "Peak learning rate. Too low and nothing is learned; too high and the loss jumps and the model forgets.", _LOCAL
    )
    epochs: Annotated[Number, Field(gt=0, le=1000)] | Auto = knob(
        "Passes over the train split; time and price grow in proportion. unsloth takes fractions and keeps the epoch"
        " with the best validation loss; openai takes whole numbers or auto.",
        _TRAINING,
    )
    early_stopping_patience: Annotated[Count, Field(le=1000)] | None = knob(
        "Stop after this many epochs without a better validation loss, which saves their time; null disables.", _LOCAL
    )
    batch_size: Annotated[Count, Field(le=4096)] | Auto = knob(
        "Conversations per optimizer step, computed in micro-batches that fit the memory. A larger batch makes fewer,"
        " smoother steps; openai also takes auto.",
        _TRAINING,
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = knob(
        "Share of the LoRA inputs zeroed at random in training. Helps small data sets and takes up to a fifth more"
        " time.",
        _LOCAL,
    )
    attention_dropout: Annotated[Number, Field(ge=0, lt=1)] = knob(
        "Share of the attention weights zeroed at random in training, if the model supports it. Takes a little time.",
        _LOCAL,
    )
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = knob(
        "Decay of the trained weights, except biases and norms, towards zero. Costs nothing.", _LOCAL
    )
    scheduler: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay"
    ] = knob(
        "How the learning rate changes after warm-up: constant, linear, cosine, cosine_with_restarts, polynomial,"
        " inverse_sqrt or warmup_stable_decay. Costs nothing.",
        _LOCAL,
    )
    warmup_ratio: Annotated[Number, Field(ge=0, lt=1)] = knob(
        "Share of the steps in which the learning rate rises from 0 to lr. Costs nothing.", _LOCAL
    )
    label_smoothing_factor: Annotated[Number, Field(ge=0, lt=1)] = knob(
        "Share of each target spread over the whole vocabulary, for less certain answers. Costs nothing.", _LOCAL
    )
    optim: Literal["adamw_torch", "adamw_8bit", "adafactor", "sgd"] = knob(
        "Optimizer: adamw_torch, adafactor (little memory), sgd (no memory), or adamw_8bit (a quarter of AdamW's"
        " memory, GPU only).",
        _LOCAL,
    )
    max_grad_norm: Annotated[Number, Field(gt=0, le=1000)] | None = knob(
        "Clip gradients to this L2 norm; null disables. Costs nothing.", _LOCAL
    )
    gradient_checkpointing: Flag = knob(
        "Recompute activations in the backward pass instead of keeping them: much less memory, a third more time.",
        _LOCAL_COST,
    )
    packing: Flag | Auto = knob(
        "Put the conversations of a micro-batch into one sequence, separated by the attention mask, so that padding is"
        " never computed and a common prompt prefix only once. auto packs where it works: without a GPU, for plain"
        " attention.",
        _LOCAL_COST,
    )
    method: Literal["lora", "qlora", "dora", "full"] = knob(
        "What is trained: lora (small matrices beside the weights), qlora (the same over a 4-bit base, a quarter of its"
        " memory), dora (LoRA with a trained magnitude; a little better, slower) or full (all weights, most memory).",
        _LOCAL,
    )
    data: Data = knob("The data to fine-tune on.", ReadBy(("parse", "validate")))
    # pydantic has a method of this name, so the section's attribute has another.
    gate: Gate = knob("The data gate.", ReadBy(("validate",)), alias="validate")
    split: Split = knob("How the conversations are split; the rest is trained on.", ReadBy(("split",)))
    schedule: Schedule = knob("What some schedulers need besides lr and warm-up. Costs nothing.", _LOCAL)
    lora: Lora = knob("The updates of lora, qlora and dora.", _LOCAL)
    layers: Layers = knob("Learning rates that differ between layers. Costs nothing.", _LOCAL)
    adversarial: Adversarial = knob("Training on perturbed embeddings.", _LOCAL)
    checkpoint: Checkpoint = knob(
        "How often training saves its state.", ReadBy(("finetune",), ("unsloth",), decides="nothing")
    )
    unsloth: Unsloth = knob("For backend: unsloth.", _LOCAL)
    openai: OpenAI = knob("For backend: openai.", ReadBy(("finetune",), ("openai",)))
    evaluate: Evaluate = knob("How both models are measured on the test split.", ReadBy(("evaluate",)))
    verdict: Verdict = knob("When a fine-tuning counts as better.", ReadBy(("evaluate",)))
    export: Export = knob("The tuned model for other programs.", ReadBy(("export",), ("unsloth",)))
    review: Review = knob("When a change counts as a regression.", ReadBy(()))

    @model_validator(mode="after")
    def _numbers_for_the_backend(self) -> "Params":
        for name in ("epochs", "batch_size"):
            if self.backend == "unsloth" and getattr(self, name) == "auto":
                raise ValueError(f"{name}: auto is for backend: openai; give a number")
        if self.backend == "openai" and self.epochs != "auto" and self.epochs % 1:
            raise ValueError(
                f"epochs: {self.epochs} is not allowed with backend: openai; expected a whole number or auto"
            )
        return self

    @model_validator(mode="after")
    def _possible_together(self) -> "Params":
        """Refuse what cannot work whatever the machine and the model; those are asked when training starts."""
        if self.scheduler == "warmup_stable_decay" and self.warmup_ratio + self.schedule.decay_ratio > 1:
            raise ValueError("warmup_ratio + schedule.decay_ratio exceed 1: warm-up and decay do not fit in one run")
        if self.method == "full" and (idle := self._idle_in_full()):
            raise ValueError(f"{', '.join(idle)}: for the adapters of LoRA, and method: full has none; leave it out")
        start = self.lora.init_lora_weights
        if start in ("pissa", "olora") and self.method not in ("lora", "full"):
            raise ValueError(
                f"lora.init_lora_weights: {start} changes the base's weights, which method:"
                f" {self.method} keeps; choose default, gaussian or orthogonal"
            )
        if start in ("pissa", "olora") and self.lora.bias != "none":
            raise ValueError(
                f"lora.bias: {self.lora.bias} is not allowed with lora.init_lora_weights: {start}, whose adapters are"
                " given away without biases; set it to none, or choose another initialisation"
            )
        return self

    def _idle_in_full(self) -> list[str]:
        changed = {
            "dropout": self.dropout > 0,
            "lora.bias": self.lora.bias != "none",
            "lora.use_rslora": self.lora.use_rslora,
            "lora.init_lora_weights": self.lora.init_lora_weights != "default",
            "lora.layers_to_transform": isinstance(self.lora.layers_to_transform, list),
            "lora.loraplus_lr_ratio": self.lora.loraplus_lr_ratio != 1,
        }
        return [name for name, is_set in changed.items() if is_set]

    @property
    def longest(self) -> int | None:
        """Tokens of the longest conversation that training accepts; None where the base's own limit is the only one, or
        longer ones are left out."""
        limited = self.backend == "unsloth" and self.unsloth.overlong == "stop"
        return self.unsloth.max_length if limited else None

    @property
    def numbers(self) -> tuple[float, int]:
        """`epochs` and `batch_size` where neither is auto, as with `backend: unsloth`."""
        assert self.epochs != "auto" and self.batch_size != "auto"
        return self.epochs, self.batch_size

    @property
    def whole_epochs(self) -> int | Auto:
        """`epochs` as a hosted service takes them."""
        return "auto" if self.epochs == "auto" else int(self.epochs)
