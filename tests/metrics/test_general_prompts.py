import pytest

from stages.metrics import general_prompts


@pytest.mark.parametrize(
    "answer, kept",
    [
        ("One. Two! Thr", "One. Two!"),
        ("It is 3.5 km", "It is 3.5 km"),
        ("- one\n- two\n- thr", "- one\n- two"),
        ("Done.", "Done."),
        ("", "."),
    ],
)
def test_a_cut_sentence_is_left_out(answer, kept):
    assert general_prompts.whole(answer) == kept


def test_each_prompt_is_asked_once():
    assert len(set(general_prompts.PROMPTS)) == len(general_prompts.PROMPTS) >= 10
