"""The parameters of what follows a training: measuring, exporting, comparing."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.metrics.registry import REGISTRY
from stages.params.kinds import Count, Number, ReadBy, Section, knob, nearest


class Evaluate(Section):
    batch_size: Annotated[Count, Field(le=4096)] = knob(
        "Conversations answered at once (openai: parallel requests). More are faster and take more memory.",
        ReadBy(("evaluate",), decides="cost"),
    )
    max_new_tokens: Annotated[Count, Field(le=8192)] = knob(
        "Longest answer of a model, in tokens; longer ones are cut. Time grows with it."
    )
    resamples: Annotated[Count, Field(ge=100, le=100_000)] = knob(
        "Bootstrap resamples for each confidence interval. More give steadier intervals and take a little time."
    )
    confidence: Annotated[Number, Field(ge=0.5, lt=1)] = knob("Confidence level of the intervals.")
    epsilon: Annotated[Number, Field(gt=0, le=1000)] | None = knob(
        "Size of the perturbation for perturbed_loss, the loss with a conversation's embeddings moved by this L2 norm"
        " in the worst direction; null disables. Takes about as long as the answers.",
        ReadBy(("evaluate",), ("unsloth",)),
    )

    baselines: list[Literal["nearest", "few_shot", "constant", "tuned_few_shot"]] = knob(
        "Compared with besides the base: any of nearest (the most similar training prompt's answer), constant (the most"
        " typical answer), few_shot and tuned_few_shot (five examples in the prompt; they take longest)."
    )
    max_cost_usd: Annotated[Number, Field(ge=0)] | None = knob(
        "Most that the answers of a baseline with examples may cost, in US dollars, estimated first; one that costs"
        " more is left out. null sets no limit.",
        ReadBy(("evaluate",), ("openai",)),
    )


class Verdict(Section):
    retention: Annotated[Number, Field(ge=0)] = knob(
        "How much the loss on general prompts may rise before the verdict is mixed, in nats per token. It rises where"
        " the model forgets what it knew."
    )


class Export(Section):
    formats: list[Literal["safetensors", "gguf", "ollama"]] = knob(
        "Forms in which the tuned model is written for other programs: any of safetensors (whole model, 16 bit), gguf"
        " (for llama.cpp) and ollama (GGUF with a Modelfile). Each takes the disk space of the whole model; [] writes"
        " nothing.",
        ReadBy(("base", "export")),
    )
    gguf_type: Literal["bf16", "f16", "q8_0"] = knob(
        "Number format of the weights in GGUF: bf16, f16, or q8_0 (half the size, slightly less exact)."
    )


class Review(Section):
    regressions: dict[str, Annotated[Number, Field(ge=0)]] = knob(
        "How much worse each metric may get: `python -m stages.commands.review` fails if one is worse by more, and not"
        " within noise. Metrics not named here may change freely.",
        json_schema_extra={"propertyNames": {"enum": list(REGISTRY)}},
    )

    @model_validator(mode="after")
    def _known_metrics(self) -> "Review":
        for name in self.regressions:
            if name not in REGISTRY:
                raise ValueError(f"review.regressions: '{name}' is not a metric{nearest(name, REGISTRY)}")
        return self
