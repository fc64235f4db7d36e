import pytest
import torch

from stages.backends.unsloth.reader import IGNORED, Example
from stages.backends.unsloth.training import micro_batches
from stages.backends.unsloth.training.micro_batches import PADDED, SEQUENCE, TREE, MicroBatches
from stages.core.cli import UserError
from tests.backends.unsloth.training.test_prefix_tree import alone, batch_of


@pytest.fixture(scope="module")
def model(small_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32).eval()


def gradients(model, cuts, smoothing=0.0):
    """Gradient of the mean loss over a batch's learned tokens, accumulated over micro-batches."""
    count = sum(micro_batches.learned(micro) for micro in cuts)
    model.zero_grad()
    total = 0.0
    for micro in cuts:
        loss = micro_batches.losses(model, micro, smoothing).sum() / count
        loss.backward()
        total += float(loss)
    return total, [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("form, share", [(TREE, True), (TREE, False), (SEQUENCE, False), (PADDED, False)])
@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(model, form, share, budget, smoothing):
    batch = batch_of(shared=20, count=6)
    cuts = MicroBatches(form, share, pad=0, budget=budget).of(batch)
    assert len(cuts) == {1: 6, 10_000: 1}.get(budget, len(cuts))
    loss, found = gradients(model, cuts, smoothing)
    # Plain torch, one conversation at a time.
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


def test_label_smoothing_equals_that_of_transformers(model):
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


@pytest.mark.parametrize("form", [TREE, SEQUENCE, PADDED])
def test_micro_batches_are_within_the_budget_and_no_conversation_is_lost(form):
    batch = [conversation(length) for length in (10, 10, 10, 30, 10)]
    cuts = MicroBatches(form, share=False, pad=0, budget=20).of(batch)
    assert [micro["input_ids"].numel() for micro in cuts] == [20, 10, 30, 10]
    assert sum(micro_batches.learned(micro) for micro in cuts) == 9 * 4 + 29


def test_shrinking_splits_further_until_each_conversation_is_alone():
    batch = [conversation(10)] * 4
    batches = MicroBatches(TREE, share=False, pad=0, budget=10_000)
    counts = [len(batches.of(batch))]
    while len(batches.of(batch)) < 4:
        batches.shrink(batch)
        counts.append(len(batches.of(batch)))
    assert counts == sorted(set(counts)) and counts[0] == 1
    with pytest.raises(UserError, match="out of memory with one conversation of up to 10 tokens"):
        batches.shrink(batch)


def test_members_assign_positions_to_conversations_packed_and_padded():
    batch = [conversation(2), conversation(3)]
    tree, joined, padded = (MicroBatches(form, False, 0, 100).of(batch)[0] for form in (TREE, SEQUENCE, PADDED))
    assert micro_batches.members(tree).tolist() == micro_batches.members(joined).tolist() == [[0, 0, 1, 1, 1]]
    assert micro_batches.members(padded).tolist() == [[0, 0, -1], [1, 1, 1]]


@pytest.mark.parametrize(
    "form, budget, expected",
    [
        # Packed: 10 + 30 tokens fit into 40 exactly, and another conversation does not.
        (TREE, 40, [2, 1]),
        (SEQUENCE, 39, [1, 2]),
        # Padded: two of them take 2 x 30.
        (PADDED, 59, [1, 1, 1]),
        (PADDED, 60, [2, 1]),
        (PADDED, 90, [3]),
    ],
)
def test_a_micro_batch_may_use_the_whole_budget(form, budget, expected):
    cuts = MicroBatches(form, False, pad=0, budget=budget)._cuts([conversation(n) for n in (10, 30, 8)])
    assert [len(cut) for cut in cuts] == expected


def test_a_shared_prefix_counts_once_in_the_budget():
    # 20 shared tokens, and 5 of each conversation.
    batch = [Example([3] * 20 + [n] * 5, [IGNORED] * 20 + [n] * 5) for n in (7, 8, 9)]
    assert len(MicroBatches(TREE, True, pad=0, budget=35)._cuts(batch)) == 1
    assert len(MicroBatches(TREE, False, pad=0, budget=35)._cuts(batch)) == 3


@pytest.mark.parametrize(
    "budget, expected",
    [
        # Half of the batch's size, 4 x 10.
        (10_000, 20),
        # Already two micro-batches: half of 25 leaves one conversation in each.
        (25, 12),
        # Three and one: half of 39 leaves one in each.
        (39, 19),
    ],
)
def test_the_budget_is_halved_until_the_batch_is_split_further(budget, expected):
    batches = MicroBatches(PADDED, share=False, pad=0, budget=budget)
    batches.shrink([conversation(10)] * 4)
    assert batches.budget == expected


def test_the_longest_conversation_is_reported_if_nothing_can_be_split():
    with pytest.raises(UserError, match="one conversation of up to 30 tokens at a time; set gradient_checkpointing"):
        MicroBatches(PADDED, False, pad=0, budget=1).shrink([conversation(10), conversation(30), conversation(20)])


@pytest.mark.parametrize("form", [TREE, SEQUENCE, PADDED])
def test_a_micro_batch_with_nothing_to_learn_is_dropped(form):
    silent = Example([5, 6, 7], [IGNORED] * 3)
    # Nothing precedes a first token that could predict it.
    first = Example([5, 6], [5, IGNORED])
    batch = [silent, conversation(3), first]
    cuts = MicroBatches(form, False, pad=0, budget=3).of(batch)
    assert [micro_batches.learned(micro) for micro in cuts] == [2]
    assert MicroBatches(form, False, pad=0, budget=3).of([silent, first]) == []


def test_padding_is_on_the_right_and_masked():
    micro = micro_batches.padded([Example([5, 6, 7], [IGNORED, 6, 7]), Example([8], [IGNORED])], pad=4)
    assert micro["input_ids"].tolist() == [[5, 6, 7], [8, 4, 4]]
    assert micro["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]
    assert micro["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("form", [TREE, SEQUENCE, PADDED])
def test_losses_are_in_float32_for_any_model_dtype(small_base, form):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.bfloat16).eval()
    (micro,) = MicroBatches(form, False, pad=0, budget=100).of([conversation(5)])
    with torch.no_grad():
        found = micro_batches.losses(model, micro)
        logits = model(input_ids=torch.tensor([[5] * 5])).logits[0, :-1].float()
    assert found.dtype == torch.float32
    # Sums in bf16 would be wrong in the third digit.
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([5] * 4), reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    assert found.sum() != found.bfloat16().sum()
