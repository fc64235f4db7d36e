"""What a model reads is tried before the first step: no conversation may see another in silence."""

import pytest
import torch

from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import isolation, prefix_tree
from stages.backends.unsloth.training.micro_batches import PADDED, SEQUENCE, TREE, MicroBatches
from stages.core.cli import UserError
from tests.backends.unsloth.training.test_prefix_tree import batch_of
from tests.backends.unsloth.training.test_sequence import model_of


def ignoring_masks(monkeypatch):
    """Models know only the order of tokens."""

    def causal(branch, dtype):
        hidden = torch.ones(len(branch), len(branch), dtype=torch.bool).triu(1)
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)[None, None]

    monkeypatch.setattr(prefix_tree, "_mask", causal)


def ignoring_lengths(monkeypatch):
    """Models no longer separate by positions, and transformers never did by lengths."""
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


IGNORING = {TREE: ignoring_masks, SEQUENCE: ignoring_lengths}


@pytest.fixture
def on_a_gpu(monkeypatch):
    """All but the kernels: what is tried there, on the CPU."""
    monkeypatch.setattr(isolation.device, "kind", lambda: "cuda")
    monkeypatch.setattr(isolation.device, "random_states", list)
    monkeypatch.setattr(isolation.device, "free_unused", lambda: None)
    monkeypatch.setattr(isolation.torch, "autocast", lambda *_, **__: torch.enable_grad())


@pytest.mark.parametrize("as_trained", [False, True])
@pytest.mark.parametrize("form", [TREE, SEQUENCE])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_model_that_ignores_what_separates_conversations_is_noticed(monkeypatch, kind, form, as_trained):
    model, batches = model_of(kind), MicroBatches(form, share=True, pad=0, budget=1000)
    assert isolation.apart(model, batches, *batch_of(4, count=2), as_trained)
    IGNORING[form](monkeypatch)
    assert not isolation.apart(model, batches, *batch_of(4, count=2), as_trained)


def test_a_model_that_separates_only_in_evaluation_is_noticed(monkeypatch):
    """As Unsloth's do on a GPU, which drop a mask in training."""
    model, batches = model_of("llama"), MicroBatches(TREE, share=True, pad=0, budget=1000)
    real = model.model.forward

    def forward(attention_mask, **given):
        causal = prefix_tree._mask(torch.zeros(attention_mask.shape[-1]), torch.float32)
        return real(attention_mask=causal if model.training else attention_mask, **given)

    monkeypatch.setattr(model.model, "forward", forward)
    assert isolation.apart(model, batches, *batch_of(0, count=2), as_trained=False)
    assert not isolation.apart(model, batches, *batch_of(0, count=2), as_trained=True)


def test_a_wrong_gradient_is_noticed():
    model, batches = model_of("llama"), MicroBatches(SEQUENCE, share=True, pad=0, budget=1000)
    pair = batch_of(4, count=2)
    assert isolation.apart(model, batches, *pair, as_trained=True)
    # A kernel whose backward pass is wrong for more than one conversation.
    attention = model.model.layers[0].self_attn.v_proj
    attention.register_full_backward_hook(lambda _, inputs, __: tuple(-2 * one for one in inputs))
    real = model.forward

    def forward(**given):
        attention.training_on_many = "packed_seq_lengths" in given
        return real(**given)

    hooks = attention._backward_hooks
    ((key, hook),) = hooks.items()
    hooks[key] = lambda module, inputs, outputs: hook(module, inputs, outputs) if module.training_on_many else None
    model.forward = forward
    assert not isolation.apart(model, batches, *pair, as_trained=True)
    assert isolation.apart(model, batches, *pair, as_trained=False)


def test_trying_leaves_no_trace():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("llama"), LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    batches = MicroBatches(SEQUENCE, share=True, pad=0, budget=1000)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    isolation.ensure(model, batches, batch_of(4), required=False)
    assert isolation.apart(model, batches, *batch_of(4, count=2), as_trained=True), "dropout is off meanwhile"
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    rates = {one.p for one in model.modules() if isinstance(one, torch.nn.Dropout)}
    assert rates == {0.5} and batches.form == SEQUENCE


@pytest.mark.parametrize("form, instead", [(TREE, "padded"), (SEQUENCE, "padded")])
def test_where_it_is_ignored_conversations_are_padded(monkeypatch, capsys, form, instead):
    model = model_of("llama")
    batches = MicroBatches(form, share=True, pad=0, budget=1000, fallbacks=[PADDED])
    isolation.ensure(model, batches, batch_of(4), required=False)
    assert batches.form == form and capsys.readouterr().out == ""
    IGNORING[form](monkeypatch)
    isolation.ensure(model, batches, batch_of(4), required=False)
    assert batches.form == PADDED and not batches.packed
    said = capsys.readouterr().out
    assert f"ignores the mask that packing needs ({form}), so conversations are {instead}" in said


def test_the_first_form_that_is_read_is_used(monkeypatch, capsys):
    model = model_of("llama")
    batches = MicroBatches(TREE, share=True, pad=0, budget=1000, fallbacks=[SEQUENCE, PADDED])
    ignoring_masks(monkeypatch)
    isolation.ensure(model, batches, batch_of(4), required=True)
    assert batches.form == SEQUENCE and batches.fallbacks == [PADDED]
    assert "so conversations are packed by their lengths" in capsys.readouterr().out


def test_packing_that_is_required_and_ignored_is_refused(monkeypatch):
    batches = MicroBatches(SEQUENCE, share=True, pad=0, budget=1000, fallbacks=[PADDED])
    ignoring_lengths(monkeypatch)
    with pytest.raises(UserError, match="packing: this model's attention ignores the mask that packing needs"):
        isolation.ensure(model_of("llama"), batches, batch_of(4), required=True)


def test_a_kernel_that_does_not_run_is_not_used(on_a_gpu, monkeypatch, capsys):
    model = model_of("llama")
    batches = MicroBatches(SEQUENCE, share=True, pad=0, budget=1000, fallbacks=[PADDED])

    def fail(*_, **__):
        raise NotImplementedError("no kernel for this device\nand more")

    monkeypatch.setattr(isolation.sequence, "unseparated", fail)
    isolation.ensure(model, batches, batch_of(4), required=False)
    assert batches.form == PADDED
    assert "cannot compute what packing needs: no kernel for this device (sequence)" in capsys.readouterr().out


def test_a_single_conversation_or_none_that_is_learned_needs_no_trial(monkeypatch):
    ignoring_masks(monkeypatch)
    silent = Example([5, 6, 7], [IGNORED] * 3)
    for train in ([batch_of(0)[0]], [silent, silent]):
        batches = MicroBatches(TREE, share=True, pad=0, budget=1000, fallbacks=[PADDED])
        isolation.ensure(model_of("llama"), batches, train, required=False)
        assert batches.form == TREE


def test_a_conversation_that_is_not_learned_may_be_the_other_one():
    silent, (spoken, *_) = Example([5, 6, 7], [IGNORED] * 3), batch_of(0)
    batches = MicroBatches(TREE, share=True, pad=0, budget=1000, fallbacks=[PADDED])
    isolation.ensure(model_of("llama"), batches, [spoken, silent], required=False)
    assert batches.form == TREE


def test_no_gradient_is_left():
    model = model_of("qwen2")
    isolation.ensure(model, MicroBatches(SEQUENCE, True, 0, 1000, [PADDED]), batch_of(4), required=False)
    assert all(weight.grad is None for weight in model.parameters())
