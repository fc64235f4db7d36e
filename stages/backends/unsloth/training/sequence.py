"""Conversations one after another in one sequence: nothing is padded, and a common prefix occurs in each of them.

What separates them is `packed_seq_lengths`, which Unsloth's attention kernels read, and positions that start again from
0, by which transformers separates them.
"""

from collections.abc import Sequence

import torch

from stages.backends.unsloth.reader import IGNORED, Example

LENGTHS = "packed_seq_lengths"


def joined(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Join conversations: `input_ids`, `labels` and `position_ids` of shape (1, T) for T tokens in all, and lengths.

    A conversation's first token is never learned: what precedes it is another conversation.
    """
    labels = [label for one in examples for label in (IGNORED, *one.labels[1:])]
    return {
        "input_ids": torch.tensor([[token for one in examples for token in one.input_ids]]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([[position for one in examples for position in range(len(one.input_ids))]]),
        LENGTHS: torch.tensor([len(one.input_ids) for one in examples], dtype=torch.int32),
    }


def members(joined: dict[str, torch.Tensor]) -> torch.Tensor:
    """The conversation of each position, numbered from 0: shape (1, T)."""
    lengths = joined[LENGTHS]
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)[None]


def unseparated(joined: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tokens as a single conversation, in which each sees all before it."""
    total = joined["input_ids"].shape[1]
    positions = torch.arange(total, device=joined["input_ids"].device)[None]
    return joined | {"position_ids": positions, LENGTHS: torch.full_like(joined[LENGTHS][:1], total)}
