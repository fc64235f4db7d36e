"""What many prompts share, by hand and by counting every window."""

import collections
import random
import string

import numpy as np
import pytest

from stages.dataset import shared_text
from stages.dataset.shared_text import Sample

RNG = random.Random(4)
WORDS = ["".join(RNG.choices(string.ascii_lowercase, k=6)) for _ in range(2000)]


def text(words):
    return " ".join(RNG.choices(WORDS, k=words))


def shared(prompts):
    sample = Sample()
    for number, prompt in enumerate(prompts):
        sample.add(number, prompt)
    return sample.shared()


INSTRUCTION = "user:classify the sentiment of this review as positive or negative"


def test_prompts_without_what_most_of_them_share():
    inputs = [text(4) for _ in range(12)]
    found = shared([f"{INSTRUCTION} {one}" for one in inputs])
    assert [found.without(f"{INSTRUCTION} {one}") for one in inputs] == inputs


def test_what_is_shared_can_be_before_between_and_behind():
    before, between, behind = text(8), text(8), text(8)
    inputs = [(text(1), text(2)) for _ in range(30)]
    prompts = [f"{before} {one} {between} {other} {behind}" for one, other in inputs]
    found = shared(prompts)
    assert [found.without(prompt) for prompt in prompts] == [f"{one}\n{other}" for one, other in inputs]


def test_what_few_share_stays():
    assert not shared([f"{INSTRUCTION} {text(4)}" for _ in range(9)])
    assert not shared([text(20) for _ in range(40)])
    # Half of the prompts are not most of them.
    mixed = [f"{INSTRUCTION} {text(4)}" for _ in range(20)]
    assert not shared([*mixed, *(text(12) for _ in range(20))])
    assert shared([*mixed, *(text(12) for _ in range(19))])


def test_several_tasks_have_each_their_long_instruction():
    tasks = [text(16) for _ in range(4)]
    prompts = [f"{task} {text(3)}" for task in tasks for _ in range(10)]
    found = shared(prompts)
    assert [found.without(one) for one in prompts] == [" ".join(one.split()[16:]) for one in prompts]


def test_a_prompt_that_is_nothing_else_is_compared_whole():
    found = shared([*(f"{INSTRUCTION} {text(4)}" for _ in range(20)), INSTRUCTION])
    assert found.without(INSTRUCTION) == INSTRUCTION and found.without("") == "" and found.without("other") == "other"


def test_what_is_found_does_not_depend_on_the_order():
    prompts = [(RNG.getrandbits(64), f"{INSTRUCTION} {text(4)}" if n % 3 else text(9)) for n in range(2000)]
    outcomes = []
    for _ in range(2):
        RNG.shuffle(prompts)
        sample = Sample()
        for identity, prompt in [*prompts, *prompts[:50]]:
            sample.add(identity, prompt)
        assert len(sample._kept) == 500
        outcomes.append({length: hashes.tolist() for length, hashes in sample.shared()._windows.items()})
    assert outcomes[0] == outcomes[1] and outcomes[0]


@pytest.mark.parametrize("length", [1, 2, 3, 40, 100])
def test_windows_are_equal_where_their_hashes_are(length):
    letters = "".join(RNG.choices("ab\U0001f642é", k=400))
    hashes = shared_text._hashes(letters, length)
    windows = [letters[at : at + length] for at in range(400 - length + 1)]
    assert len(hashes) == len(windows)
    by_text, by_hash = collections.defaultdict(list), collections.defaultdict(list)
    for at, (window, number) in enumerate(zip(windows, hashes.tolist(), strict=True)):
        by_text[window].append(at)
        by_hash[number].append(at)
    assert sorted(by_text.values()) == sorted(by_hash.values())
    assert shared_text._hashes("a" * (length - 1), length).size == 0 and hashes.dtype == np.uint64


def test_only_the_beginning_of_a_long_prompt_is_looked_at():
    prompts = [f"{INSTRUCTION} {n} {'x' * 20_000}{n}" for n in range(20)]
    found = shared(prompts)
    assert found.without(prompts[3]) == f"3\n{prompts[3][10_000:]}"
