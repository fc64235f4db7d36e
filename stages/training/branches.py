"""Loss over conversations that begin alike, with their common beginning computed once.

Conversations of one data set mostly share a system prompt. A batch becomes a few trees, each one sequence: the common
prefix, then what follows it in each conversation, a branch. Position ids and an attention mask let each branch see the
prefix and itself only, so every token gets the same hidden state as in a sequence of its own. Logits are computed for
the learned tokens alone. Loss and gradient equal those of padded sequences up to rounding.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from stages.backends.unsloth.chat import IGNORED, Example

# Attention costs the square of a tree's length: beyond this many tokens, sharing the prefix saves less than that.
TREE_TOKENS = 768
# Architectures with full causal attention and plain logits (no soft cap, no scale), where this was tested.
ARCHITECTURES = {"llama", "qwen2", "qwen3"}

Tree = dict[str, torch.Tensor]


def supported(config: Any) -> bool:
    """Whether a model of this configuration computes the same in a tree as in separate sequences."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type in ARCHITECTURES and kinds == {"full_attention"}


def size(examples: Sequence[Example], share: bool = True) -> int:
    """How many tokens the tree of these examples has."""
    prefix = _prefix(examples) if share else 0
    return prefix + sum(len(one.input_ids) - prefix for one in examples)


def plant(examples: Sequence[Example], share: bool = True) -> Tree:
    """One tree of T tokens, of which L predict a learned token; without `share` each branch has its own beginning.

    Returns `input_ids` and `position_ids` of shape (1, T), `branch` (T,): 0 for the prefix, then 1, 2, ...;
    `predicting` (L,): indices into the T tokens; `targets` (L,): the token that each of them should predict.
    """
    prefix = _prefix(examples) if share else 0
    ids, positions, branch = list(examples[0].input_ids[:prefix]), list(range(prefix)), [0] * prefix
    predicting: list[int] = []
    targets: list[int] = []
    for number, example in enumerate(examples, 1):
        for at in range(prefix, len(example.input_ids)):
            # The token before a branch's first one is the prefix's last. A sequence's first token is never learned.
            if example.labels[at] != IGNORED and at > 0:
                predicting.append(len(ids) - 1 if at > prefix else prefix - 1)
                targets.append(example.labels[at])
            ids.append(example.input_ids[at])
            positions.append(at)
            branch.append(number)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "branch": torch.tensor(branch),
        "predicting": torch.tensor(predicting, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
    }


def losses(model: Any, tree: Tree, smoothing: float = 0.0) -> torch.Tensor:
    """Negative log-likelihood in nats of each learned token, shape (L,), in float32.

    With `smoothing`, this share of the target is spread over the whole vocabulary (Szegedy et al. 2016,
    arXiv:1512.00567).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, inner.base_model_prefix)
    hidden = body(
        input_ids=tree["input_ids"],
        position_ids=tree["position_ids"],
        attention_mask=_mask(tree["branch"], inner.dtype),
        use_cache=False,
    ).last_hidden_state[0]
    logits = inner.get_output_embeddings()(hidden[tree["predicting"]])
    return torch.nn.functional.cross_entropy(
        logits.float(), tree["targets"], reduction="none", label_smoothing=smoothing
    )


def _mask(branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask of shape (1, 1, T, T): a token sees the prefix and its own branch up to itself."""
    seen = ((branch[:, None] == branch[None]) | (branch[None] == 0)).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=branch.device).masked_fill(~seen, torch.finfo(dtype).min)[
        None, None
    ]


def _prefix(examples: Sequence[Example]) -> int:
    """How many leading tokens all examples share, none of them learned."""
    steps = zip(*(zip(one.input_ids, one.labels, strict=True) for one in examples), strict=False)
    alike = (all(token == (here[0][0], IGNORED) for token in here) for here in steps)
    return sum(itertools.takewhile(bool, alike))
