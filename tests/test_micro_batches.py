import pytest
import torch

from stages.backends.unsloth.chat import IGNORED, Example
from stages.command import UserError
from stages.training import micro_batches
from stages.training.micro_batches import MicroBatches

from .test_branches import alone, batch_of


@pytest.fixture(scope="module")
def model(small_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32).eval()


def gradients(model, cuts, smoothing=0.0):
    """Gradient of the mean loss over a batch's learned tokens, added up micro-batch by micro-batch."""
    count = sum(micro_batches.learned(micro) for micro in cuts)
    model.zero_grad()
    total = 0.0
    for micro in cuts:
        loss = micro_batches.losses(model, micro, smoothing).sum() / count
        loss.backward()
        total += float(loss)
    return total, [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("packed, share", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_loss_and_gradient_do_not_depend_on_the_cut(model, packed, share, budget, smoothing):
    batch = batch_of(shared=20, count=6)
    cuts = MicroBatches(packed, share, pad=0, budget=budget).of(batch)
    assert len(cuts) == {1: 6, 10_000: 1}.get(budget, len(cuts))
    loss, found = gradients(model, cuts, smoothing)
    # Plain torch over one conversation after the other.
    model.zero_grad()
    logits, targets = [], []
    for one in batch:
        out = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
        labels = torch.tensor(one.labels[1:])
        logits.append(out[labels != IGNORED])
        targets.append(labels[labels != IGNORED])
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets), label_smoothing=smoothing)
    expected.backward()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    for one, weight in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, weight.grad, rtol=1e-4, atol=1e-5)


def test_label_smoothing_is_that_of_transformers(model):
    from transformers.trainer_pt_utils import LabelSmoother

    batch = batch_of(shared=3, count=4)
    micro = micro_batches.padded(batch, pad=0)
    output = model(input_ids=micro["input_ids"], attention_mask=micro["attention_mask"])
    expected = LabelSmoother(epsilon=0.2)(output, micro["labels"], shift_labels=True)
    found = micro_batches.losses(model, micro, smoothing=0.2).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_padding_is_never_learned(model):
    batch = batch_of(shared=0, count=3)
    micro = micro_batches.padded(batch, pad=0)
    assert micro["input_ids"].shape == (3, max(len(one.input_ids) for one in batch))
    found = micro_batches.losses(model, micro)
    torch.testing.assert_close(found, torch.cat([alone(model, one) for one in batch]), rtol=1e-5, atol=1e-5)


def conversation(length):
    return Example([5] * length, [IGNORED] + [5] * (length - 1))


@pytest.mark.parametrize("packed", [True, False])
def test_the_budget_is_kept_and_no_conversation_is_lost(packed):
    batch = [conversation(length) for length in (10, 10, 10, 30, 10)]
    cuts = MicroBatches(packed, share=False, pad=0, budget=20).of(batch)
    assert [micro["input_ids"].numel() for micro in cuts] == [20, 10, 30, 10]
    assert sum(micro_batches.learned(micro) for micro in cuts) == 9 * 4 + 29


def test_shrinking_cuts_further_until_nothing_is_left_to_cut():
    batch = [conversation(10)] * 4
    batches = MicroBatches(True, share=False, pad=0, budget=10_000)
    counts = [len(batches.of(batch))]
    while len(batches.of(batch)) < 4:
        batches.shrink(batch)
        counts.append(len(batches.of(batch)))
    assert counts == sorted(set(counts)) and counts[0] == 1
    with pytest.raises(UserError, match="out of memory with one conversation of up to 10 tokens"):
        batches.shrink(batch)


def test_members_name_each_position_of_both_kinds():
    batch = [conversation(2), conversation(3)]
    packed, padded = (MicroBatches(kind, False, 0, 100).of(batch)[0] for kind in (True, False))
    assert micro_batches.members(packed).tolist() == [[0, 0, 1, 1, 1]]
    assert micro_batches.members(padded).tolist() == [[0, 0, -1], [1, 1, 1]]
