"""Splits a batch into micro-batches that fit into memory. The gradient does not depend on how a batch is split."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import prefix_tree, sequence
from stages.core.cli import UserError

# Tensors by name; and Unsloth's description of a tree, for its kernel.
MicroBatch = dict[str, Any]

TREE, SEGMENTS, SEQUENCE, PADDED = "tree", "segments", "sequence", "padded"


class MicroBatches:
    """Splits batches into micro-batches of at most `budget` tokens, or of one conversation if that is longer.

    `form` is how a micro-batch is written; if the model does not read it as it should, the next of `fallbacks` is used:

    - TREE: one sequence (see `prefix_tree`), separated by an attention mask. If `share`, the common prefix occurs once.
    - SEGMENTS: the same for Unsloth's kernel, where sharing saves enough tokens; otherwise as SEQUENCE.
    - SEQUENCE: one sequence (see `sequence`), separated by the conversations' lengths.
    - PADDED: one row per conversation.
    """

    def __init__(self, form: str, share: bool, pad: int, budget: int, fallbacks: Sequence[str] = ()) -> None:
        self.form, self.share, self.pad, self.budget, self.fallbacks = form, share, pad, budget, fallbacks

    @property
    def packed(self) -> bool:
        """Whether no padding is computed."""
        return self.form != PADDED

    def of(self, batch: Sequence[Example]) -> list[MicroBatch]:
        """Split a batch. Micro-batches without learned tokens are dropped: their mean loss would be NaN."""
        return [micro for cut in self._cuts(batch) if learned(micro := self._made(cut))]

    def whole(self, examples: Sequence[Example]) -> MicroBatch:
        """One micro-batch of these examples, in the form that is tried, even where another would be smaller."""
        return self._made(examples, sharing=self.form == SEGMENTS)

    def fall_back(self) -> None:
        """Use the next form."""
        self.form, *self.fallbacks = self.fallbacks

    def _made(self, cut: Sequence[Example], sharing: bool = False) -> MicroBatch:
        if self.form == TREE:
            return prefix_tree.plant(cut, self.share)
        if self.form == SEGMENTS and (sharing or prefix_tree.worth_sharing(cut)):
            return prefix_tree.in_segments(prefix_tree.plant(cut))
        return padded(cut, self.pad) if self.form == PADDED else sequence.joined(cut)

    def shrink(self, batch: Sequence[Example]) -> None:
        """Halve the budget until this batch is split further.

        Raises:
            UserError: each micro-batch is already a single conversation.
        """
        cuts = len(self._cuts(batch))
        if cuts == len(batch):
            longest = max(len(one.input_ids) for one in batch)
            raise UserError(
                f"out of memory with one conversation of up to {longest} tokens at a time; set gradient_checkpointing:"
                " true, lower unsloth.max_length (with overlong: drop), or choose method: qlora or a smaller model"
            )
        self.budget = min(self.budget, self._size(batch))
        while len(self._cuts(batch)) == cuts:
            self.budget //= 2

    def _cuts(self, batch: Sequence[Example]) -> list[list[Example]]:
        cuts: list[list[Example]] = [[]]
        for one in batch:
            if cuts[-1] and self._size([*cuts[-1], one]) > self.budget:
                cuts.append([])
            cuts[-1].append(one)
        return cuts

    def _size(self, examples: Sequence[Example]) -> int:
        if self.form == PADDED:
            return len(examples) * max(len(one.input_ids) for one in examples)
        shared = self.share if self.form == TREE else self.form == SEGMENTS and prefix_tree.worth_sharing(examples)
        return prefix_tree.size(examples, shared)


def padded(examples: Sequence[Example], pad: int) -> MicroBatch:
    """Pad on the right: tensors of shape (conversations, longest); padding is never learned."""

    def rows(values: Callable[[Example], list[int]], filler: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(values(one)) for one in examples], batch_first=True, padding_value=filler)

    return {
        "input_ids": rows(lambda one: one.input_ids, pad),
        "labels": rows(lambda one: one.labels, IGNORED),
        "attention_mask": rows(lambda one: [1] * len(one.input_ids), 0),
    }


def losses(model: Any, micro: MicroBatch, smoothing: float = 0.0) -> torch.Tensor:
    """Loss in nats of each learned token of a packed or padded micro-batch, shape (learned tokens,), in float32."""
    if "branch" in micro:
        return prefix_tree.losses(model, micro, smoothing)
    logits = model(**{name: given for name, given in micro.items() if name != "labels"}, use_cache=False).logits
    targets = micro["labels"][:, 1:]
    learned = targets != IGNORED
    return torch.nn.functional.cross_entropy(
        logits[:, :-1][learned].float(), targets[learned], reduction="none", label_smoothing=smoothing
    )


def learned(micro: MicroBatch) -> int:
    """Number of learned tokens in a micro-batch."""
    return len(micro["targets"]) if "branch" in micro else int((micro["labels"][:, 1:] != IGNORED).sum())


def members(micro: MicroBatch) -> torch.Tensor:
    """The conversation of each position, numbered from 0; -1 for padding. Shape (rows, length).

    Only for micro-batches without a shared prefix.
    """
    if "branch" in micro:
        return micro["branch"][None] - 1
    if sequence.LENGTHS in micro:
        return sequence.members(micro)
    rows = torch.arange(len(micro["input_ids"]), device=micro["input_ids"].device)[:, None]
    return torch.where(micro["attention_mask"] > 0, rows, -1)
