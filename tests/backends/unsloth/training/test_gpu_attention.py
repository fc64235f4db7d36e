"""Packed micro-batches through Unsloth's own choice of GPU attention, on the CPU, in a tiny model of transformers.

Its kernels need a GPU; what they are called with, and which tokens then see each other, does not. Run by
test_gpu_trainer.py, since importing Unsloth changes transformers.
"""

import pytest
import torch

from stages.backends.unsloth.training import isolation, micro_batches
from stages.backends.unsloth.training.micro_batches import PADDED, SEGMENTS, SEQUENCE, MicroBatches
from tests.backends.unsloth.training.test_prefix_tree import alone, batch_of
from tests.backends.unsloth.training.test_sequence import model_of
from tests.support.gpu_trainer import CHANGED

pytestmark = pytest.mark.skipif(not CHANGED, reason="run beside the rewritten trainer, by test_gpu_trainer.py")
_NAME = "as_unsloth_on_a_gpu"


@pytest.fixture
def model(monkeypatch):
    """model(kind): its attention is Unsloth's, with dense products in place of the kernel for prefixes."""
    from torch.nn.attention.flex_attention import create_block_mask, create_mask
    from transformers import AttentionInterface
    from unsloth.utils import prefix_grouper_kernel as kernel

    def dense(query, key, value, block_mask, enable_gqa, scale, kernel_options):
        seen = create_mask(block_mask.mask_mod, 1, 1, query.shape[2], key.shape[2], device="cpu")
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )

    monkeypatch.setattr(kernel, "_flex_attention_compiled", dense)
    monkeypatch.setattr(kernel, "_create_block_mask_compiled", create_block_mask)
    AttentionInterface.register(_NAME, attention)

    def made(kind):
        found = model_of(kind)
        found.set_attn_implementation(_NAME)
        return found

    return made


def attention(module, query, key, value, attention_mask, **given):
    """What Unsloth's layers of a Llama do with their projections."""
    from unsloth.utils import attention_dispatch as dispatch
    from unsloth.utils.packing import get_packed_info_from_kwargs

    lengths = get_packed_info_from_kwargs(given, query.device)
    config = dispatch.AttentionConfig(
        backend=dispatch.select_attention_backend(lengths is not None),
        n_kv_heads=key.shape[1],
        n_groups=query.shape[1] // key.shape[1],
    )
    context = dispatch.AttentionContext(
        bsz=query.shape[0],
        q_len=query.shape[2],
        kv_seq_len=key.shape[2],
        n_heads=query.shape[1],
        head_dim=query.shape[3],
        requires_grad=query.requires_grad,
        seq_info=lengths,
        attention_mask=None,
        causal_mask=None,
        training=module.training,
        prefix_seg_info=dispatch.resolve_prefix_seg_info(given, None, None),
    )
    return dispatch.run_attention(config=config, context=context, Q=query, K=key, V=value), None


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("form", [SEGMENTS, SEQUENCE])
@pytest.mark.parametrize("shared", [0, 1, 200])
def test_losses_and_gradients_equal_those_of_separate_conversations(model, kind, form, shared):
    found, batch = model(kind), batch_of(shared)
    expected = torch.cat([alone(found, one) for one in batch])
    (micro,) = MicroBatches(form, share=True, pad=0, budget=10_000).of(batch)
    # Sharing one token is not worth it, sharing 200 is.
    assert ("segments" in micro) == (form == SEGMENTS and shared == 200)
    losses = micro_batches.losses(found, micro)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    weights = list(found.parameters())
    pairs = zip(torch.autograd.grad(losses.mean(), weights), torch.autograd.grad(expected.mean(), weights), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_torch_s_own_flexattention_sees_the_same(model, monkeypatch):
    """Without gradients, which it does not compute on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention
    from unsloth.utils import prefix_grouper_kernel as kernel

    found, batch = model("llama"), batch_of(200)
    monkeypatch.setattr(
        kernel,
        "_flex_attention_compiled",
        lambda *given, kernel_options, **others: flex_attention(*given, **others),
    )
    (micro,) = MicroBatches(SEGMENTS, share=True, pad=0, budget=10_000).of(batch)
    with torch.no_grad():
        expected = torch.cat([alone(found, one) for one in batch])
        torch.testing.assert_close(micro_batches.losses(found, micro), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ignored, form", [([], SEGMENTS), (["prefix_seg_info"], SEQUENCE)])
def test_the_best_form_that_the_attention_knows_is_used(model, monkeypatch, ignored, form):
    found = model("llama")
    real = attention

    def partly(*given, **options):
        return real(*given, **{name: one for name, one in options.items() if name not in ignored})

    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, partly)
    batches = MicroBatches(SEGMENTS, share=True, pad=0, budget=10_000, fallbacks=[SEQUENCE, PADDED])
    isolation.ensure(found, batches, batch_of(4), required=False)
    assert batches.form == form


def test_an_attention_that_knows_neither_gets_padded_conversations(model, capsys):
    from transformers import AttentionInterface

    found = model("llama")

    def neither(*given, **options):
        unknown = ("prefix_seg_info", "packed_seq_lengths")
        return attention(*given, **{name: one for name, one in options.items() if name not in unknown})

    AttentionInterface.register(_NAME, neither)
    batches = MicroBatches(SEGMENTS, share=True, pad=0, budget=10_000, fallbacks=[SEQUENCE, PADDED])
    isolation.ensure(found, batches, batch_of(4), required=False)
    assert batches.form == PADDED
    said = capsys.readouterr().out
    assert "(segments), so conversations are packed by their lengths" in said
    assert "(sequence), so conversations are padded" in said


@pytest.mark.parametrize(
    "kind, packing, method, forms",
    [
        ("llama", "auto", "none", [SEGMENTS, SEQUENCE, PADDED]),
        ("qwen3", True, "none", [SEGMENTS, SEQUENCE, PADDED]),
        ("llama", "auto", "fgm", [SEQUENCE, PADDED]),
        ("mistral", "auto", "none", [SEQUENCE, PADDED]),
        ("gemma3_text", True, "none", [SEQUENCE, PADDED]),
        # Unsloth found these to be wrong.
        ("gemma2", "auto", "none", [PADDED]),
        ("gpt_oss", "auto", "none", [PADDED]),
        ("llama", False, "none", [PADDED]),
    ],
)
def test_what_is_tried_on_a_gpu(project, monkeypatch, kind, packing, method, forms):
    import sys
    from types import SimpleNamespace

    from stages import params
    from stages.backends.unsloth.common import device
    from stages.backends.unsloth.training import model as training_model
    from tests.conftest import set_params

    monkeypatch.setattr(device, "kind", lambda: "cuda")
    set_params(packing=packing, adversarial__method=method)
    config = SimpleNamespace(config=SimpleNamespace(model_type=kind))
    found = training_model._micro_batches(config, SimpleNamespace(pad_token_id=17), params.load())
    assert [found.form, *found.fallbacks] == forms and found.budget == sys.maxsize and found.pad == 17
