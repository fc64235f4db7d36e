import random
import string

import pyarrow as pa
import pytest

from stages.dataset import near_duplicates
from stages.dataset.near_duplicates import groups, nearest, sketch


def matrix(sketches):
    column = pa.chunked_array([sketches[:1], sketches[1:]], pa.binary(near_duplicates.SKETCH_BYTES))
    return near_duplicates.matrix(column)


def grams(text):
    return {text[at : at + 4] for at in range(len(text) - 3)}


def jaccard(one, other):
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


PROMPT = "user:at what time do you serve breakfast on sundays in the garden room"
PAIRS = [(PROMPT, PROMPT + " please"), (PROMPT, PROMPT.replace("sundays", "mondays")), (PROMPT, "user:is there a pool")]


@pytest.mark.parametrize("one, other", PAIRS)
def test_the_similarity_is_that_of_the_sets_of_grams(one, other):
    found = near_duplicates.similarity(matrix([sketch(one)]), matrix([sketch(other)]))[0]
    # 64 permutations: a standard error of at most sqrt(0.25 / 64) = 0.0625.
    assert found == pytest.approx(jaccard(one, other), abs=0.19)


def test_nearly_equal_prompts_share_a_group():
    texts = [PROMPT, "user:is there a pool", PROMPT + " please", "user:is there a spa", PROMPT + "s"]
    assert groups(matrix([sketch(text) for text in texts])).tolist() == [0, 1, 0, 3, 0]


def test_groups_are_those_of_comparing_every_pair():
    rng = random.Random(3)
    bases = ["".join(rng.choices(string.ascii_lowercase, k=300)) for _ in range(20)]
    texts = [base[:at] + "#" + base[at + 1 :] for base in bases for at in (10, 140, 270)]
    rng.shuffle(texts)
    found = groups(matrix([sketch(text) for text in texts]))
    for one, text in enumerate(texts):
        for other in range(one):
            assert (found[one] == found[other]) == (jaccard(text, texts[other]) > 0.5)


def test_pairs_on_a_shared_template_are_found_among_the_others_of_the_template():
    """All have bands in common, so that a pair's two are seldom the first two of a band."""
    rng = random.Random(1)
    words = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(3000)]
    template, texts = " ".join(rng.choices(words, k=75)), []
    for _ in range(400):
        rest = rng.choices(words, k=25)
        near = [rng.choice(words) if at % 5 == 0 else word for at, word in enumerate(rest)]
        texts += [f"user:{template} {' '.join(rest)}", f"user:{template} {' '.join(near)}"]
    order = rng.sample(range(800), 800)
    sketches = matrix([sketch(texts[at]) for at in order])
    home = dict(zip(order, groups(sketches), strict=True))
    place = {at: row for row, at in enumerate(order)}
    alike = [
        at
        for at in range(0, 800, 2)
        if near_duplicates.similarity(sketches[place[at]], sketches[place[at + 1]]) >= near_duplicates.SIMILAR
    ]
    assert len(alike) > 300 and [at for at in alike if home[at] != home[at + 1]] == []
    assert len(set(home.values())) > 300


def test_no_prompts_have_no_groups():
    assert groups(matrix([])).tolist() == []


def test_short_and_empty_prompts():
    assert groups(matrix([sketch(text) for text in ("", "a", "ab", "a", "")])).tolist() == [0, 1, 2, 1, 0]


def test_the_nearest_is_found_across_blocks(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", 4)
    those = matrix([sketch(f"user:question {n} about something") for n in range(10)] + [sketch(PROMPT)])
    found = nearest(matrix([sketch(PROMPT), sketch("qqqqqqqq")]), those)
    assert found[0] == 1 and found[1] < 0.1
