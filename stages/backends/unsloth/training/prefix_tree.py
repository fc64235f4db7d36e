"""Loss over conversations with a common prefix, which is computed only once.

Conversations of a dataset often share a system prompt. A batch becomes a few trees, each of them one sequence: the
common prefix, followed by one branch per conversation. Position ids and an attention mask restrict each branch to the
prefix and itself, so every token has the same hidden state as in a separate sequence. Logits are computed only for
learned tokens. Loss and gradient equal those of padded sequences up to rounding.

On a GPU a mask of T x T numbers would be computed in full, and Unsloth drops it in training. There the tree goes to
Unsloth's prefix grouping instead (`in_segments`): FlexAttention with the same rule, which skips what is masked. Its
kernel for separate lengths is faster, but computes the prefix for each conversation.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from stages.backends.unsloth.reader import IGNORED, Example

# Attention is quadratic in a tree's length: beyond this many tokens it costs more than the shared prefix saves.
TREE_TOKENS = 768
# FlexAttention is slower than the kernel for separate lengths: Unsloth groups prefixes from this ratio of tokens on.
_WORTH = 1.3
# Learned tokens whose logits are on a GPU at a time; for 128,000 tokens in the vocabulary they take 1.3 GB.
_AT_ONCE = 1024
# Tested architectures, all with full causal attention and plain logits (no soft cap, no scale).
ARCHITECTURES = {"llama", "qwen2", "qwen3"}

Tree = dict[str, Any]


def supported(config: Any) -> bool:
    """Whether a model with this configuration gives the same results in a tree as in separate sequences."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type in ARCHITECTURES and kinds == {"full_attention"}


def size(examples: Sequence[Example], share: bool = True) -> int:
    """Number of tokens in the tree of these examples."""
    prefix = _prefix(examples) if share else 0
    return prefix + sum(len(one.input_ids) - prefix for one in examples)


def worth_sharing(examples: Sequence[Example]) -> bool:
    """Whether sharing the prefix saves more on a GPU than its slower attention costs."""
    return size(examples, False) >= _WORTH * size(examples)


def plant(examples: Sequence[Example], share: bool = True) -> Tree:
    """Build a tree of T tokens, L of which predict a learned token; without `share`, branches share no prefix.

    Returns `input_ids` and `position_ids` of shape (1, T); `branch` (T,): 0 for the prefix, then 1, 2, ...;
    `predicting` (L,): indices of the predicting tokens; `targets` (L,): the tokens that they should predict.
    """
    prefix = _prefix(examples) if share else 0
    ids, positions, branch = list(examples[0].input_ids[:prefix]), list(range(prefix)), [0] * prefix
    predicting: list[int] = []
    targets: list[int] = []
    for number, example in enumerate(examples, 1):
        for at in range(prefix, len(example.input_ids)):
            # A branch's first token is predicted by the prefix's last; a sequence's first token is never learned.
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


def in_segments(tree: Tree) -> Tree:
    """The tree for Unsloth's prefix grouping: with `segments`, its description of prefix and branches."""
    counts = torch.bincount(tree["branch"]).tolist()
    return tree | {"segments": _segments(counts[0], [count for count in counts[1:] if count])}


def unseparated(tree: Tree) -> Tree:
    """The same tree, in which each token sees all before it."""
    total = len(tree["branch"])
    whole = {"segments": _segments(total, [])} if "segments" in tree else {}
    return tree | {"branch": torch.zeros_like(tree["branch"])} | whole


def _segments(prefix: int, branches: list[int]) -> Any:
    from unsloth.utils.prefix_grouper_kernel import build_seg_info_multigroup

    return build_seg_info_multigroup([(prefix, branches)], torch.device("cpu"))[0]


def losses(model: Any, tree: Tree, smoothing: float = 0.0) -> torch.Tensor:
    """Negative log-likelihood in nats of each learned token, shape (L,), in float32.

    With `smoothing`, this share of each target is spread over the whole vocabulary (Szegedy et al. 2016,
    arXiv:1512.00567).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, inner.base_model_prefix)
    hidden = body(
        input_ids=tree["input_ids"],
        position_ids=tree["position_ids"],
        use_cache=False,
        **_separation(tree, inner.dtype),
    ).last_hidden_state[0]
    head = inner.get_output_embeddings()
    hidden, targets = hidden[tree["predicting"]], tree["targets"]
    if hidden.device.type == "cpu":
        return _nll(hidden, targets, head, smoothing)
    parts = zip(hidden.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True)
    # Logits are computed again in the backward pass, rather than kept for all tokens.
    return torch.cat([checkpoint(_nll, *part, head, smoothing, use_reentrant=False) for part in parts])


def _separation(tree: Tree, dtype: torch.dtype) -> dict[str, Any]:
    """What tells the attention which tokens see each other."""
    if "segments" in tree:
        return {"prefix_seg_info": tree["segments"]}
    return {"attention_mask": _mask(tree["branch"], dtype)}


def _nll(hidden: torch.Tensor, targets: torch.Tensor, head: Any, smoothing: float) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none", label_smoothing=smoothing)


def _mask(branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask of shape (1, 1, T, T): a token attends to the prefix and its branch up to itself."""
    seen = ((branch[:, None] == branch[None]) | (branch[None] == 0)).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=branch.device).masked_fill(~seen, torch.finfo(dtype).min)[
        None, None
    ]


def _prefix(examples: Sequence[Example]) -> int:
    """Number of leading tokens that all examples share and none learns."""
    steps = zip(*(zip(one.input_ids, one.labels, strict=True) for one in examples), strict=False)
    alike = (all(token == (here[0][0], IGNORED) for token in here) for here in steps)
    return sum(itertools.takewhile(bool, alike))
