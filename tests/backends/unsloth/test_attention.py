"""Attention of one new token against torch's own."""

import pytest
import torch

from stages.backends.unsloth.inference import attention

BATCH, HEADS, SHARED, SIZE, SEEN = 3, 6, 2, 8, 5


class Module(torch.nn.Module):
    num_key_value_groups = HEADS // SHARED
    is_causal = True


def mask(kind):
    seen = torch.ones(BATCH, 1, 1, SEEN, dtype=torch.bool)
    # Left padding.
    seen[0, ..., :2] = False
    return {"none": None, "seen": seen, "added": torch.where(seen, 0.0, -1e9)}[kind]


def tensors(tokens=1):
    draw = torch.Generator().manual_seed(3)
    shapes = (BATCH, HEADS, tokens, SIZE), (BATCH, SHARED, SEEN, SIZE), (BATCH, SHARED, SEEN, SIZE)
    return [torch.randn(shape, generator=draw) for shape in shapes]


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("kind", ["none", "seen", "added"])
def test_one_token_sees_what_torch_shows_it(kind, scaling):
    query, key, value = tensors()
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask(kind), scale=scaling, enable_gqa=True
    )
    found, _ = attention._attention(Module(), query, key, value, mask(kind), scaling=scaling)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_several_tokens_are_left_to_torch():
    query, key, value = tensors(tokens=SEEN)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    found, _ = attention._attention(Module(), query, key, value, None)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_a_model_answers_as_with_torchs_attention():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "output_logits": True}
    own = model.generate(**batch, **options, return_dict_in_generate=True)
    attention.speed_up_steps(model)
    assert model.config._attn_implementation != "sdpa"
    ours = model.generate(**batch, **options, return_dict_in_generate=True)
    assert ours.sequences.tolist() == own.sequences.tolist()
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(own.logits))
