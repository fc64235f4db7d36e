import csv
import json
import os

import msgspec
import pytest
import yaml

from stages.core.artifacts import MAKE_ANEW, content, intact, numbers
from stages.core.cli import UserError


@pytest.mark.parametrize(
    "error, reason",
    [
        (KeyError("test"), "it has no 'test'"),
        (ValueError("no\n  number"), "no number"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (TypeError("not a dict"), "not a dict"),
        (AttributeError("no get"), "no get"),
        (IndexError("too short"), "too short"),
        (msgspec.ValidationError("Expected `str`"), "Expected `str`"),
        (yaml.YAMLError("bad\nindent"), "bad indent"),
        (csv.Error("a quote"), "a quote"),
        (RecursionError("maximum recursion depth exceeded"), "recursion"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_taking_a_damaged_file_apart_raises_is_one_sentence(error, reason):
    with pytest.raises(UserError) as said, intact("reports/metrics.json", "make it anew"):
        raise error
    text = str(said.value)
    assert text.startswith("reports/metrics.json is damaged (") and reason in text
    assert text.endswith("); make it anew") and "\n" not in text and "  " not in text


def test_without_another_remedy_dvc_repro_is_named():
    with pytest.raises(UserError, match=r"^a is damaged \(b\); `dvc repro` there writes it again$"), intact("a"):
        raise ValueError("b")
    with pytest.raises(UserError, match=r"\(it has no 'b'\); `dvc repro` there") as said, intact("a"):
        raise KeyError("b")
    assert MAKE_ANEW in str(said.value)


@pytest.mark.parametrize("error", [FileNotFoundError("a"), KeyboardInterrupt(), UserError("b"), ZeroDivisionError("c")])
def test_what_does_not_come_from_the_content_passes(error):
    with pytest.raises(type(error)) as raised, intact("a"):
        raise error
    assert raised.value is error


def test_a_block_without_a_fault_is_left_alone():
    with intact("a"):
        found = numbers('{"a": [1, -2.5e3, null]}')
    assert found == {"a": [1, -2500.0, None]}


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(name):
    assert isinstance(json.loads(name), float)
    with pytest.raises(ValueError, match=f"^{name} is not a number$"):
        numbers(f'{{"loss": {name}}}')


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert content(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="it has more than 4 bytes"):
        content(tmp_path / "a", 4)


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_could_be_read_for_ever_is_no_file(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with pytest.raises(ValueError, match="it is a device or a pipe"):
        content(path)


def test_json_that_is_too_deep_is_damage():
    with pytest.raises(UserError, match="reports/x.json is damaged"), intact("reports/x.json"):
        numbers("[" * 100_000 + "]" * 100_000)
