"""From a source to its splits: prompts that share an instruction, and what the gate says of whole sources."""

import json
import random
import re

import pandas as pd
import pytest

from stages import split
from stages.core.cli import UserError
from stages.core.paths import SIGNALS, SPLIT_REPORT, SPLITS, VALIDATION, VALIDATION_PAGE
from stages.dataset import conversations
from tests.conftest import set_params

CLASSIFY = "Classify the sentiment of the following customer review as positive, negative or neutral, in one word."
THINGS = re.findall(
    r"\w+", "film lamp hotel phone boat tent chair meal game train book coat song ship road bike shop park play beer"
)
KINDS = ("great", "noisy", "late")


def reviews():
    return [
        {"instruction": CLASSIFY, "input": f"The {thing} was {kind}.", "output": f"{kind}."}
        for kind in KINDS
        for thing in THINGS
    ]


def questions(count):
    rng = random.Random(3)
    rest = [" ".join(rng.sample(THINGS, 5)) for _ in range(count)]
    return [{"instruction": f"Where do I find {one}?", "input": "", "output": f"Beside the {one}."} for one in rest]


def source(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prompts(name):
    return [talk.prompt[0].text for talk in conversations.read_jsonl(SPLITS[name])]


def test_sixty_rows_with_one_instruction_are_split(gate):
    report = gate(source(reviews()), form="alpaca")
    assert "no_large_group" not in {finding["rule"] for finding in report["findings"]}
    split.main()
    sizes = {name: len(prompts(name)) for name in SPLITS}
    # 15 % of 60 each.
    assert sizes == {"train": 42, "validation": 9, "test": 9}
    assert json.loads(SPLIT_REPORT.read_text())["overlap"] == 0


def test_the_test_split_holds_both_of_two_tasks(gate):
    rows = [{**row, "input": row["input"].replace("was", word)} for word in ("was", "is so") for row in reviews()][:90]
    gate(source([*rows, *questions(10)]), form="alpaca")
    set_params(split__test=0.3)
    split.main()
    tasks = [CLASSIFY in prompt for prompt in prompts("test")]
    assert len(tasks) == 30 and 20 <= sum(tasks) <= 29


def test_inputs_that_are_nearly_the_same_share_a_split_whatever_the_order_of_rows(gate):
    rng = random.Random(5)
    inputs = [" ".join(rng.choices(THINGS, k=12)) for _ in range(30)]
    rows = [
        {"instruction": CLASSIFY, "input": one + end, "output": "positive."}
        for one in inputs
        for end in ("", "!", " so")
    ]
    homes = []
    for _ in range(2):
        gate(source(rows), form="alpaca")
        split.main()
        homes.append({prompt: name for name in SPLITS for prompt in prompts(name)})
        rng.shuffle(rows)
    assert homes[0] == homes[1] and set(homes[0].values()) == set(SPLITS)
    for one in inputs:
        assert len({homes[0][f"{CLASSIFY}\n\n{one}{end}"] for end in ("", "!", " so")}) == 1


def test_without_a_shared_text_the_prompts_are_compared_whole(gate, capsys):
    gate(source(questions(12)), form="alpaca")
    assert "share a long text" not in capsys.readouterr().out
    gate(source(reviews()), form="alpaca")
    assert (
        "60 prompts share a long text, such as an instruction; they are compared without it" in capsys.readouterr().out
    )


def test_a_row_that_is_no_conversation_keeps_its_place(gate):
    with pytest.raises(UserError):
        gate(source([*reviews()[:30], {"instruction": 5}, *reviews()[30:]]), form="alpaca")
    signals = pd.read_parquet(SIGNALS)
    assert signals["row"].tolist() == list(range(1, 62))
    assert (
        signals["error"].notna().tolist() == [row == 31 for row in signals["row"]] == signals["sketch"].isna().tolist()
    )


def test_repeated_questions_are_one_group_and_a_finding_with_a_way_out(gate, capsys):
    rows = [{"instruction": "Where is it?", "input": "", "output": f"In {thing}."} for thing in THINGS]
    gate(source([*rows, *questions(9)]), form="alpaca")
    shown = capsys.readouterr().out
    assert "warning: no_large_group, 20 of 29 rows; more than half of the rows have nearly the same prompt" in shown


def test_conversations_beyond_max_length_are_a_finding_with_their_rows(gate):
    rows = questions(9)
    rows[4]["input"] = "x" * 300
    set_params(unsloth__max_length=250)
    with pytest.raises(
        UserError, match=r"critical: within_max_length, 1 of 9 rows.*\n.*row 5, column .*: 400 tokens, ‹150› too many"
    ):
        gate(source(rows), form="alpaca")
    assert {one["rule"] for one in json.loads(VALIDATION.read_text())["findings"]} == {"within_max_length"}
    set_params(unsloth__overlong="drop")
    assert gate(source(rows), form="alpaca")["findings"] == []


def test_placeholders_are_listed_with_their_rows(gate, capsys):
    rows = questions(8)
    for row, left in zip(
        rows, ["{{Order Number}}", "{{Order Number}} [Name]", "<NAME>", "{{Order Number}}"], strict=False
    ):
        row["output"] = f"It is {left} here."
    gate(source(rows), form="alpaca")
    listed = "{{Order Number}} in 3 rows, <NAME> in 1 row, [Name] in 1 row"
    assert "warning: placeholders, 4 of 8 rows; something is left to be filled in" in (shown := capsys.readouterr().out)
    assert f"\n    {listed}\n" in shown
    assert "{{Order Number}} in 3 rows, &lt;NAME&gt; in 1 row" in VALIDATION_PAGE.read_text(encoding="utf-8")
