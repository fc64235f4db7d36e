"""Answers by continuous batching: an answer that ends makes room for the next prompt at once, and nothing is padded.

transformers' own, over a paged cache. Only with flash-attn: without it every token is compared with the cache of all
conversations, of which a mask keeps one, and padded batches are faster.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils import is_flash_attn_2_available

from stages.backends.unsloth.common import device

ATTENTION = "flash_attention_2"


def applies(model: Any) -> bool:
    """Whether this machine and model have what it needs: flash-attn, and all weights on one NVIDIA GPU."""
    if device.kind() != "cuda" or not is_flash_attn_2_available():
        return False
    return len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) == 1


def generated(
    model: Any,
    prompts: Sequence[list[int]],
    how: GenerationConfig,
    attention: str = ATTENTION,
    config: ContinuousBatchingConfig | None = None,
) -> list[list[int]]:
    """The new tokens after each prompt, of all prompts at once; the cache takes the memory that is free.

    Raises:
        RuntimeError: an answer is missing or was given up.
    """
    # peft's wrapper has no such method; its layers are in the model.
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = plain.config._attn_implementation
    plain.set_attn_implementation(attention)
    # Its own log has a traceback for each failure; the reason is raised.
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    try:
        # It changes tensors in a thread of its own, where inference mode does not reach.
        with torch.inference_mode(False), torch.no_grad():
            answers = plain.generate_batch(list(prompts), generation_config=how, continuous_batching_config=config)
    finally:
        plain.set_attn_implementation(before)
    if len(answers) != len(prompts) or any(one.error for one in answers.values()):
        raise RuntimeError(next((one.error for one in answers.values() if one.error), "answers are missing"))
    return [list(one.generated_tokens) for one in answers.values()]
