import json

import pytest

from stages.core.cli import UserError
from stages.reporting import predictions
from tests.support.history import prediction


def test_lines_are_read_in_their_order():
    lines = [prediction(0), prediction(1, tokens=None)]
    assert predictions.read("".join(json.dumps(line) + "\n" for line in lines), "x") == lines


def test_blank_lines_count_but_hold_nothing():
    text = f"{json.dumps(prediction(0))}\n \n" + "{\n"
    with pytest.raises(UserError, match=r"^x, line 3, is damaged \(.*\); remedy$"):
        predictions.read(text, "x", "remedy")


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_a_file_without_lines_is_damaged(text):
    with pytest.raises(UserError, match=r"^x is damaged \(it is empty\); remedy$"):
        predictions.read(text, "x", "remedy")


def test_a_remedy_is_named_where_none_is_given():
    with pytest.raises(UserError, match="`dvc repro` there writes it again$"):
        predictions.read("", "x")


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\r"])
def test_other_line_ends_than_lf_are_text(separator):
    line = prediction(0, answer=f"one{separator}two")
    assert predictions.read(json.dumps(line, ensure_ascii=False), "x") == [line]


@pytest.mark.parametrize(
    "base, tuned, lacking",
    [
        ({"chrf": 1.0}, {"chrf": 1.0, "loss": 2.0}, "loss"),
        ({"chrf": 1.0, "loss": 2.0}, {"loss": 2.0}, "chrf"),
        ({"loss": 2.0}, {"chrf": 1.0, "loss": 2.0}, "chrf"),
    ],
)
def test_a_score_that_one_model_lacks_is_named(base, tuned, lacking):
    line = {**prediction(0), "scores": {"base": base, "tuned": tuned}}
    with pytest.raises(UserError, match=f"there is no score {lacking}\\)"):
        predictions.read(json.dumps(line), "x")


def test_the_base_may_have_a_score_that_the_tuned_model_lacks():
    line = {**prediction(0), "scores": {"base": {"chrf": 1.0, "loss": 2.0}, "tuned": {"chrf": 1.0}}}
    assert predictions.read(json.dumps(line), "x") == [line]


@pytest.mark.parametrize("number", [1e300, -1e300])
def test_the_largest_number_is_read(number):
    (line,) = predictions.read(json.dumps(prediction(0, chrf=number)), "x")
    assert line["scores"]["tuned"]["chrf"] == number


@pytest.mark.parametrize("number", ["1e301", "-1e301", "1e999"])
def test_a_number_that_is_too_large_is_damage(number):
    text = json.dumps(prediction(0, chrf=77.5)).replace("77.5", number)
    with pytest.raises(UserError, match="damaged"):
        predictions.read(text, "x")


def test_a_weight_is_a_count():
    assert predictions.read(json.dumps(prediction(0, tokens=0)), "x")[0]["weights"]["tuned"]["loss"] == 0
    with pytest.raises(UserError, match="Expected `int` >= 0"):
        predictions.read(json.dumps(prediction(0, tokens=-1)), "x")
    with pytest.raises(UserError, match="Expected `int` <= "):
        predictions.read(json.dumps(prediction(0, tokens=10**13)), "x")


def test_general_prompts_have_scores_and_no_answers_and_may_be_none():
    line = {name: value for name, value in prediction(0).items() if name not in ("base", "tuned", "baselines")}
    assert predictions.read_general(json.dumps(line), "x") == [line] and predictions.read_general("", "x") == []
    with pytest.raises(UserError, match="missing required field `base`"):
        predictions.read(json.dumps(line), "x")
    with pytest.raises(UserError, match="missing required field `weights`"):
        predictions.read_general(json.dumps({name: value for name, value in line.items() if name != "weights"}), "x")


def test_a_message_says_its_text_or_its_calls():
    assert predictions.said({"content": "a\x00b"}) == "a\N{REPLACEMENT CHARACTER}b"
    call = [{"function": {"name": "書く"}}]
    assert predictions.said({"content": None, "tool_calls": call}) == '[{"function": {"name": "書く"}}]'
    assert predictions.said({"content": ""}) == '""'


def message(role, content):
    return {"role": role, "content": content}


def test_the_question_is_what_the_user_said_last():
    prompt = [
        message("system", "s"),
        message("user", "one"),
        message("assistant", "two"),
        message("user", " three\n 4 "),
    ]
    assert predictions.question([*prompt, message("tool", "five")]) == "three 4"


def test_without_a_user_the_question_is_the_last_message():
    assert predictions.question([message("system", "one"), message("assistant", "two")]) == "two"


def test_what_cannot_be_shown_is_replaced():
    # Tab, LF and CR are shown; NUL, escape, delete and C1 controls are not; CRLF is one line end.
    assert predictions.clean("a\tb\nc\rd\r\ne") == "a\tb\nc\rd\ne"
    shown = predictions.clean("\x00\x08\x0b\x0c\x0e\x1b\x1f\x7f\x80\x9f")
    assert shown == "\N{REPLACEMENT CHARACTER}" * 10
    assert predictions.clean("é\xa0日\ud800") == "é\xa0日?"
