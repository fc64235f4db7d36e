import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.content import BROKEN, SECRETS, Inspector, finished, masked, snippet
from stages.conversations import Conversation, Message

INSPECTOR = Inspector(["<|im_end|>", "<|im_start|>", "<s>"])
KEY = "sk-" + "a1B2" * 8


def faults(text):
    return INSPECTOR.faults(Conversation((Message("user", "Hello?"), Message("assistant", text))))


# For each fault a text that has it, and one that only looks as if it had.
@pytest.mark.parametrize(
    "name, has, looks",
    [
        ("email", "Write to maren@saltlantern.example today.", "We charge 5 @ 3 each, @maren."),
        ("phone", "Call +44 20 7946 0958 please.", "Room 2079, floor 46, booking 0958."),
        ("card", "It is 4111 1111 1111 1111, thanks.", "Booking 4111 1111 1111 1112 it is."),
        ("card", "5500005555555559.", "Parcel 1234567890123456."),
        ("phone", "London: 020 7946 0958.", "From 06-07-2024 10 to 12-07-2024, 3 nights."),
        ("phone", "Call (212) 555-0123 now.", "Invoice 123-456-7890, booking 2125550123."),
        ("phone", "Or 0171 1234567?", "ISBN 978-3-16-148410-0, code 0102030405."),
        ("api_key", "sk_live_" + "a1B2" * 6, "The task_live_update_of_the_desk."),
        ("api_key", "glpat-" + "x1Y2" * 5, "glpat-short"),
        (
            "api_key",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN",
            "eyJ is how it begins.",
        ),
        ("api_key", f"Use {KEY} for it.", "Take the sk-train to Oslo."),
        ("api_key", "AKIAIOSFODNN7EXAMPLE is it.", "AKIA is a prefix."),
        ("mojibake", "Weâ€™d love to!", "Naïve café, “quoted” — where?"),
        ("control", "Bell\x07.", "Tab\tand\nline."),
        ("control", "Right \u202eto left.", "\u05e9\u05dc\u05d5\u05dd!"),
        ("replacement", "Caf\ufffd.", "Caf?"),
        ("template", '["Welcome!', "[Welcome]!"),
        ("template", "Dear {{guest_name}}.", "Set {a, b} and {c}."),
        ("template", "[INST] Hello.", "[INSTANT] Hello."),
        ("special_token", "Bye.<|im_end|>.", "Bye <im_end>."),
        ("special_token", "a <s> b.", "a <sb> b."),
        ("unfinished", "Breakfast is served from", "Breakfast is served from 7"),
        ("unfinished", "We offer tea,", "We offer tea 🙂"),
        ("unfinished", "The pool is", "プールは七時です。"),
    ],
)
def test_a_fault_is_found_and_its_look_alike_is_not(name, has, looks):
    assert name in faults(has)
    assert name not in faults(looks)


def test_an_ordinary_conversation_has_no_faults():
    assert faults("Gladly! Check-out is at 11:00; late check-out costs €20 (until 2 p.m.).") == {}


@pytest.mark.parametrize("secret", ["maren@saltlantern.example", "+44 20 7946 0958", "4111 1111 1111 1111", KEY])
def test_no_snippet_shows_a_secret(secret):
    shown = " ".join(faults(f"It is {secret} or <|im_end|> {secret} {secret}").values())
    assert secret not in shown and secret[5:] not in shown and "•••" in shown
    assert secret not in masked(f"a {secret} b {secret}")


def test_a_secret_beside_the_fault_is_not_half_shown():
    text = "x" * 10 + " " + KEY + " \x07 " + "y" * 100
    assert KEY[-20:] not in snippet(text, (text.index("\x07"), text.index("\x07") + 1))


def test_the_place_is_marked():
    assert snippet("Dear {{name}}, welcome", (5, 13)) == "Dear ‹{{name}}›, welcome"


def test_what_a_terminal_would_obey_is_shown_as_its_number():
    assert snippet("Bell\x1b[31m.", (4, 5)) == "Bell‹\\x1b›[31m."


def test_nothing_is_unfinished_where_nothing_is():
    assert finished("  ")


LOOKS = ["a", "7", " ", "\n", "@", ".", "com", "â€™", "é", "{{x}}", "[INST]", '["', "\x07", "\ufffd", "<s>", "<"]
PIECES = [*LOOKS, "4111 1111 1111 1111", "+44 20 7946 0958", "AKIAIOSFODNN7EXAMPLE"]


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=3))
def test_what_is_asked_first_hides_no_fault(texts):
    expected = {name for name, find in {**SECRETS, **BROKEN}.items() if any(map(find, texts))}
    found = INSPECTOR.faults(Conversation(tuple(Message("user", text) for text in texts)))
    assert set(found) - {"special_token", "unfinished"} == expected


def test_the_message_is_named():
    assert faults("Dear {{name}}.")["template"].startswith("message 2 (assistant): Dear ‹")
