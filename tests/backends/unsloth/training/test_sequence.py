"""Conversations joined into one sequence, against each alone in plain transformers."""

import pytest
import torch

from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import micro_batches, sequence
from tests.backends.unsloth.training.test_prefix_tree import alone, assert_gradients_equal, batch_of

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "gemma": {},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}


def model_of(kind, **given):
    """A tiny model of this architecture whose answers depend on what it sees: small random weights hardly do."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **given})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight *= 8
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 30])
def test_losses_and_gradients_equal_those_of_separate_conversations(kind, shared):
    model, batch = model_of(kind), batch_of(shared)
    expected = torch.cat([alone(model, one) for one in batch])
    found = micro_batches.losses(model, sequence.joined(batch))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert_gradients_equal(model, found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_the_loss_that_models_compute_themselves_is_the_mean_over_all_conversations(kind):
    model, batch = model_of(kind), batch_of(5)
    found = model(**sequence.joined(batch), use_cache=False).loss
    torch.testing.assert_close(found, torch.cat([alone(model, one) for one in batch]).mean(), rtol=1e-4, atol=1e-4)


def test_conversations_follow_each_other_and_none_predicts_the_next_one_s_first_token():
    joined = sequence.joined([Example([5, 6, 7], [IGNORED, 6, 7]), Example([8, 9], [8, 9])])
    assert joined["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert joined["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert joined["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert joined["packed_seq_lengths"].tolist() == [3, 2] and joined["packed_seq_lengths"].dtype == torch.int32
    assert sequence.members(joined).tolist() == [[0, 0, 0, 1, 1]]
    assert micro_batches.learned(joined) == 3


def test_unseparated_conversations_are_one():
    joined = sequence.unseparated(sequence.joined([Example([5, 6, 7], [IGNORED, 6, 7]), Example([8, 9], [8, 9])]))
    assert joined["position_ids"].tolist() == [[0, 1, 2, 3, 4]] and joined["packed_seq_lengths"].tolist() == [5]
