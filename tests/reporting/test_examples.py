"""Test conversations as the reports show them."""

import pytest

from stages.metrics.registry import REGISTRY
from stages.reporting import examples
from stages.reporting.examples import Answered, Cut, Score, Turn


def one(line=1, chrf=0.0, prompt=(), reference="", base="", tuned=""):
    return Answered(line, "", tuple(prompt), reference, base, tuned, (), chrf)


def prediction(base, tuned):
    return {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Is it\n open?"}],
        "reference": "r\0",
        "base": "b\x07",
        "tuned": "t\ud800",
        "scores": {"base": base, "tuned": tuned},
    }


def test_a_conversation_has_its_texts_cleaned_and_the_scores_that_there_are():
    found = examples.answered(3, prediction({"loss": 2.0, "chrf": 50.0, "x": 1}, {"loss": 1.5, "chrf": 40.04, "x": 2}))
    assert (found.line, found.title, found.chrf) == (3, "Is it open?", 40.04)
    assert found.prompt == (Turn("system", "S"), Turn("user", "Is it\n open?"))
    assert (found.reference, found.base, found.tuned) == ("r\ufffd", "b\ufffd", "t?")
    assert found.scores == (Score("loss", "2.00", "1.50", "better", "✓"), Score("chrF", "50.0", "40.0", "worse", "✗"))


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
    "chrfs, worst, best, others",
    [
        ([3, 1, 2], [2, 3], [1], []),
        ([5], [1], [], []),
        ([], [], [], []),
        ([4, 3, 2, 1], [4, 3], [1, 2], []),
        ([6, 5, 4, 3, 2, 1], [6, 5], [1, 2], [4, 3]),
        ([1, 1, 1, 1, 1], [1, 2], [5, 4], [3]),
    ],
)
def test_worst_best_and_others_are_each_in_one_list(chrfs, worst, best, others):
    found = examples.ranking([one(line, chrf) for line, chrf in enumerate(chrfs, 1)], 2)
    assert [[talk.line for talk in part] for part in (found.worst, found.best, found.others)] == [worst, best, others]


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
