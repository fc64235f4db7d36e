"""Loss over conversations with a common prefix, which is computed only once.

Conversations of a dataset often share a system prompt. A batch becomes a few trees, each of them one sequence: the
common prefix, followed by one branch per conversation. Position ids and an attention mask restrict each branch to the
prefix and itself, so every token has the same hidden state as in a separate sequence. Logits are computed only for
learned tokens. Loss and gradient equal those of padded sequences up to rounding.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from stages.backends.unsloth.reader import IGNORED, Example

# Attention is quadratic in a tree's length: beyond this many tokens it costs more than the shared prefix saves.
TREE_TOKENS = 768
# Tested architectures, all with full causal attention and plain logits (no soft cap, no scale).
ARCHITECTURES = {"llama", "qwen2", "qwen3"}

Tree = dict[str, torch.Tensor]


def supported(config: Any) -> bool:
    """Whether a model with this configuration gives the same results in a tree as in separate sequences."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type in ARCHITECTURES and kinds == {"full_attention"}


def size(examples: Sequence[Example], share: bool = True) -> int:
    """Number of tokens in the tree of these examples."""
    prefix = _prefix(examples) if share else 0
    return prefix + sum(len(one.input_ids) - prefix for one in examples)


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
        attention_mask=_mask(tree["branch"], inner.dtype),
        use_cache=False,
    ).last_hidden_state[0]
    logits = inner.get_output_embeddings()(hidden[tree["predicting"]])
    return torch.nn.functional.cross_entropy(
        logits.float(), tree["targets"], reduction="none", label_smoothing=smoothing
    )


@torch.no_grad()
def honoured(model: Any, first: Example, second: Example) -> bool:
    """Whether a branch has the same losses beside another as alone; a model that ignores the mask sees both.

    The difference is compared with the one that seeing all makes. Differences in rounding are smaller, and so are those
    below 0.02 nats, which do not matter.
    """
    tree = plant([first, second], False)
    of_second = tree["branch"][tree["predicting"]] == 2
    device = next(model.parameters()).device

    def of(made: Tree) -> torch.Tensor:
        return losses(model, {name: tensor.to(device) for name, tensor in made.items()}).cpu()

    alone, beside = of(plant([second], False)), of(tree)[of_second]
    seeing_all = of(tree | {"branch": torch.zeros_like(tree["branch"])})[of_second]
    return bool((beside - alone).abs().mean() < max(float((seeing_all - alone).abs().mean()) / 2, 0.02))


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
