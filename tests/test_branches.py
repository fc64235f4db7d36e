import random

import pytest
import torch

from stages.backends.unsloth.chat import IGNORED, Example
from stages.training import branches


@pytest.fixture(scope="module")
def model(small_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32).eval()


def talk(prefix, question, answer):
    return Example([*prefix, *question, *answer], [IGNORED] * len(prefix + question) + list(answer))


def batch_of(shared, count=5):
    rng = random.Random(1)

    def some():
        return [rng.randrange(3, 200) for _ in range(rng.randrange(1, 40))]

    return [talk([9] * shared, some(), some()) for _ in range(count)]


def alone(model, example):
    """Loss of each learned token from a plain forward pass over one conversation."""
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].float()
    labels = torch.tensor(example.labels[1:])
    keep = labels != IGNORED
    return torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="none")


@pytest.mark.parametrize("shared", [0, 1, 60])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_and_gradients_are_those_of_separate_conversations(model, shared, attention):
    model.set_attn_implementation(attention)
    batch = batch_of(shared)
    expected = torch.cat([alone(model, one) for one in batch])
    found = branches.losses(model, branches.plant(batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = list(model.parameters())
    pairs = zip(torch.autograd.grad(found.mean(), weights), torch.autograd.grad(expected.mean(), weights), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_prefix_stands_once():
    tree = branches.plant([talk([9, 9], [5], [6, 7]), talk([9, 9], [4, 4], [6])])
    assert tree["input_ids"].tolist() == [[9, 9, 5, 6, 7, 4, 4, 6]]
    assert tree["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    assert tree["branch"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert tree["predicting"].tolist() == [2, 3, 6] and tree["targets"].tolist() == [6, 7, 6]


def test_equal_conversations_count_each():
    tree = branches.plant([talk([9], [5], [6])] * 2)
    assert tree["input_ids"].tolist() == [[9, 5, 6, 6]] and tree["targets"].tolist() == [6, 6]


def test_without_sharing_each_branch_has_its_own_beginning(model):
    batch = batch_of(shared=5)
    tree = branches.plant(batch, share=False)
    assert tree["branch"].tolist() == [n for n, one in enumerate(batch, 1) for _ in one.input_ids]
    assert branches.size(batch, share=False) == len(tree["branch"]) == branches.size(batch) + 5 * (len(batch) - 1)
    expected = torch.cat([alone(model, one) for one in batch])
    torch.testing.assert_close(branches.losses(model, tree), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind, changes, expected",
    [
        ("LlamaConfig", {}, True),
        ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2}, False),
        ("Gemma2Config", {}, False),
    ],
)
def test_only_plain_attention_is_supported(kind, changes, expected):
    import transformers

    assert branches.supported(getattr(transformers, kind)(**changes)) is expected
