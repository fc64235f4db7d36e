"""Attention of one new token on a CPU: torch's kernel is made for many, and took most of the time of an answer."""

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "sdpa_but_plain_for_one_token"


def speed_up_steps(model: Any) -> None:
    """Let a model on the CPU that uses torch's attention compute a single token's by plain products."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' own: query (batch, heads, tokens, size), key and value with fewer heads that groups share."""
    plain = query.shape[2] == 1 and options.get("position_bias") is None
    if not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    batch, heads, _, size = query.shape
    scale = options.get("scaling") or size**-0.5
    scores = query.view(batch, key.shape[1], -1, size) @ key.transpose(2, 3) * scale
    if attention_mask is not None:
        # The fused kernel takes either kind: true where a token is seen, or a number to add.
        hidden = torch.finfo(scores.dtype).min
        seen = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, hidden) if seen else scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).view(batch, 1, heads, value.shape[3]), None
