import numpy as np
import pytest
import torch

from stages.backends.unsloth.inference import local
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message


def talk(*turns):
    roles = ["user", "assistant"] * len(turns)
    return Conversation(tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False)))


TALKS = [
    talk("Pool?", "At 7."),
    talk("Hi", "Hello!", "And breakfast, please: when?", "From 7 to 10, downstairs."),
    talk("a", "b"),
]


@pytest.fixture
def pair(base, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return LocalPair.load(base, tmp_path / "adapter", Chat.load(), batch_size=2)


def expected(pair, conversation, tuned):
    """Likelihood of the response from a plain forward pass over one conversation, without padding or caches."""
    example = pair.chat.example(conversation, last_only=True)
    with torch.no_grad(), pair._which(tuned) as model:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].float()
    labels = torch.tensor(example.labels[1:])
    keep = labels != -100
    nll = torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="sum")
    return float(nll), int((logits[keep].argmax(-1) == labels[keep]).sum()), int(keep.sum())


@pytest.mark.parametrize("tuned", [False, True])
def test_likelihoods_do_not_depend_on_the_batch(pair, tuned):
    found = pair.likelihoods(TALKS, tuned)
    by_hand = np.array([expected(pair, one, tuned) for one in TALKS]).T
    assert found.tokens.tolist() == by_hand[2].tolist() and found.tokens.tolist()[2] == 2  # "b" and the end token
    # bf16 has 8 bits: the order of summation shows in the third digit.
    assert found.nll == pytest.approx(by_hand[0], rel=0.01)


def test_base_and_tuned_model_differ(pair):
    assert (pair.likelihoods(TALKS, True).nll != pair.likelihoods(TALKS, False).nll).all()


def test_truncated_answers_are_counted(pair):
    texts, cut = pair.answers(TALKS, True, max_new_tokens=3)
    # A model with random weights never generates the end token.
    assert len(texts) == 3 == cut and all(len(text) <= 3 for text in texts)
    assert pair.answers(TALKS[:2], True, max_new_tokens=3)[1] == 2


def test_answers_stop_at_the_end_token(pair):
    # Rig the head so that the end token is always the most likely.
    head = pair.tuned.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    with torch.no_grad():
        head.weight[2] = 1
    body = pair.tuned.get_base_model().model
    body.norm.forward = lambda hidden: torch.ones_like(hidden)
    assert pair.answers(TALKS, False, max_new_tokens=5) == (["", "", ""], 0)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_worst_perturbation_raises_the_loss_and_does_not_depend_on_the_batch(pair, tuned):
    clean = pair.likelihoods(TALKS, tuned).nll
    found = pair.perturbed(TALKS, tuned, epsilon=2.0).nll
    assert (found > clean).all()
    for row, talk in enumerate(TALKS):
        assert pair.perturbed([talk], tuned, epsilon=2.0).nll[0] == pytest.approx(found[row], rel=0.02)
    assert pair.perturbed(TALKS, tuned, epsilon=1e-6).nll == pytest.approx(clean, rel=0.01)


@pytest.mark.parametrize(
    "lengths, size, alike, batches",
    [
        ([5, 9, 7], 2, 0.0, [[1, 2], [0]]),
        # 6 is two thirds of 9, and 6 is shorter than three quarters of it.
        ([9, 6, 6, 8, 5], 8, 0.75, [[0, 3], [1, 2, 4]]),
        ([8, 6], 8, 0.75, [[0, 1]]),
        ([], 8, 0.75, []),
    ],
)
def test_batches_are_of_similar_length_longest_first(lengths, size, alike, batches):
    assert list(local._batches(lengths, size, "loss", True, alike)) == batches


def test_a_likelihood_is_computed_with_little_padding(pair, monkeypatch):
    sizes = []
    score = local._score
    monkeypatch.setattr(local, "_score", lambda model, batch: sizes.append(len(batch.labels)) or score(model, batch))
    # The second conversation is much longer than the others, which have about the same length.
    pair.likelihoods(TALKS, True)
    assert sum(sizes) == 3 and sizes[0] == 1


def test_the_heads_input_is_in_one_piece(pair, monkeypatch):
    """Of a slice, torch would copy the head's weights for each row."""
    seen = []
    pair.tuned.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    pair.likelihoods(TALKS, True)
    assert seen and all(one.is_contiguous() for one in seen)


def limited(most, computed):
    """Doubles up to so many rows at once; memory runs out with more."""

    def compute(rows):
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(list(rows))
        return [2 * row for row in rows]

    return compute


@pytest.mark.parametrize(
    "most, parts", [(5, [[0, 1, 2, 3, 4]]), (2, [[0, 1], [2], [3, 4]]), (1, [[0], [1], [2], [3], [4]])]
)
def test_a_batch_that_does_not_fit_is_computed_in_parts(most, parts):
    computed = []
    found = list(local._fitting([0, 1, 2, 3, 4], limited(most, computed)))
    assert computed == parts == [part for part, _ in found]
    assert [double for _, doubles in found for double in doubles] == [0, 2, 4, 6, 8]


def test_a_conversation_that_does_not_fit_alone_is_an_error_for_the_user():
    with pytest.raises(UserError, match="out of memory with one conversation at a time"):
        list(local._fitting([7, 8], limited(0, [])))


def test_other_errors_are_not_mistaken_for_running_out_of_memory():
    def fail(rows):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        list(local._fitting([7, 8], fail))


def test_likelihoods_and_answers_are_the_same_in_parts(pair, monkeypatch):
    expected = pair.likelihoods(TALKS, True), pair.answers(TALKS, True, 3)
    score, generate = local._score, local.LocalPair._generate

    def few(compute):
        def run(*given):
            size = len(given[1].labels) if isinstance(given[1], local._Batch) else len(given[2])
            if size > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return compute(*given)

        return run

    monkeypatch.setattr(local, "_score", few(score))
    monkeypatch.setattr(local.LocalPair, "_generate", few(generate))
    found = pair.likelihoods(TALKS, True), pair.answers(TALKS, True, 3)
    assert found[0].nll == pytest.approx(expected[0].nll, rel=0.02)
    assert found[0].tokens.tolist() == expected[0].tokens.tolist() and len(found[1][0]) == 3
