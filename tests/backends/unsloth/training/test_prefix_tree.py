import random
from types import SimpleNamespace

import pytest
import torch

from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import prefix_tree


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
    """Loss of each learned token, from a plain forward pass over one conversation."""
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].float()
    labels = torch.tensor(example.labels[1:])
    keep = labels != IGNORED
    return torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="none")


def assert_gradients_equal(model, found, expected, **tolerance):
    """Compare the gradients of two means of losses, by weight."""
    weights = list(model.parameters())
    pairs = zip(torch.autograd.grad(found.mean(), weights), torch.autograd.grad(expected.mean(), weights), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("shared", [0, 1, 60])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_and_gradients_equal_those_of_separate_conversations(model, shared, attention):
    model.set_attn_implementation(attention)
    batch = batch_of(shared)
    expected = torch.cat([alone(model, one) for one in batch])
    found = prefix_tree.losses(model, prefix_tree.plant(batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_gradients_equal(model, found, expected, rtol=1e-4, atol=1e-5)


def test_the_prefix_occurs_once():
    tree = prefix_tree.plant([talk([9, 9], [5], [6, 7]), talk([9, 9], [4, 4], [6])])
    assert tree["input_ids"].tolist() == [[9, 9, 5, 6, 7, 4, 4, 6]]
    assert tree["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    assert tree["branch"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert tree["predicting"].tolist() == [2, 3, 6] and tree["targets"].tolist() == [6, 7, 6]


def test_identical_conversations_each_count():
    tree = prefix_tree.plant([talk([9], [5], [6])] * 2)
    assert tree["input_ids"].tolist() == [[9, 5, 6, 6]] and tree["targets"].tolist() == [6, 6]


def test_without_sharing_each_branch_has_its_own_prefix(model):
    batch = batch_of(shared=5)
    tree = prefix_tree.plant(batch, share=False)
    assert tree["branch"].tolist() == [n for n, one in enumerate(batch, 1) for _ in one.input_ids]
    assert prefix_tree.size(batch, share=False) == len(tree["branch"]) == prefix_tree.size(batch) + 5 * (len(batch) - 1)
    expected = torch.cat([alone(model, one) for one in batch])
    torch.testing.assert_close(prefix_tree.losses(model, tree), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind, changes, expected",
    [
        ("LlamaConfig", {}, True),
        ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2}, False),
        ("Gemma2Config", {}, False),
    ],
)
def test_only_architectures_with_plain_attention_are_supported(kind, changes, expected):
    import transformers

    assert prefix_tree.supported(getattr(transformers, kind)(**changes)) is expected


@pytest.mark.parametrize(
    "kind, layers, expected",
    [
        ("llama", None, True),
        ("qwen2", ["full_attention"] * 2, True),
        ("qwen3", ["full_attention"], True),
        ("qwen3", ["full_attention", "sliding_attention"], False),
        ("qwen2", ["sliding_attention"], False),
        ("mistral", None, False),
        ("gemma2", ["full_attention"], False),
    ],
)
def test_an_architecture_is_supported_if_all_layers_have_full_attention(kind, layers, expected):
    assert prefix_tree.supported(SimpleNamespace(model_type=kind, layer_types=layers)) is expected
    if layers is None:
        assert prefix_tree.supported(SimpleNamespace(model_type=kind)) is expected


def test_a_shared_prefix_ends_at_a_label_a_difference_or_the_end_of_a_conversation():
    ignored = [IGNORED] * 4
    learned = [IGNORED, IGNORED, 3, 4]
    for batch, prefix in [
        ([Example([1, 2, 3, 4], ignored), Example([1, 2, 3, 5], ignored)], 3),
        ([Example([1, 2, 3, 4], learned), Example([1, 2, 3, 4], learned)], 2),
        # A token that one of them learns is not shared.
        ([Example([1, 2, 3, 4], ignored), Example([1, 2, 3, 4], learned)], 2),
        ([Example([1, 2], ignored[:2]), Example([1, 2, 3, 4], ignored)], 2),
        ([Example([1, 2, 3, 4], ignored), Example([9, 2, 3, 4], ignored)], 0),
    ]:
        tree = prefix_tree.plant(batch)
        assert tree["branch"].tolist().count(0) == prefix
        expected = prefix + sum(len(one.input_ids) - prefix for one in batch)
        assert prefix_tree.size(batch) == tree["input_ids"].numel() == expected


def test_a_first_token_is_never_learned():
    tree = prefix_tree.plant([Example([5, 6], [5, 6]), Example([7, 8], [7, 8])])
    # The second conversation's first token follows the first one's last, which must not predict it.
    assert tree["predicting"].tolist() == [0, 2] and tree["targets"].tolist() == [6, 8]


def test_what_each_token_attends_to():
    # A prefix of two tokens, then branches of one and two.
    mask = prefix_tree._mask(torch.tensor([0, 0, 1, 2, 2]), torch.float32)
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == torch.float32
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


def test_hidden_states_come_from_the_model_under_peft_s_wrapper():
    """Including the effect of the adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=200, **sizes))
    adapted = get_peft_model(plain, LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    batch = batch_of(shared=4, count=3)
    expected = torch.cat([alone(adapted, one) for one in batch])
    torch.testing.assert_close(prefix_tree.losses(adapted, prefix_tree.plant(batch)), expected, rtol=1e-4, atol=1e-4)
