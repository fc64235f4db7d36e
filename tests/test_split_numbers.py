"""Who goes into which split, and what the report counts, at sizes and seeds that a reader can check by hand."""

import collections
import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import params, split
from stages.core.cli import UserError
from stages.core.paths import CONVERSATIONS, QUARANTINE, SIGNALS, SPLIT_REPORT, SPLITS, TEST_LABELS, VALIDATION
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.dataset.near_duplicates import sketch
from stages.dataset.signals import SCHEMA
from tests.conftest import set_params


def talk(number):
    """Prompts that have no gram in common."""
    letter = chr(0x4E00 + number)
    return Conversation((Message("user", letter * 20), Message("assistant", "Yes.")))


@pytest.fixture
def ready(project):
    """ready(labels, errors, quarantined) writes what parse and validate leave of a row for each label; row n, from 1,
    has n tokens. Rows of `errors` are no conversations."""

    def write(labels, errors=(), quarantined=()):
        rows, talks = [], []
        for row, label in enumerate(labels, 1):
            if row in errors:
                rows.append({"row": row, "error": "malformed"})
                continue
            prompt = talk(row).prompt_key
            rows.append({"row": row, "label": label, "prompt_hash": prompt, "sketch": sketch(prompt), "n_tokens": row})
            talks.append(talk(row))
        SIGNALS.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), SIGNALS)
        conversations.write_jsonl(CONVERSATIONS, talks)
        QUARANTINE.write_text("row,why,record\n" + "".join(f"{row},x,y\n" for row in quarantined))
        VALIDATION.parent.mkdir(exist_ok=True)
        VALIDATION.write_text(json.dumps({"quarantined": len(quarantined)}))

    return write


def homes():
    """The rows in each split."""
    numbers = {talk(row).prompt[0].content: row for row in range(200)}
    return {name: [numbers[one.prompt[0].content] for one in conversations.read_jsonl(SPLITS[name])] for name in SPLITS}


def test_each_split_gets_its_own_share_of_the_parameters(ready):
    set_params(split__validation=0.3, split__test=0.1)
    ready([None] * 20)
    split.main()
    assert {name: len(rows) for name, rows in homes().items()} == {"train": 12, "validation": 6, "test": 2}


@pytest.mark.parametrize("seed", range(1, 6))
def test_each_label_gives_its_share_to_each_split(ready, seed):
    # 0.2 and 0.1 of 20 and of 10; without the labels a split would hold as many of each by chance alone.
    set_params(split__test=0.2, split__validation=0.1, seed=seed)
    labels = ["pool", "spa", "pool"] * 10
    ready(labels)
    split.main()
    found = {name: collections.Counter(labels[row - 1] for row in rows) for name, rows in homes().items()}
    assert found["test"] == {"pool": 4, "spa": 2} and found["validation"] == {"pool": 2, "spa": 1}


def test_labels_of_the_test_are_kept_where_some_rows_have_none(ready):
    ready(["pool", ""] * 10)
    split.main()
    assert json.loads(TEST_LABELS.read_text()) == ["pool" if row % 2 else "" for row in homes()["test"]]


def test_another_seed_writes_another_split_and_the_same_seed_the_same_bytes(ready):
    def outcome(seed):
        set_params(seed=seed)
        ready([None] * 40)
        split.main()
        return [path.read_bytes() for path in SPLITS.values()]

    assert outcome(7) == outcome(7) != outcome(8)


@pytest.mark.parametrize("seed", [7, 8])
def test_the_order_of_a_seeded_hash_decides(seed):
    names = [f"prompt {number}" for number in range(20)]
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    # 0.2 of 20 to the test, then 0.3 of 20 to validation.
    expected = dict.fromkeys(order[:4], "test") | dict.fromkeys(order[4:10], "validation")
    found = split.assign(names, validation=0.3, test=0.2, seed=seed)
    assert found == [expected.get(name, "train") for name in names]


def test_sizes_and_tokens_of_each_split_are_counted(ready, capsys):
    ready([None] * 20)
    split.main()
    report = json.loads(SPLIT_REPORT.read_text())
    for name, rows in homes().items():
        # Row n has n tokens.
        assert report[name] == {"conversations": len(rows), "tokens": sum(rows)}
    assert capsys.readouterr().out.endswith("split: train 14, validation 3, test 3\n")


def test_rows_that_are_no_conversations_have_no_line(ready):
    ready([None] * 12, errors=[2, 7], quarantined=[2, 5, 7])
    split.main()
    assert sorted(sum(homes().values(), [])) == [1, 3, 4, 6, 8, 9, 10, 11, 12]


def test_lines_are_kept_in_the_order_of_the_source(ready):
    ready([None] * 20)
    split.main()
    assert all(rows == sorted(rows) for rows in homes().values())


def test_an_error_that_was_not_set_aside_stops_the_run(ready):
    ready([None] * 12, errors=[2])
    with pytest.raises(UserError, match="was edited: a row that is not a conversation is missing in it"):
        split.main()


def test_a_quarantined_row_that_there_is_not_stops_the_run(ready):
    ready([None] * 12, quarantined=[13])
    with pytest.raises(UserError, match="was edited: it names rows that the source does not have"):
        split.main()


def counted(chosen):
    return {name: chosen.count(name) for name in SPLITS}


@pytest.mark.parametrize("seed", range(7))
def test_a_group_that_fits_into_no_share_is_trained_on(seed):
    # The test and validation may hold one conversation each, so the group of eight never fits.
    chosen = split.assign(["a"] * 8 + ["b", "c"], 0.1, 0.1, seed)
    assert chosen[:8] == ["train"] * 8 and set(chosen[8:]) == {"validation", "test"}


@pytest.mark.parametrize("seed", range(7))
def test_a_group_may_fill_its_share_to_the_last(seed):
    # 0.3 of 10 are 3: the group of three is the test, or it comes last and is trained on.
    chosen = split.assign(["a"] * 3 + list("bcdefgh"), 0.1, 0.3, seed)
    assert counted(chosen) == {"train": 6, "validation": 1, "test": 3}


def test_the_least_share_is_one_conversation():
    assert counted(split.assign(list("abcdefghij"), 0.01, 0.01, 7)) == {"train": 8, "validation": 1, "test": 1}


@pytest.mark.parametrize("rows, share, size", [(20, 0.12, 2), (20, 0.13, 3), (30, 0.11, 3)])
def test_shares_are_rounded(rows, share, size):
    # 2.4, 2.6 and 3.3.
    chosen = split.assign([f"prompt {number}" for number in range(rows)], share, share, 7)
    assert counted(chosen) == {"train": rows - 2 * size, "validation": size, "test": size}


@pytest.mark.parametrize("seed", range(7))
def test_an_empty_split_gets_the_smallest_group(seed):
    # 0.1 of 12 is one conversation, into which no group fits: validation gets the smallest, then the test.
    chosen = split.assign(["a"] * 5 + ["b"] * 4 + ["c"] * 3, 0.1, 0.1, seed)
    assert chosen == ["train"] * 5 + ["test"] * 4 + ["validation"] * 3


@pytest.mark.parametrize("validation, test, left", [(0.29, 0.7, (3, 6)), (0.7, 0.29, (6, 3))])
def test_an_empty_split_takes_from_the_one_with_the_most_groups(validation, test, left):
    # 7 and 3 of 10 leave nothing to train on.
    chosen = split.assign(list("abcdefghij"), validation, test, 7)
    assert counted(chosen) == dict(zip(SPLITS, (1, *left), strict=True))


@pytest.mark.parametrize("seed", range(7))
def test_a_group_of_many_labels_counts_whole_and_as_the_most_common_one(seed):
    # All else is of label z: its four conversations may give one to each split; a's group of three fits nowhere.
    chosen = split.assign(["a"] * 3 + list("bcde"), 0.2, 0.2, seed, ["y", "z", "y"] + ["z"] * 4)
    assert chosen[:3] == ["train"] * 3 and counted(chosen) == {"train": 5, "validation": 1, "test": 1}


def test_of_two_equally_common_labels_the_first_by_name_counts():
    names = ["a", "a"] + [f"prompt {number}" for number in range(40)]
    rest = ["x"] * 20 + ["y"] * 20
    seeds = range(20)
    mixed, as_x, as_y = (
        [split.assign(names, 0.2, 0.2, seed, [*first, *rest]) for seed in seeds] for first in ("yx", "xx", "yy")
    )
    assert mixed == as_x != as_y


@pytest.mark.parametrize("prompts, groups", [(3, 3), (30, 4)])
def test_three_groups_are_enough(prompts, groups):
    split._refuse_few(prompts, groups)


def test_three_prompts_in_two_groups_are_too_much_alike():
    with pytest.raises(UserError, match="^3 different prompts are so alike that they form 2 of the 3 groups"):
        split._refuse_few(3, 2)
    with pytest.raises(UserError, match="^2 different prompts cannot fill"):
        split._refuse_few(2, 2)


def described(sketches, chosen, hashes=None):
    count = len(chosen)
    rows = pd.DataFrame({"n_tokens": [1] * count, "prompt_hash": hashes or [str(at) for at in range(count)]})
    return split.describe(rows, np.array(chosen), sketches)


def agreeing(share, number):
    """A sketch that agrees with one of zeros in a share of its 64 permutations, and elsewhere with no other."""
    return [0] * round(64 * share) + [number] * (64 - round(64 * share))


def test_prompts_of_several_splits_are_counted_once_each():
    sketches = np.array([agreeing(0, number) for number in range(1, 8)], np.uint32)
    chosen = ["train", "validation", "test", "train", "train", "test", "validation"]
    assert described(sketches, chosen, list("aaabbcd"))["overlap"] == 1
    assert described(sketches, chosen, list("aaaccca"))["overlap"] == 2


def test_the_nearness_is_given_by_its_median_ninth_decile_and_maximum():
    # Three test prompts agree with a train prompt in 1/4, 1/2 and all: the ninth decile is 0.8 of the way from the
    # second to the third. The prompt of the validation split, which all agree with, does not count.
    sketches = np.array(
        [agreeing(1, 0), agreeing(0.25, 1), agreeing(1, 0), agreeing(0.5, 2), agreeing(0, 3)], np.uint32
    )
    found = described(sketches, ["train", "test", "test", "test", "train"])
    assert found["nearest"] == {"median": 0.5, "p90": 0.9, "max": 1.0}
    beside = described(sketches, ["validation", "test", "validation", "test", "train"])
    assert beside["nearest"] == {"median": 0.0, "p90": 0.0, "max": 0.0}


@pytest.mark.parametrize("place, seen", [(199, 1.0), (200, 0.0)])
def test_two_hundred_test_prompts_are_compared(place, seen):
    sketches = np.array([agreeing(place == at, at + 1) for at in range(201)] + [agreeing(1, 0)], np.uint32)
    assert described(sketches, ["test"] * 201 + ["train"])["nearest"]["max"] == seen


def test_only_rows_of_both_runs_can_have_changed_split():
    then = pd.Series(["train", "test", "validation", "test"], index=[1, 2, 3, 1])
    now = pd.Series(["train", "train", "validation", "test"], index=[1, 2, 3, 4])
    # The second moved; the fourth is new; the first stood in two splits, of which the first counts.
    assert split._count_changed(then, now) == 1


def test_validation_and_test_leave_something_to_train_on(project):
    set_params(split__validation=0.5, split__test=0.49)
    assert params.load().split.test == 0.49
    set_params(split__test=0.5)
    with pytest.raises(UserError, match="validation \\+ test leave nothing to train on: their sum must be below 1"):
        params.load()
