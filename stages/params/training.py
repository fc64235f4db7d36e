"""The parameters of training on this machine."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params.kinds import Count, Flag, Number, Pattern, Section, Text, knob


class Schedule(Section):
    num_cycles: Annotated[Count, Field(le=1000)] = knob("Number of cycles of cosine_with_restarts.")
    power: Annotated[Number, Field(gt=0, le=10)] = knob(
        "Exponent of polynomial: 1 is a straight line, 2 falls fast and ends gently."
    )
    decay_ratio: Annotated[Number, Field(gt=0, le=1)] = knob(
        "Share of the steps, at the end, in which warmup_stable_decay falls to zero."
    )


LayerNumbers = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
# Sets of linear layers that every model has by another name.
MODULE_SETS = ("all-linear", "mlp", "attention")


class Lora(Section):
    r: Annotated[Count, Field(le=1024)] = knob(
        "Rank of the low-rank updates. A higher rank learns more and takes more memory and some time."
    )
    alpha: Annotated[Number, Field(gt=0, le=4096)] = knob("Scale of the updates, as alpha / r. Costs nothing.")
    target_modules: Annotated[list[Text], Field(min_length=1)] | Pattern = knob(
        "Linear layers that get an update: mlp, attention or all-linear, a list of names, or a regular expression that"
        " matches whole names. Fewer are faster and learn less."
    )
    bias: Literal["none", "lora_only", "all"] = knob(
        "Which biases are trained too: none, lora_only (those of the target modules) or all. Costs next to nothing."
    )
    use_rslora: Flag = knob(
        "Scale by alpha / sqrt(r) instead (rank-stabilised LoRA), so that high ranks keep learning. Costs nothing."
    )
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = knob(
        "How the updates are initialised: default (Kaiming, zero update), gaussian, orthogonal, or from the base"
        " weights with pissa or olora, which learn faster and store twice the rank."
    )
    layers_to_transform: LayerNumbers | Literal["upper_half"] | None = knob(
        "Blocks of the model that get an update: upper_half, a list of their numbers from 0 at the bottom, or null for"
        " all. Fewer are faster."
    )
    loraplus_lr_ratio: Annotated[Number, Field(ge=1, le=1000)] = knob(
        "Learning rate of the B matrices over that of the A matrices (LoRA+): 16 is common, 1 is plain LoRA. Costs"
        " nothing."
    )

    @model_validator(mode="after")
    def _possible(self) -> "Lora":
        pattern = isinstance(self.target_modules, str) and self.target_modules not in MODULE_SETS
        if pattern and self.layers_to_transform:
            raise ValueError(
                f"layers_to_transform does not go with target_modules: {self.target_modules}, a pattern, which names"
                " layers itself; set layers_to_transform to null"
            )
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(f"init_lora_weights: orthogonal needs an even r, not {self.r}")
        return self


class Layers(Section):
    lr_decay: Annotated[Number, Field(gt=0, le=1)] = knob(
        "Factor on the learning rate from each layer to the one below it, counted from the top; 1 gives all layers the"
        " same rate."
    )
    lr: dict[Pattern, Annotated[Number, Field(ge=0, le=1000)]] = knob(
        "Factors on the learning rate of weights whose names match a regular expression, such as {mlp: 0.5}; several"
        " multiply, and 0 freezes. For one experiment, -S '+layers.lr={mlp: 0.5}' adds the name."
    )


class Adversarial(Section):
    method: Literal["none", "neftune", "fgm", "pgd", "freelb"] = knob(
        "How embeddings are perturbed in training: none, neftune (noise, at no cost), or against the gradient with fgm"
        " (twice the time), freelb (`steps` times) or pgd (`steps` + 1 times)."
    )
    epsilon: Annotated[Number, Field(gt=0, le=1000)] = knob(
        "Size of the perturbation: an L2 norm over a conversation's embeddings, or for neftune the noise scale alpha."
    )
    steps: Annotated[Count, Field(le=100)] = knob(
        "Gradient steps towards the worst perturbation (pgd, freelb). Time grows in proportion."
    )
    step_size: Annotated[Number, Field(gt=0, le=1000)] = knob("Length of one such step, as an L2 norm.")


class Checkpoint(Section):
    every: Annotated[Count, Field(le=1_000_000)] = knob(
        "Optimizer steps between checkpoints, from which an interrupted training resumes. Fewer lose less and write"
        " more."
    )
