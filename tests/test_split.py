import collections
import json
import random

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import conversations, split
from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.neighbours import sketch
from stages.paths import CONVERSATIONS, QUARANTINE, SIGNALS, SPLIT_REPORT, SPLITS


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


@pytest.fixture
def rows(project):
    """rows(prompts) writes signals and conversations as parse and validate leave them."""

    def write(prompts, quarantined=()):
        talks = [Conversation((Message("user", prompt), Message("assistant", "Yes."))) for prompt in prompts]
        signals = [
            {"row": n, "error": None, "prompt_hash": prompt, "sketch": sketch(talk.prompt_key), "n_tokens": 10}
            for n, (prompt, talk) in enumerate(zip(prompts, talks, strict=True), 1)
        ]
        SIGNALS.parent.mkdir(exist_ok=True)
        pd.DataFrame(signals).to_parquet(SIGNALS)
        conversations.write_jsonl(CONVERSATIONS, talks)
        QUARANTINE.write_text("row,why,record\n" + "".join(f"{row},x,y\n" for row in quarantined))

    return write


def read(name):
    return [talk.prompt[0].content for talk in conversations.read_jsonl(SPLITS / f"{name}.jsonl")]


def test_nearly_equal_prompts_share_a_split(rows):
    rng = random.Random(2)
    questions = [letter + "".join(rng.choices("0123456789", k=99)) for letter in "abcdefghijklmnopqrst"]
    rows([question + end for question in questions for end in ("", "!", " please")])
    split.main()
    homes = collections.defaultdict(set)
    for name in split.NAMES:
        for prompt in read(name):
            homes[prompt[0]].add(name)
    assert len(homes) == 20 and all(len(names) == 1 for names in homes.values())


def test_the_report_shows_sizes_overlap_and_nearness(rows):
    rows([f"{n} {chr(97 + n % 26) * 30}" for n in range(40)])
    split.main()
    report = json.loads(SPLIT_REPORT.read_text())
    assert [report[name]["conversations"] for name in split.NAMES] == [len(read(name)) for name in split.NAMES]
    assert report["overlap"] == 0 and report["train"]["tokens"] == 10 * report["train"]["conversations"]
    assert 0 <= report["nearest"]["median"] <= report["nearest"]["p90"] <= report["nearest"]["max"] < 1


def test_quarantined_rows_are_left_out(rows):
    rows([f"question {chr(97 + n) * 20}" for n in range(10)], quarantined=[2, 9])
    split.main()
    kept = sorted(prompt[9] for name in split.NAMES for prompt in read(name))
    assert kept == list("acdefghj")
