"""Sketches made by hand: 64 numbers each, of which some agree."""

import numpy as np
import pyarrow as pa
import pytest

from stages.dataset import near_duplicates
from stages.dataset.near_duplicates import groups, nearest, sketch


def made(agree, number):
    """A sketch that agrees with one of zeros in its first `agree` permutations, and elsewhere with no other."""
    return [0] * agree + [number] * (64 - agree)


def array(*sketches):
    return np.array(sketches, np.uint32)


def test_a_sketch_is_64_numbers_of_32_bits():
    assert len(sketch("some text")) == 256 == near_duplicates.SKETCH_BYTES


def test_the_similarity_is_the_share_of_permutations_that_agree():
    left, right = array(made(64, 0), made(64, 0), made(16, 1)), array(made(48, 1), made(0, 2), made(16, 2))
    assert near_duplicates.similarity(left, right).tolist() == [0.75, 0, 0.25]


def test_a_sketch_is_that_of_the_set_of_grams_of_four():
    # Both have the grams aaab, aaba, abaa, baaa, aaac, aaca, acaa and caaa; of the grams of five, baaac and caaab are
    # in one of them alone.
    assert sketch("aaabaaacaaa") == sketch("aaacaaabaaa")
    # Here the grams of three are the same, and baac and caab are in one of them alone.
    assert sketch("aabaacaa") != sketch("aacaabaa")
    # How often a gram occurs does not count.
    assert sketch("abababab") == sketch("abababababab")


def test_the_last_gram_counts():
    assert sketch("aaaab") != sketch("aaaa") == sketch("aaaaa")


def test_a_text_shorter_than_a_gram_is_one():
    assert len({sketch(text) for text in ("", "a", "ab", "abc", "abcd")}) == 5


def test_ten_thousand_characters_count():
    text = "a" * 10_000
    assert sketch(text + "b") == sketch(text) != sketch("a" * 9_999 + "b")


@pytest.mark.parametrize("agree, together", [(51, False), (52, True)])
def test_prompts_share_a_group_from_four_fifths_on(agree, together):
    # 51 / 64 = 0.797 and 52 / 64 = 0.8125.
    assert groups(array(made(64, 0), made(agree, 1))).tolist() == ([0, 0] if together else [0, 1])


def test_prompts_that_others_link_share_a_group():
    # Each differs from the one before in eight permutations, so the ends agree in 40 of 64 alone.
    linked = array(*[[1] * 8 * number + [0] * (64 - 8 * number) for number in range(4)])
    assert near_duplicates.similarity(linked[:-1], linked[1:]).tolist() == [0.875] * 3
    assert near_duplicates.similarity(linked[0], linked[3]) == 0.625
    assert groups(linked).tolist() == [0, 0, 0, 0] and groups(linked[::-1]).tolist() == [0, 0, 0, 0]


def test_any_band_in_which_two_agree_brings_them_together():
    # Twelve permutations differ, each in another band of four; only the last four bands agree whole.
    differing = [1 if at % 4 == 0 and at < 48 else 0 for at in range(64)]
    assert groups(array([0] * 64, differing)).tolist() == [0, 0]
    assert groups(array([0] * 64, differing[::-1])).tolist() == [0, 0]


def test_pairs_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", 1)
    sketches = array(*[made(60, number) for number in range(1, 5)], *[made(20, number) for number in range(5, 8)])
    assert groups(sketches).tolist() == [0, 0, 0, 0, 4, 5, 6]


def test_each_is_compared_with_the_first_of_its_band_and_the_two_before_it():
    # One band: 0, 2, 3, 4 and 5 agree, in this order by the second key.
    keys = [np.array([7, 1, 7, 7, 7, 7]), np.array([0, 0, 10, 20, 30, 40])]
    pairs = {
        (one, other)
        for these, those in near_duplicates._candidates(keys)
        for one, other in zip(these.tolist(), those.tolist(), strict=True)
    }
    assert pairs == {(2, 0), (3, 2), (4, 3), (5, 4), (3, 0), (4, 2), (5, 3), (4, 0), (5, 0)}


def test_prompts_of_a_band_are_sorted_by_the_key_after_it():
    keys = [np.array([7, 7, 7, 7]), np.array([40, 10, 30, 20])]
    (these, those), *_ = near_duplicates._candidates(keys)
    assert list(zip(these.tolist(), those.tolist(), strict=True)) == [(3, 1), (2, 3), (0, 2)]


def test_a_column_that_is_part_of_another_has_its_own_sketches():
    rows = [np.full(64, number, np.uint32).tobytes() for number in range(5)]
    column = pa.chunked_array([rows], pa.binary(near_duplicates.SKETCH_BYTES))
    assert near_duplicates.matrix(column[1:4])[:, 0].tolist() == [1, 2, 3]
    assert near_duplicates.matrix(column).shape == (5, 64) and near_duplicates.matrix(column[5:]).shape == (0, 64)


def test_the_nearest_of_several_counts_and_none_is_no_nearness():
    these = array(made(64, 0), made(0, 9))
    assert nearest(these, array(made(16, 1), made(48, 2), made(32, 3))).tolist() == [0.75, 0]
    assert nearest(these, array(made(0, 1))[:0]).tolist() == [0, 0]


@pytest.mark.parametrize("at_once", [1, 2, 3, 6, 100])
def test_the_nearest_is_found_whatever_is_compared_at_once(monkeypatch, at_once):
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", at_once)
    those = array(made(16, 1), made(32, 2), made(48, 3))
    assert nearest(array(made(64, 0), made(0, 9)), those).tolist() == [0.75, 0]
    assert nearest(array(made(64, 0)), those[::-1]).tolist() == [0.75]
