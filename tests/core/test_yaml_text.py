"""YAML with bounds; how numbers and keys are read is tested with params.yaml, which is read in the same way."""

import pytest
import yaml

from stages.core import yaml_text


def doubled(levels: int) -> str:
    """Lists of two references each to the list before: 2 ** levels values in as many lines."""
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels))]
    return "\n".join(lines)


def test_references_are_read():
    assert yaml_text.parse("one: &it {a: 1}\ntwo: *it") == {"one": {"a": 1}, "two": {"a": 1}}


def test_a_text_that_stands_for_very_many_values_is_refused_at_once():
    assert len(yaml_text.parse(doubled(10))) == 10
    # 800 bytes for 2 ** 40 values.
    with pytest.raises(yaml.YAMLError, match="it has more than 100,000 values"):
        yaml_text.parse(doubled(40))


def test_the_bound_counts_keys_values_and_lists():
    # The list itself is one of them.
    assert len(yaml_text.parse(f"[{'1,' * 99_999}]")) == 99_999
    with pytest.raises(yaml.YAMLError, match="it has more than 100,000 values"):
        yaml_text.parse(f"[{'1,' * 100_000}]")


def test_a_value_that_contains_itself_is_refused():
    with pytest.raises(yaml.YAMLError, match="a value contains itself"):
        yaml_text.parse("a: &a [1, *a]")


def test_a_text_that_is_nested_too_deeply_is_refused():
    with pytest.raises(yaml.YAMLError, match="it is nested too deeply"):
        yaml_text.parse("[" * 5000 + "]" * 5000)
