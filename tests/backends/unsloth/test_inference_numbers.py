"""The results of a pair of local models, compared with plain forward passes over single conversations in float32."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.backends.unsloth.inference import local as inference
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from stages.dataset.conversations import Conversation, Message
from tests.backends.unsloth.test_inference import TALKS, talk
from tests.support.small import make_base

# Numbers of tokens, one per byte plus the end token. Only the last turn is the response.
TOKENS = [len("At 7.") + 1, len("From 7 to 10, downstairs.") + 1, len("b") + 1]
END = 2


def adapter(base, folder, **config):
    """Write an adapter that changes the model's answers; return the model with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(plain(base), LoraConfig(init_lora_weights=False, **config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias") and weight.requires_grad:
                weight.add_(9.0)
    model.save_pretrained(folder)
    return model.eval()


def plain(folder):
    """The model with its weights rounded to bf16, as a pair loads them, computing in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()


@pytest.fixture
def both(base, tmp_path):
    """A pair in float32, and the same two models loaded independently, by `tuned`."""
    tuned = adapter(base, tmp_path / "adapter")
    pair = LocalPair.load(base, tmp_path / "adapter", Chat.load(), batch_size=2)
    pair.tuned.float()
    return pair, {False: plain(base), True: tuned}


def ids(pair, conversation):
    """The conversation's tokens, and how many of them belong to the response."""
    text = pair.chat.render(conversation)
    tokens = pair.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    while tokens[-1] != END:
        tokens = tokens[:-1]
    return torch.tensor([tokens]), len(conversation.response.encode()) + 1


def response_sums(model, tokens, length, embedded=None):
    """Negative log-likelihood of the last `length` tokens, and how many of them the model ranks first."""
    given = {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
    logits = model(**given).logits[0, -length - 1 : -1]
    chances = logits.log_softmax(-1).gather(1, tokens[0, -length:, None])
    return -chances.sum(), int((logits.argmax(-1) == tokens[0, -length:]).sum())


@pytest.mark.parametrize("tuned", [False, True])
def test_likelihoods_equal_those_of_a_plain_forward_pass(both, tuned):
    pair, models = both
    found = pair.likelihoods(TALKS, tuned)
    with torch.no_grad():
        expected = [response_sums(models[tuned], *ids(pair, one)) for one in TALKS]
    assert found.tokens.tolist() == TOKENS
    assert found.nll == pytest.approx([float(nll) for nll, _ in expected], rel=1e-4)
    assert found.correct.tolist() == [correct for _, correct in expected]


def test_likelihoods_of_a_padded_batch_computed_by_hand():
    """A vocabulary of three tokens, with zeros as left padding, and labels of -100 that do not count."""
    ids = torch.tensor([[0, 0, 1, 2, 1], [1, 2, 2, 1, 2], [0, 1, 1, 2, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, -100, 2, 1], [-100, -100, -100, -100, 2], [-100, -100, 1, 2, -100]])
    # Logits for the next token. A logit of ln 2 gives that token 2 / 4, and the two others 1 / 4 each.
    logits = torch.full((3, 5, 3), float("nan"))
    two = torch.tensor(2.0).log()
    logits[0, 2:4] = torch.tensor([[0, 0, two], [two, 0, 0]])  # 2 follows with 1 / 2, then 1 with 1 / 4
    logits[1, 3] = torch.tensor([0, 0, two])  # 2 with 1 / 2
    logits[2, 1:3] = torch.tensor([[two, 0, 0], [0, two, 0]])  # 1 with 1 / 4, then 2 with 1 / 4
    asked = {}

    def model(input_ids, attention_mask, position_ids, logits_to_keep, use_cache):
        assert input_ids is ids and attention_mask is mask
        asked.update(positions=position_ids.tolist(), kept=logits_to_keep, cache=use_cache)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])

    batch = inference._Batch({"input_ids": ids, "attention_mask": mask}, labels)
    nll, correct, tokens = inference._score(model, batch).tolist()
    # ln 2 + ln 4, ln 2, ln 4 + ln 4.
    ln2 = float(two)
    assert nll == pytest.approx([3 * ln2, ln2, 4 * ln2])
    assert (correct, tokens) == ([1, 1, 0], [2, 1, 2])
    # Padding does not count in positions; the first label is the third token, predicted by the second.
    assert asked == {"positions": [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1, 2, 3]], "kept": 4, "cache": False}


@pytest.mark.parametrize("tuned", [False, True])
def test_the_perturbation_is_the_gradient_scaled_to_epsilon(both, tuned):
    pair, models = both
    model, epsilon = models[tuned], 0.7
    expected = []
    for one in TALKS:
        tokens, length = ids(pair, one)
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        nll, _ = response_sums(model, tokens, length, embedded)
        (gradient,) = torch.autograd.grad(nll, embedded)
        moved = embedded + epsilon * gradient / gradient.norm()
        with torch.no_grad():
            expected.append([float(number) for number in response_sums(model, tokens, length, moved)])
    found = pair.perturbed(TALKS, tuned, epsilon)
    assert found.nll == pytest.approx([nll for nll, _ in expected], rel=1e-3)
    assert found.correct.tolist() == [correct for _, correct in expected] and found.tokens.tolist() == TOKENS


def greedy(model, tokens, limit):
    """The most likely next tokens, one forward pass each, up to the end token."""
    answer = []
    while len(answer) < limit and END not in answer:
        answer.append(int(model(input_ids=torch.tensor([tokens + answer])).logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("tuned", [False, True])
def test_answers_are_greedy_and_truncated_at_the_limit(both, tuned):
    pair, models = both
    tokenizer, expected = pair.chat.tokenizer, []
    for one in TALKS:
        prompt = pair.chat.render(Conversation(one.prompt), answer_next=True)
        with torch.no_grad():
            expected.append(greedy(models[tuned], tokenizer(prompt, add_special_tokens=False)["input_ids"], 5))
    texts, cut = pair.answers(TALKS, tuned, max_new_tokens=5)
    assert texts == [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in expected]
    assert cut == sum(END not in answer for answer in expected)


class Scripted:
    """Generates one letter for each prompt, determined by its length; some answers end, others are truncated."""

    device = torch.device("cpu")

    def __init__(self, ending):
        self.ending, self.asked, self.configs = ending, [], []

    def generate(self, input_ids, attention_mask, generation_config):
        lengths = attention_mask.sum(dim=1).tolist()
        self.asked.append(lengths)
        self.configs.append(generation_config)
        # Ids from 3 on are letters. Answers that end are padded with 0.
        answers = [
            [40 + length % 50, END, 0] if length in self.ending else [40 + length % 50] * 3 for length in lengths
        ]
        return torch.cat([input_ids, torch.tensor(answers)], dim=1)


def test_answers_match_their_prompts_and_truncated_ones_are_counted(both):
    pair, _ = both
    prompts = ["a" * size for size in (3, 9, 1, 7, 5)]
    talks = [talk(prompt, "x") for prompt in prompts]
    rest = len(pair.chat.tokenizer(pair.chat.render(Conversation(talks[2].prompt), answer_next=True))["input_ids"]) - 1
    scripted = Scripted(ending={rest + 9, rest + 5})
    texts, cut = LocalPair(None, scripted, pair.chat, batch_size=2).answers(talks, True, max_new_tokens=3)
    # Similar lengths together, longest first.
    assert scripted.asked == [[rest + 9, rest + 7], [rest + 5, rest + 3], [rest + 1]]
    letters = [pair.chat.tokenizer.decode([40 + (rest + len(prompt)) % 50]) for prompt in prompts]
    assert texts == [letters[0] * 3, letters[1], letters[2] * 3, letters[3] * 3, letters[4]] and cut == 3
    (config, *_) = scripted.configs
    assert (config.do_sample, config.max_new_tokens, config.eos_token_id, config.pad_token_id) == (False, 3, [END], 0)


def lengths(pair):
    return [len(pair.chat.example(one, last_only=True).input_ids) for one in TALKS]


@pytest.mark.parametrize("room, rows", [(2.0, [2, 1]), (1.99, [1, 1, 1]), (0.5, [1, 1, 1]), (9.0, [2, 1])])
def test_batches_with_gradients_are_limited_by_tokens(both, monkeypatch, room, rows):
    pair, _ = both
    longest = max(lengths(pair))
    monkeypatch.setattr(inference, "_GRADIENT_TOKENS", int(room * longest))
    monkeypatch.setattr(inference, "_ALIKE", 0.0)
    seen = []
    pair.tuned.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    pair.perturbed(TALKS, True, 0.5)
    # Two forward passes per batch: for the gradient, and with the perturbation.
    assert seen == [size for size in rows for _ in range(2)]


def test_likelihoods_are_computed_in_batches_of_the_given_size(both, monkeypatch):
    pair, _ = both
    monkeypatch.setattr(inference, "_ALIKE", 0.0)
    seen = []
    pair.tuned.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    pair.likelihoods(TALKS, True)
    longest, _, shortest = sorted(lengths(pair), reverse=True)
    assert seen == [(2, longest), (1, shortest)]


def test_the_base_keeps_its_own_biases_beside_an_adapter_that_trains_them(project, tmp_path):
    from tests.conftest import use_base

    base = make_base(tmp_path / "qwen", "qwen2")
    use_base(base)
    adapter(base, tmp_path / "adapter", bias="all", target_modules=["q_proj", "v_proj"])
    pair = LocalPair.load(base, tmp_path / "adapter", Chat.load(), batch_size=3)
    pair.base.float(), pair.tuned.float()
    alone = plain(base)
    with torch.no_grad():
        expected = [float(response_sums(alone, *ids(pair, one))[0]) for one in TALKS]
    assert pair.likelihoods(TALKS, False).nll == pytest.approx(expected, rel=1e-4)
    assert (np.abs(pair.likelihoods(TALKS, True).nll / expected - 1) > 1e-3).all()


def test_a_full_model_is_loaded_beside_the_base(base, tmp_path):
    other = make_base(tmp_path / "other", "qwen2")
    pair = LocalPair.load(base, other, Chat.load(), batch_size=3)
    assert (pair.base.config.model_type, pair.tuned.config.model_type) == ("llama", "qwen2")
    with pair._which(False) as model:
        assert model is pair.base
    with pair._which(True) as model:
        assert model is pair.tuned
    assert pair.base.dtype == torch.bfloat16 and not any(weight.requires_grad for weight in pair.tuned.parameters())
    assert not pair.base.training and not pair.tuned.training and pair.facts() == {}


def test_a_streamed_answer_equals_the_batched_answer(both):
    pair, _ = both
    (expected, *_), _ = pair.answers(TALKS, True, max_new_tokens=6)
    heard = []
    said = pair.say([Message("user", "Pool?")], True, 6, heard.append)
    assert said == expected and "".join(heard).strip() == expected
