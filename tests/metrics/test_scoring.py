import numpy as np
import pytest

from stages.metrics import intervals, registry
from stages.metrics.intervals import Bootstrap, Mean
from stages.metrics.scoring import Expected

ONES = np.ones(2)


def scores(answers, references):
    """Each answer's score, by metric that compares it as a whole."""
    found = registry.of_answers(answers, [Expected(reference, ()) for reference in references])
    return {name: mean.totals for name, mean in found.items() if registry.REGISTRY[name].score}


def digits(name):
    return registry.REGISTRY[name].digits


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


@pytest.fixture
def two_are_enough(monkeypatch):
    """Intervals of so few conversations that their numbers can be worked out."""
    monkeypatch.setattr(intervals, "FEWEST", 2)


def test_the_interval_of_two_values_spans_them(two_are_enough):
    # Resamples of {0, 1} have the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the ends lie in the outer ones.
    assert BOOTSTRAP.interval(Mean(np.array([0.0, 1.0]), ONES), 4) == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_means_are_weighted_by_tokens():
    loss = Mean(np.array([2.0, 9.0]), np.array([1.0, 3.0]))
    assert BOOTSTRAP.interval(loss, 4)["value"] == 2.75
    perplexity = Mean(loss.totals, loss.weights, np.exp)
    assert BOOTSTRAP.interval(perplexity, 4)["value"] == round(float(np.exp(2.75)), 4)


def test_the_gain_is_paired(two_are_enough):
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


def test_each_answer_is_compared_with_its_own_reference():
    found = scores(["The pool.", "Breakfast at seven."], ["the pool", "Where is the garage?"])
    assert found["rouge_l"].tolist() == [1, 0] and found["exact_match"].tolist() == [0, 0]
    assert found["chrf"][0] > 50 > found["chrf"][1] and found["similarity"][0] > 0.9 > 0.5 > found["similarity"][1]


def test_chrf_counts_the_reference_s_grams_more_than_the_answer_s():
    # "ab" against "abcd": 2 of 4 characters and 1 of 3 pairs of the reference are found, and all of the answer's; the
    # answer has no longer ones. P = 1, R = (1/2 + 1/3) / 2 = 5/12, and F = (1 + 2²) P R / (2² P + R) = 25/53.
    # The other way round it is P = 5/12, R = 1, and F = 25/32.
    assert scores(["ab", "abcd"], ["abcd", "ab"])["chrf"] == pytest.approx([2500 / 53, 2500 / 32])


def test_rouge_l_is_neither_precision_nor_recall():
    # Precision 1 and recall 1/4, or the other way round: F = 2 · 1/4 / (5/4) = 0.4, the same in both directions.
    assert scores(["one", "one two three four"], ["one two three four", "one"])["rouge_l"] == pytest.approx([0.4, 0.4])


def test_rouge_l_keeps_the_order_of_words_and_knows_no_sign_as_a_word():
    # Of "c b a" only one word is in order: P = R = 1/3. Signs and underscores part words; digits are words.
    found = scores(["c b a", "a-b_c!", "at 7 30"], ["a b c", "A, B. C", "at 7:30"])["rouge_l"]
    assert found == pytest.approx([1 / 3, 1, 1])


def test_rouge_l_takes_a_script_without_spaces_by_character_to_its_ends():
    # The first and last characters of both ranges are words of their own, and so is the Latin word after them.
    found = scores(["\u3040\u30ff\u3400\u9fffwifi"], ["\u9fff wifi \u3040"])["rouge_l"]
    # Of 5 and 3 words, 2 are in order: P = 2/5, R = 2/3, F = 2 · 4/15 / (16/15) = 1/2.
    assert found[0] == pytest.approx(0.5)


def test_an_exact_match_forgives_white_space_at_the_ends_alone():
    answers = [" At 7. \n", "At  7.", "at 7.", "At 7"]
    assert scores(answers, ["At 7.\t"] * 4)["exact_match"].tolist() == [1, 0, 0, 0]


def test_as_many_answers_as_references_are_scored():
    with pytest.raises(ValueError):
        scores(["a"], ["a", "b"])


def test_chrf_is_kept_with_two_decimals_and_all_else_with_four():
    assert (digits("chrf"), digits("loss"), digits("rouge_l")) == (2, 4, 4)
    third = Mean(np.array([1 / 3]), np.ones(1))
    assert [BOOTSTRAP.interval(third, digits(name))["value"] for name in ("chrf", "loss")] == [0.33, 0.3333]


def test_a_mean_among_some_keeps_what_is_done_to_it():
    perplexity = Mean(np.array([2.0, 9.0]), np.array([1.0, 3.0]), np.exp).among(np.array([False, True]))
    assert perplexity.of(perplexity.totals, perplexity.weights) == pytest.approx(np.exp(3.0))


def test_the_mean_of_each_resample_is_taken_along_its_axis():
    mean = Mean(np.zeros(2), np.ones(2))
    # (1 + 2) / (1 + 1) and (3 + 6) / (1 + 2); the other way (1 + 3) / (1 + 1) and (2 + 6) / (1 + 2).
    totals, weights = np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[1.0, 1.0], [1.0, 2.0]])
    assert mean.of(totals, weights).tolist() == [1.5, 3.0]
    assert mean.of(totals, weights, axis=0).tolist() == [2.0, pytest.approx(8 / 3)]


# One of ten conversations has 10, the others nothing: the mean of a resample is how often that one is drawn, which is
# binomial(10, 1/10): 0 with probability 0.349, at most 1 with 0.736, at most 2 with 0.930, at most 3 with 0.987.
SKEWED = Mean(np.array([0.0] * 9 + [10.0]), np.ones(10))


@pytest.mark.parametrize(
    "confidence, low, high",
    # From 30 to 70 %, from 20 to 80 %, from 5 to 95 %.
    [(0.4, 0.0, 1.0), (0.6, 0.0, 2.0), (0.9, 0.0, 3.0)],
)
def test_the_interval_is_as_wide_as_its_confidence_asks(confidence, low, high):
    found = Bootstrap(seed=3, resamples=4000, confidence=confidence).interval(SKEWED, 4)
    assert found == {"value": 1.0, "low": low, "high": high}


def test_the_gain_s_interval_is_as_wide_as_its_confidence_asks():
    still = Mean(np.zeros(10), np.ones(10))
    bootstrap = Bootstrap(seed=3, resamples=4000, confidence=0.9)
    assert bootstrap.gain(still, SKEWED, 4) == {"value": 1.0, "low": 0.0, "high": 3.0}
    assert bootstrap.gain(SKEWED, still, 4) == {"value": -1.0, "low": -3.0, "high": 0.0}


# Of one resample scipy cannot tell a standard error, which nobody asks for.
@pytest.mark.filterwarnings("ignore:Degrees of freedom", "ignore:invalid value")
def test_there_are_as_many_resamples_as_asked_for():
    values = Mean(np.random.default_rng(5).normal(size=50), np.ones(50))
    one = Bootstrap(seed=3, resamples=1, confidence=0.95).interval(values, 6)
    # A single resample has one mean, which is both ends.
    assert one["low"] == one["high"] != one["value"]
    two = Bootstrap(seed=3, resamples=2, confidence=0.95).interval(values, 6)
    assert two["low"] < two["high"]
    # More than are held in memory at once are drawn too, and their ends lie elsewhere.
    assert (
        two
        != Bootstrap(seed=3, resamples=100, confidence=0.95).interval(values, 6)
        != (Bootstrap(seed=3, resamples=250, confidence=0.95).interval(values, 6))
    )


def test_another_seed_draws_other_resamples_and_the_same_seed_the_same():
    values = Mean(np.random.default_rng(5).normal(size=50), np.ones(50))
    moved = Mean(values.totals * 2, values.weights)

    def found(seed):
        bootstrap = Bootstrap(seed=seed, resamples=300, confidence=0.95)
        return bootstrap.interval(values, 6), bootstrap.gain(values, moved, 6)

    assert found(7) == found(7)
    assert all(one != other for one, other in zip(found(7), found(8), strict=True))


def test_nine_conversations_have_no_interval_and_ten_have_one():
    # All are 4, however they are weighted and drawn.
    for count, ends in ((9, None), (10, 4.0)):
        level = Mean(np.arange(1.0, count + 1) * 4, np.arange(1.0, count + 1))
        assert BOOTSTRAP.interval(level, 4) == {"value": 4.0, "low": ends, "high": ends}
        assert BOOTSTRAP.gain(level, level, 4) == {"value": 0.0, "low": ends and 0.0, "high": ends and 0.0}


def test_conversations_of_weight_zero_do_not_count():
    # Of twelve, three have no weight: nine are too few. Without any weight there is no mean.
    counted = np.array([1.0] * 9 + [0.0] * 3)
    mean = Mean(counted, counted)
    assert mean.count == 9 and BOOTSTRAP.interval(mean, 4) == {"value": 1.0, "low": None, "high": None}
    nothing = Mean(np.zeros(12), np.zeros(12))
    assert BOOTSTRAP.interval(nothing, 4) == {"value": None, "low": None, "high": None}
    assert BOOTSTRAP.gain(mean, nothing, 4) == {"value": None, "low": None, "high": None}


def test_each_side_of_a_gain_has_its_own_weights():
    # 6 of 12 facts right before, 6 of 24 after: answers differ in how many facts they state.
    old, new = Mean(np.full(12, 0.5), np.ones(12)), Mean(np.full(12, 0.5), np.full(12, 2.0))
    assert BOOTSTRAP.gain(old, new, 4) == {"value": -0.25, "low": -0.25, "high": -0.25}


def test_no_minus_zero_at_the_ends(two_are_enough):
    tiny = Mean(np.array([-1e-9, -1e-9]), ONES)
    assert [str(end) for end in BOOTSTRAP.interval(tiny, 4).values()] == ["0.0"] * 3
