import collections
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import conversations, split
from stages.command import UserError
from stages.conversations import Conversation, Message


def prompts(count):
    return [f"prompt {number}" for number in range(count)]


def counted(chosen):
    return {name: chosen.count(name) for name in split.NAMES}


def test_fractions_are_kept():
    assert counted(split.assign(prompts(200), 0.15, 0.1, seed=1)) == {"train": 150, "validation": 30, "test": 20}


def test_eighteen_rows_work():
    assert counted(split.assign(prompts(18), 0.15, 0.15, seed=42)) == {"train": 12, "validation": 3, "test": 3}


def test_the_order_of_rows_does_not_matter():
    names = prompts(50)
    shuffled = random.Random(0).sample(names, 50)
    first = dict(zip(names, split.assign(names, 0.2, 0.2, 7), strict=True))
    assert dict(zip(shuffled, split.assign(shuffled, 0.2, 0.2, 7), strict=True)) == first


def test_another_seed_is_another_split():
    assert split.assign(prompts(50), 0.2, 0.2, 1) != split.assign(prompts(50), 0.2, 0.2, 2)


def test_added_rows_move_few_others():
    before = split.assign(prompts(200), 0.15, 0.15, 42)
    after = split.assign(prompts(210), 0.15, 0.15, 42)
    # Random assignment would move about 46 % of them (1 - 0.7² - 2 · 0.15²).
    assert sum(a != b for a, b in zip(before, after, strict=False)) <= 10


@given(st.lists(st.integers(0, 30), min_size=3, max_size=60).filter(lambda ids: len(set(ids)) >= 3), st.integers(0, 99))
def test_no_split_is_empty_and_equal_prompts_stay_together(ids, seed):
    chosen = split.assign([str(number) for number in ids], 0.15, 0.15, seed)
    assert set(chosen) == set(split.NAMES)
    homes = collections.defaultdict(set)
    for number, name in zip(ids, chosen, strict=True):
        homes[number].add(name)
    assert all(len(names) == 1 for names in homes.values())


def test_two_different_prompts_are_too_few():
    with pytest.raises(UserError, match="2 different prompts"):
        split.assign(["a", "b", "a"], 0.15, 0.15, 1)


def key(question, system="x"):
    return Conversation((Message("system", system), Message("user", question), Message("assistant", "a"))).prompt_key


@pytest.mark.parametrize(
    "other", ["when is BREAKFAST", "When is breakfast??", " When\nis  breakfast ", "\uff37hen is breakfast"]
)
def test_trivially_different_prompts_have_one_key(other):
    assert key(other) == key("When is breakfast?", system="y") != key("When is lunch?")


def test_prompts_of_signs_alone_differ():
    assert key("👍") != key("👎")


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), texts), min_size=1))
def test_a_conversation_survives_its_jsonl(turns):
    conversation = Conversation(tuple(Message(role, content) for role, content in turns))
    line = conversations.encode(conversation)
    assert b"\n" not in line and conversations.decode(line) == conversation
