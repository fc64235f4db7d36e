"""Kinds of values, and the hints for names that nobody knows."""

import pytest
from pydantic import ValidationError, create_model

from stages.params import kinds
from stages.params.kinds import READ_BY, Count, Flag, Number, Pattern, ReadBy, Section, Text, knob, nearest


def accepts(kind, value):
    try:
        create_model("Model", __base__=Section, it=(kind, ...))(it=value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (Number, [0, -1.5, 1e308], ["1", True, float("nan"), float("inf"), None]),
        (Count, [1, 7], [0, -1, 1.0, "1", True]),
        (Text, ["a", " "], ["", 1, None]),
        (Flag, [True, False], [0, 1, "true", None]),
        (Pattern, ["a", ".*_proj", "(a|b)"], ["(", "", "a{1,99999999999}", 3]),
    ],
)
def test_each_kind_takes_its_values_and_no_others(kind, good, bad):
    assert [accepts(kind, value) for value in good] == [True] * len(good)
    assert [accepts(kind, value) for value in bad] == [False] * len(bad)


def test_what_is_no_regular_expression_is_quoted_with_the_reason():
    with pytest.raises(ValidationError, match=r"'\[a' is not a regular expression: unterminated character set"):
        create_model("Model", it=(Pattern, ...))(it="[a")


def test_a_section_refuses_unknown_keys_and_changes():
    section = create_model("Model", __base__=Section, it=(int, 1))
    with pytest.raises(ValidationError, match="Extra inputs"):
        section(other=2)
    with pytest.raises(ValidationError, match="frozen"):
        section().it = 2


def test_a_knob_has_its_meaning_its_readers_and_the_rest_of_a_field():
    model = create_model(
        "Model",
        read=(int, knob("How many.", ReadBy(("split",), ("openai",), decides="cost"), ge=3)),
        plain=(int, knob("How few.", default=4, json_schema_extra={"x-more": 1})),
    )
    schema = model.model_json_schema()["properties"]
    assert schema["read"] == {
        "title": "Read", "type": "integer", "description": "How many.", "minimum": 3,
        READ_BY: {"stages": ["split"], "backends": ["openai"], "decides": "cost"},
    }  # fmt: skip
    assert schema["plain"]["x-more"] == 1 and READ_BY not in schema["plain"]
    assert model(read=3).plain == 4
    with pytest.raises(ValidationError, match="Field required"):
        model()


def test_a_reader_is_every_backend_and_decides_the_result_unless_said_otherwise():
    assert ReadBy() == ReadBy((), ("unsloth", "openai"), "result") and kinds.BACKENDS == ("unsloth", "openai")


@pytest.mark.parametrize(
    "name, known, prefix, hint",
    [
        ("epoch", ["lr", "epochs"], [], "; did you mean 'epochs'?"),
        ("rr", ["r", "alpha"], ["lora"], "; did you mean 'lora.r'?"),
        ("method", ["methods", "methodes"], ("a", "b"), "; did you mean 'a.b.methods'?"),
        # Half of the letters are enough, less is not.
        ("abxx", ["abyy"], [], "; did you mean 'abyy'?"),
        ("axxx", ["ayyy"], [], "; known: ayyy"),
        ("rank", ["r", "alpha"], ["lora"], "; known: alpha, r"),
        ("x", [], [], "; known: none"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_one_or_all(name, known, prefix, hint):
    assert nearest(name, known, prefix) == hint
