import numpy as np
import pytest

from stages.scoring import Bootstrap, Mean, scores

ONES = np.ones(2)


def test_equal_texts_score_full_marks():
    found = scores(["Gladly, the pool opens at 7."], [" Gladly, the pool opens at 7.\n"])
    rounded = {name: round(float(values[0]), 5) for name, values in found.items()}
    assert rounded == {"chrf": 100, "rouge_l": 1, "similarity": 1, "exact_match": 1}


def test_rouge_l_by_hand():
    # The common subsequence "the cat" has 2 words: precision 2/2, recall 2/3, F = 2 · 1 · (2/3) / (1 + 2/3) = 0.8.
    assert scores(["The cat."], ["the cat sat"])["rouge_l"][0] == pytest.approx(0.8)


def test_rouge_l_sees_scripts_other_than_latin():
    # 4 of 5 characters in order: precision 1, recall 4/5.
    assert scores(["朝食七時", "завтрак в семь"], ["朝食は七時", "Завтрак в семь"])["rouge_l"] == pytest.approx(
        [8 / 9, 1]
    )


def test_chrf_by_hand():
    # "ab" against "ac": of order 1 one of two characters matches (P = R = 1/2), of order 2 none; orders that neither
    # text has do not count. P = R = 1/4, so F = 25.
    assert scores(["ab"], ["ac"])["chrf"][0] == pytest.approx(25)


def test_similarity_orders_by_meaning_and_knows_empty_answers():
    near, far, empty = scores(
        ["Breakfast starts at seven.", "The engine needs oil.", ""], ["We serve breakfast from 7 o'clock."] * 3
    )["similarity"]
    assert near > 0.6 > far > empty - 1


BOOTSTRAP = Bootstrap(seed=1, resamples=1000, confidence=0.95)


def test_the_interval_of_two_values_spans_them():
    # Resamples of {0, 1} have the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the ends lie in the outer ones.
    assert BOOTSTRAP.interval(Mean(np.array([0.0, 1.0]), ONES), 4) == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_means_are_weighted_by_tokens():
    loss = Mean(np.array([2.0, 9.0]), np.array([1.0, 3.0]))
    assert BOOTSTRAP.interval(loss, 4)["value"] == 2.75
    perplexity = Mean(loss.totals, loss.weights, np.exp)
    assert BOOTSTRAP.interval(perplexity, 4)["value"] == round(float(np.exp(2.75)), 4)


def test_the_gain_is_paired():
    # Each conversation gains exactly 1, however much conversations differ: the paired interval is a point.
    base = Mean(np.array([1.0, 5.0, 20.0]), np.ones(3))
    tuned = Mean(base.totals + 1, base.weights)
    assert BOOTSTRAP.gain(base, tuned, 4) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_one_conversation_has_no_interval():
    assert BOOTSTRAP.interval(Mean(np.array([3.0]), np.ones(1)), 4) == {"value": 3.0, "low": None, "high": None}


def test_the_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(10, 2, 400)
    found = Bootstrap(seed=2, resamples=4000, confidence=0.9).interval(Mean(values, np.ones(400)), 6)
    half = 1.645 * values.std() / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.03)


def test_no_minus_zero():
    same = Mean(np.array([1.0, 2.0]), ONES)
    assert str(BOOTSTRAP.gain(same, Mean(same.totals - 1e-9, ONES), 4)["value"]) == "0.0"


def test_a_mean_among_some_conversations():
    mean = Mean(np.array([2.0, 9.0, 4.0]), np.array([1.0, 7.0, 3.0]))
    some = mean.among(np.array([True, False, True]))
    # (2 + 4) / (1 + 3)
    assert some.of(some.totals, some.weights) == 1.5
