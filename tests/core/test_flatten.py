import pytest

from stages.core.flatten import flat, plain, without_credentials


def test_nested_values_are_joined_by_dots_and_a_list_is_one_value():
    values = {"lr": 0.5, "lora": {"r": 16, "bias": None, "deep": {"on": True}}, "names": ["a", None, 2.0], "none": []}
    assert flat(values, plain) == {
        "lr": "0.5",
        "lora.r": "16",
        "lora.bias": "none",
        "lora.deep.on": "true",
        "names": "a, none, 2",
        "none": "",
    }


def test_every_key_begins_with_the_prefix():
    assert flat({"a": {"b": 1}, "c": [1, 2], "d": 3}, str, "file:") == {
        "file:a.b": "1",
        "file:c": "1, 2",
        "file:d": "3",
    }


@pytest.mark.parametrize(
    "value, text",
    [(True, "true"), (False, "false"), (2.0, "2"), (2, "2"), (2.5, "2.5"), (1, "1"), ("2.0", "2.0"), ("Yes", "Yes")],
)
def test_values_are_shown_as_in_yaml(value, text):
    assert plain(value) == text


def test_addresses_lose_user_password_query_and_fragment():
    secret = "https://me:pass@host.example:8080/a/b.csv?token=KEY#KEY"
    address = "https://host.example:8080/a/b.csv"
    # By the name of the key, and wherever there is an address.
    assert without_credentials({"data.url": secret, "other": secret}) == {"data.url": address, "other": address}


def test_other_values_stay_as_they_are():
    values = {"question": "why?", "curl": "a?b#c", "url": "a?b"}
    assert without_credentials(values) == values
