"""Test conversations as the reports show them."""

import pytest

from stages.metrics.facts import Fact
from stages.metrics.registry import REGISTRY
from stages.reporting import examples
from stages.reporting.examples import Answer, Answered, Cut, Score, Turn


def one(line=1, chrf=0.0, prompt=(), reference="", base="", tuned="", right=False):
    return Answered(line, "", tuple(prompt), reference, Answer(base, ()), Answer(tuned, ()), (), chrf, right)


def prediction(base, tuned):
    return {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Is it\n open?"}],
        "reference": "r\0",
        "base": "b\x07",
        "tuned": "t\ud800",
        "scores": {"base": base, "tuned": tuned},
    }


def test_a_conversation_has_its_texts_cleaned_and_the_scores_that_there_are():
    scores = (
        {"loss": 2.0, "facts_right": 0.0, "chrf": 50.0, "x": 1},
        {"loss": 1, "facts_right": 1, "chrf": 40.04, "x": 2},
    )
    found = examples.answered(3, prediction(*scores))
    assert (found.line, found.title, found.chrf) == (3, "Is it open?", 40.04)
    assert found.prompt == (Turn("system", "S"), Turn("user", "Is it\n open?"))
    assert (found.reference, found.base, found.tuned) == ("r\ufffd", Answer("b\ufffd", ()), Answer("t?", ()))
    # A row is good only by measures of answers: the loss, which fell, is not among them.
    assert found.scores == (
        Score("facts right", "0.00", "1.00", "better", "✓"),
        Score("chrF", "50.0", "40.0", "worse", "✗"),
    )


def test_invented_facts_are_those_of_neither_reference_nor_prompt():
    line = prediction({"chrf": 1.0}, {"chrf": 1.0})
    line["prompt"][1]["content"] = "Is it open at 9 pm?"
    line |= {"reference": "Until 10 pm, for €5.", "base": "At 9 pm and 11 pm.", "tuned": "Until 10 pm, for €5."}
    found = examples.answered(1, line)
    assert [found.base.text[fact.start : fact.end] for fact in found.base.invented] == ["11 pm"]
    assert found.tuned.invented == () and found.right
    assert not examples.answered(1, line | {"tuned": "Until 10 pm."}).right
    assert not examples.answered(1, line | {"tuned": "Until 10 pm, for €5, room 7."}).right


def test_an_answer_is_shown_in_parts_of_which_some_are_invented():
    answer = Answer("at 9 or 10 pm", (Fact("time", "09:00", 3, 4), Fact("time", "22:00", 8, 13)))
    parts = [("at ", False), ("9", True), (" or ", False), ("10 pm", True)]
    assert examples.parts(answer, 100) == (parts, 0)
    # A fact that is cut is no fact any more.
    assert examples.parts(answer, 10) == ([*parts[:2], (" or 10", False)], 3)


@pytest.mark.parametrize(
    "name, base, tuned, word, mark",
    [
        ("loss", 1.0, 2.0, "worse", "✗"),
        ("loss", 2.0, 1.0, "better", "✓"),
        ("loss", 1.0, 1.0, "", ""),
        ("similarity", 1.0, 2.0, "better", "✓"),
        ("similarity", None, 2.0, "", ""),
        ("similarity", 1.0, None, "", ""),
    ],
)
def test_which_of_two_scores_is_better(name, base, tuned, word, mark):
    found = examples._score(REGISTRY[name], {"base": {name: base}, "tuned": {name: tuned}})
    assert (found.word, found.mark) == (word, mark) and ("none" in (found.base, found.tuned)) == (None in (base, tuned))


SYSTEM, ASK = Turn("system", "S"), Turn("user", "q")


@pytest.mark.parametrize(
    "prompts, system, left",
    [
        ([(SYSTEM, ASK), (SYSTEM,)], "S", [(ASK,), ()]),
        ([(SYSTEM, ASK)], "", [(SYSTEM, ASK)]),
        ([(SYSTEM, ASK), (ASK,)], "", [(SYSTEM, ASK), (ASK,)]),
        ([(ASK,), (ASK,)], "", [(ASK,), (ASK,)]),
        ([(), ()], "", [(), ()]),
    ],
)
def test_a_shared_system_prompt_is_taken_out(prompts, system, left):
    found, talks = examples.shared_system([one(prompt=prompt) for prompt in prompts])
    assert found == system and [talk.prompt for talk in talks] == left


@pytest.mark.parametrize(
    "chrfs, shown, others",
    [
        ([3, 1, 2], [1, 3, 2], []),
        ([5], [1], []),
        ([5, 4], [1, 2], []),
        ([4, 3, 2, 1], [1, 3, 4], [2]),
        ([6, 5, 4, 3, 2, 1], [1, 4, 6], [5, 3, 2]),
        ([1, 1, 1, 1, 1], [5, 3, 1], [2, 4]),
    ],
)
def test_a_good_a_typical_and_the_worst_answer_are_shown_and_each_is_in_one_place(chrfs, shown, others):
    found = examples.ranking([one(line, chrf) for line, chrf in enumerate(chrfs, 1)])
    assert [talk.line for _, talk in found.shown] == shown and [talk.line for talk in found.others] == others


def test_an_answer_with_wrong_facts_is_worse_than_any_with_the_right_ones():
    found = examples.ranking([one(1, 90.0), one(2, 10.0, right=True), one(3, 50.0)])
    assert [(name, talk.line) for name, talk in found.shown] == [
        ("A good answer", 2),
        ("A typical answer", 1),
        ("The worst answer", 3),
    ]


@pytest.mark.parametrize("limit, text, left", [(0, "", 3), (2, "ab", 1), (3, "abc", 0), (4, "abc", 0)])
def test_a_text_is_cut_and_the_rest_is_counted(limit, text, left):
    assert examples.cut("abc", limit) == Cut(text, left)


@pytest.mark.parametrize(
    "limit, omitted, texts",
    [
        (9, 0, [("abc", 0), ("def", 0), ("ghi", 0)]),
        (7, 0, [("a", 2), ("def", 0), ("ghi", 0)]),
        (6, 1, [("def", 0), ("ghi", 0)]),
        (3, 2, [("ghi", 0)]),
        (2, 2, [("gh", 1)]),
        (0, 2, [("", 3)]),
    ],
)
def test_a_long_prompt_keeps_its_end(limit, omitted, texts):
    prompt = [Turn("user", text) for text in ("abc", "def", "ghi")]
    found = examples.cut_prompt(prompt, limit)
    assert found.omitted == omitted and found.messages == [("user", Cut(*text)) for text in texts]


def test_lengths_are_counted_in_characters():
    talks = [one(prompt=(Turn("system", "ab"), Turn("user", "é")), reference="1", base="12", tuned="123")]
    assert examples.lengths(talks) == {"prompt": [3], "reference": [1], "base": [2], "tuned": [3]}


def test_quantiles_are_the_least_the_median_ninety_per_cent_and_the_most():
    # Between ranks: 90% of 10 steps from 0 is the ninth; the median of two numbers is between them.
    assert examples.quantiles([*range(0, 110, 10)]) == [0, 50, 90, 100]
    assert examples.quantiles([10, 21]) == [10, 16, 20, 21]
