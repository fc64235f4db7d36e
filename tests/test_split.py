import collections
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import split
from stages.core.cli import UserError
from stages.core.paths import CONVERSATIONS, QUARANTINE, SIGNALS, SPLIT_REPORT, SPLITS, TEST_LABELS, VALIDATION
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.dataset.near_duplicates import sketch
from stages.dataset.signals import SCHEMA


def prompts(count):
    return [f"prompt {number}" for number in range(count)]


def counted(chosen):
    return {name: chosen.count(name) for name in SPLITS}


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
    assert set(chosen) == set(SPLITS)
    homes = collections.defaultdict(set)
    for number, name in zip(ids, chosen, strict=True):
        homes[number].add(name)
    assert all(len(names) == 1 for names in homes.values())


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

    def write(prompts, quarantined=(), labels=None):
        talks = [Conversation((Message("user", prompt), Message("assistant", "Yes."))) for prompt in prompts]
        signals = [
            {
                "row": n,
                "label": label,
                "prompt_hash": prompt,
                "sketch": sketch(talk.prompt_key),
                "n_tokens": 10,
            }
            for n, (prompt, talk, label) in enumerate(
                zip(prompts, talks, labels or [None] * len(prompts), strict=True), 1
            )
        ]
        SIGNALS.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(signals, schema=SCHEMA), SIGNALS)
        conversations.write_jsonl(CONVERSATIONS, talks)
        QUARANTINE.write_text("row,why,record\n" + "".join(f'{row},x,"y\n1",z,w\n' for row in quarantined))
        VALIDATION.parent.mkdir(exist_ok=True)
        VALIDATION.write_text(json.dumps({"quarantined": len(quarantined)}))

    return write


def read(name):
    return [talk.prompt[0].content for talk in conversations.read_jsonl(SPLITS[name])]


def test_nearly_equal_prompts_share_a_split(rows):
    rng = random.Random(2)
    questions = [letter + "".join(rng.choices("0123456789", k=99)) for letter in "abcdefghijklmnopqrst"]
    rows([question + end for question in questions for end in ("", "!", " please")])
    split.main()
    homes = collections.defaultdict(set)
    for name in SPLITS:
        for prompt in read(name):
            homes[prompt[0]].add(name)
    assert len(homes) == 20 and all(len(names) == 1 for names in homes.values())


def test_two_different_prompts_are_too_few(rows):
    rows(["a", "b", "a"])
    with pytest.raises(
        UserError, match="2 different prompts cannot fill train, validation and test; add conversations"
    ):
        split.main()


def test_many_prompts_of_one_template_are_distinguished_from_few(rows):
    template = "The hotel has forty rooms, breakfast is from seven to ten in the garden room, the pool closes at eight"
    rows([f"{template}. Guest {n}: may I have towels?" for n in range(30)])
    with pytest.raises(UserError, match="30 different prompts .* form 1 of the 3 groups .*the system message"):
        split.main()


def test_the_report_shows_sizes_overlap_and_nearness(rows):
    rows([f"{n} {chr(97 + n % 26) * 30}" for n in range(40)])
    split.main()
    report = json.loads(SPLIT_REPORT.read_text())
    assert [report[name]["conversations"] for name in SPLITS] == [len(read(name)) for name in SPLITS]
    assert report["overlap"] == 0 and report["train"]["tokens"] == 10 * report["train"]["conversations"]
    assert 0 <= report["nearest"]["median"] <= report["nearest"]["p90"] <= report["nearest"]["max"] < 1


def test_quarantined_rows_are_left_out(rows):
    rows([f"question {chr(97 + n) * 20}" for n in range(10)], quarantined=[2, 9])
    split.main()
    kept = sorted(prompt[9] for name in SPLITS for prompt in read(name))
    assert kept == list("acdefghj")


@pytest.mark.parametrize("lines", ["2,x,y\n", "2,x,y\n2,x,y\n", "2,x,y\n9,x,y\n3,x,y\n"])
def test_a_quarantine_that_is_not_what_the_gate_set_aside_stops_the_run(rows, lines):
    rows([f"question {chr(97 + n) * 20}" for n in range(10)], quarantined=[2, 9])
    QUARANTINE.write_text("row,why,record\n" + lines)
    with pytest.raises(
        UserError, match="quarantine.csv was edited: it has . rows, and .*; `dvc repro` writes it again"
    ):
        split.main()


def test_labels_keep_their_shares():
    labels = ["checkout"] * 100 + ["pool"] * 40 + ["spa"] * 20
    chosen = split.assign(prompts(160), 0.1, 0.2, 3, labels)
    counts = collections.Counter(zip(labels, chosen, strict=True))
    for label, size in (("checkout", 100), ("pool", 40), ("spa", 20)):
        assert counts[label, "test"] == 0.2 * size and counts[label, "validation"] == 0.1 * size


def test_rare_labels_do_not_empty_the_test():
    labels = [f"label {number // 2}" for number in range(40)]
    # Each label alone would give round(0.15 * 2) = 0 conversations to the test.
    assert counted(split.assign(prompts(40), 0.15, 0.15, 5, labels)) == {"train": 28, "validation": 6, "test": 6}


def test_a_group_has_its_most_common_label():
    names = ["a"] * 3 + prompts(40)
    labels = ["x", "y", "y"] + ["x"] * 20 + ["y"] * 20
    chosen = split.assign(names, 0.2, 0.2, 1, labels)
    assert len(set(chosen[:3])) == 1
    assert split.assign(names, 0.2, 0.2, 1, ["y"] * 3 + labels[3:]) == chosen


def test_the_labels_of_the_test_are_beside_it(rows):
    letters = [chr(97 + number) for number in range(20)]
    rows([letter * 20 for letter in letters], labels=[f"about {letter}" for letter in letters])
    split.main()
    assert json.loads(TEST_LABELS.read_text()) == [f"about {prompt[0]}" for prompt in read("test")]


def test_without_labels_there_are_none(rows):
    rows([chr(97 + number) * 20 for number in range(20)])
    split.main()
    assert json.loads(TEST_LABELS.read_text()) == []


@pytest.fixture
def committed(project):
    """committed() commits the splits as a run of the pipeline would."""
    outs = [f"data/splits/{name}" for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "test_labels.json")]
    Path("dvc.yaml").write_text(json.dumps({"stages": {"split": {"cmd": "python -m stages.split", "outs": outs}}}))
    dvc = Path(sys.executable).with_name("dvc")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([dvc, "init", "-q"], check=True)

    def commit():
        subprocess.run([dvc, "commit", "-q", "-f"], check=True)
        subprocess.run(["git", "add", "-A"], check=True)
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, "commit", "-qm", "run"], check=True)

    return commit


def test_rows_that_changed_split_since_the_last_commit_are_counted(rows, committed):
    def homes():
        return {prompt: name for name in SPLITS for prompt in read(name)}

    def changed():
        split.main()
        return json.loads(SPLIT_REPORT.read_text())["changed_split"]

    letters = [chr(97 + number) * 20 for number in range(20)]
    rows(letters)
    assert changed() is None
    committed()
    before = homes()
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 42", "seed: 1"))
    rows(letters[1:] + ["z" * 20])
    count = changed()
    assert count == sum(before.get(prompt, name) != name for prompt, name in homes().items()) > 0
    committed()
    # Once committed, the same run counts the same.
    assert changed() == count
    shutil.rmtree(".dvc/cache")
    assert changed() == count
    rows(letters)
    assert changed() is None


@pytest.mark.parametrize("text", ["row,why,record\nmany,x,y\n", 'row,why,record\n"1,x,y\n', "row,why,record\n\xff\n"])
def test_a_quarantine_that_cannot_be_read_is_named(project, text):
    QUARANTINE.parent.mkdir(exist_ok=True)
    QUARANTINE.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"data/quarantine.csv is damaged \(.*\); `dvc repro` writes it again"):
        split._quarantined()
