import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.dataset.conversations import Conversation, Message
from stages.dataset.detectors import BROKEN, SECRETS, UNFILLED
from stages.dataset.inspector import Inspector
from stages.dataset.masking import excerpt, masked, one_line, snippet
from stages.dataset.sentences import finished

INSPECTOR = Inspector(["<|im_end|>", "<|im_start|>", "<s>"])
KEY = "sk-" + "a1B2" * 8
BODY = "MHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY/PuoAoGCCqGSM49"
PRIVATE_KEY = f"-----BEGIN EC PRIVATE KEY-----\n{BODY * 20}\n-----END EC PRIVATE KEY-----"
TOKEN = f"eyJ{'hbGci' * 200}.eyJ{'zdWIi' * 300}.{'dozjg' * 100}"


def faults(text):
    return INSPECTOR.faults(Conversation((Message("user", "Hello?"), Message("assistant", text))))


# For each fault a text that has it, and one that only looks as if it had.
@pytest.mark.parametrize(
    "name, has, looks",
    [
        ("email", "Write to maren@saltlantern.example today.", "We charge 5 @ 3 each, @maren."),
        ("phone", "Call +44 20 7946 0958 please.", "Room 2079, floor 46, booking 0958."),
        ("card", "It is 4539 7031 8429 5567, thanks.", "Booking 4539 7031 8429 5568 it is."),
        ("card", "5412751933886003.", "Parcel 1234567890123456."),
        ("card", "My card is 4539 7031 8429 5567 12/26.", "Booking 0000 0000 0000 0000 12/26."),
        ("card", "4539 7031 8429 5567 123", "IMEI 490154203237518 of the phone."),
        ("card", "Room 5, card 2 4539 7031 8429 5567.", "It is 0.4539703184295567 of it."),
        ("card", "Card:4539.7031.8429.5567", "Hours 4 11 11 11 11 11 11 11 11 in all."),
        ("card", "On 2026-11-24 4539-7031-8429-5567", "ISBN 9780306406157 it is."),
        ("card", "Amex 3782 822463 10013.", "Room x4539703184295567."),
        ("phone", "London: 020 7946 0958.", "From 06-07-2024 10 to 12-07-2024, 3 nights."),
        ("phone", "Call (212) 555-0123 now.", "Invoice 123-456-7890, booking 2125550123."),
        ("phone", "Or 0171 1234567?", "ISBN 978-3-16-148410-0, code 0102030405."),
        ("api_key", "sk_live_" + "a1B2" * 6, "The task_live_update_of_the_desk."),
        ("api_key", "glpat-" + "x1Y2" * 5, "glpat-short"),
        (
            "api_key",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtYXJlbiIsImEiOjF9.dozjgNryP4J3jVmN",
            "eyJ is how it begins.",
        ),
        ("api_key", "github_pat_11AQWERTY0aZcXeVgBiNkL_MnOpQrStUvWx", "github_pat_short"),
        ("api_key", f"{KEY.lower()}.", "sk-a-very-long-hyphenated-lowercase-word-here."),
        ("api_key", PRIVATE_KEY, "A PRIVATE KEY begins with -----BEGIN."),
        ("api_key", f"Use {KEY} for it.", "Take the sk-train to Oslo."),
        ("api_key", "AKIA5R7QJX2MNVT4WZ6B is it.", "AKIA is a prefix."),
        ("mojibake", "Weâ€™d love to!", "Naïve café, “quoted” — where?"),
        ("control", "Bell\x07.", "Tab\tand\nline."),
        ("control", "Right \u202eto left.", "\u05e9\u05dc\u05d5\u05dd!"),
        ("replacement", "Caf\ufffd.", "Caf?"),
        ("template", '["Welcome!', "[Welcome]!"),
        ("placeholder", "Dear {{guest_name}}.", "Set {a, b} and {c}."),
        ("template", "[INST] Hello.", "[INSTANT] Hello."),
        ("special_token", "Bye.<|im_end|>.", "Bye <im_end>."),
        ("special_token", "a <s> b.", "a <sb> b."),
        ("unfinished", "Breakfast is served from", "Breakfast is served from 7"),
        ("unfinished", "We offer tea,", "We offer tea 🙂"),
        ("unfinished", "The pool is", "プールは七時です"),
    ],
)
def test_a_fault_is_found_and_its_look_alike_is_not(name, has, looks):
    assert name in faults(has)
    assert name not in faults(looks)


def test_an_ordinary_conversation_has_no_faults():
    assert faults("Gladly! Check-out is at 11:00; late check-out costs €20 (until 2 p.m.).") == {}


@pytest.mark.parametrize("secret", ["maren@saltlantern.example", "+44 20 7946 0958", "4539 7031 8429 5567", KEY])
def test_no_snippet_shows_a_secret(secret):
    shown = " ".join(faults(f"It is {secret} or <|im_end|> {secret} {secret}").values())
    assert secret not in shown and secret[5:] not in shown and "•••" in shown
    assert secret not in masked(f"a {secret} b {secret}")


def test_a_secret_beside_the_fault_is_not_half_shown():
    text = "x" * 10 + " " + KEY + " \x07 " + "y" * 100
    assert KEY[-20:] not in snippet(text, (text.index("\x07"), text.index("\x07") + 1))


@pytest.mark.parametrize("secret", [PRIVATE_KEY, PRIVATE_KEY[:900], TOKEN])
def test_no_part_of_a_long_key_is_shown(secret):
    text = f"It is {secret[:-400]}\x07{secret[-400:]} \x07"
    texts = [faults(secret)["api_key"], masked(secret), excerpt(secret), one_line(f"Invalid enum value '{secret}'")]
    texts += [snippet(f"{secret} \x07", (len(secret) + 1, len(secret) + 2)), faults(f"{secret} <s>")["special_token"]]
    if secret != TOKEN:  # a control character ends a token, and leaves a private key one
        texts += [snippet(text, (at, at + 1)) for at in range(30, len(text), 37)]
    assert all("•••" in shown for shown in texts)
    assert not any(secret[at : at + 9] in shown for shown in texts for at in range(40, len(secret) - 40, 5))


def test_a_secret_after_an_escape_is_masked_in_json_that_cannot_be_read():
    for secret in (KEY, "4539 7031 8429 5567", "maren@saltlantern.example"):
        assert secret not in excerpt(f'{{"a": "x\\n{secret}') + excerpt(f'{{"a": "\\u0020{secret}')


def test_a_reason_is_one_short_line_without_secrets():
    shown = one_line(f"Invalid enum value '{KEY}\x1b[31m\nerror: fake {'y' * 5000}' - at `$.messages[0].role`")
    assert KEY not in shown and shown.isprintable() and len(shown) < 300
    assert shown.startswith("Invalid enum value 'sk•••\\x1b") and shown.endswith("at `$.messages[0].role`")


def call(**arguments):
    return {"id": "1", "type": "function", "function": {"name": "free", "arguments": json.dumps(arguments)}}


@pytest.mark.parametrize(
    "name, value",
    [
        ("api_key", f"line\n{KEY}"),
        ("card", "4539 7031 8429 5567"),
        ("card", 4539703184295567),
        ("special_token", "<|im_end|>"),
        ("control", "Bell\x07"),
        ("template", {"to": ["[INST] now"]}),
    ],
)
def test_what_tools_are_called_with_is_inspected(name, value):
    calls = Message("assistant", tool_calls=[call(day="Monday", what=value)])
    found = INSPECTOR.faults(Conversation((Message("user", "A room?"), calls)))
    assert found[name].startswith("message 2 (assistant): tool_calls: ")
    tools = [{"type": "function", "function": {"name": "free", "parameters": {"default": value}}}]
    found = INSPECTOR.faults(Conversation((Message("user", "A room?"), Message("assistant", "Yes.")), tools=tools))
    assert found[name].startswith("tools: ")


def test_names_and_labels_are_inspected():
    talk = Conversation((Message("user", "A room?", name=KEY), Message("tool", "2", tool_call_id="<s>")))
    found = INSPECTOR.faults(talk, "maren@saltlantern.example")
    assert found["api_key"] == "message 1 (user): name: ‹sk•••›"
    assert found["special_token"] == "message 2 (tool): tool_call_id: ‹<s>›"
    assert found["email"] == "label: ‹ma•••›"


def test_ordinary_calls_have_no_faults():
    tools = [
        {
            "type": "function",
            "function": {"name": "free", "parameters": {"properties": {"n": {"enum": [2]}}, "x": None}},
        }
    ]
    turns = (Message("user", "Two?"), Message("assistant", tool_calls=[call(days=["Monday"], n=2)]))
    assert INSPECTOR.faults(Conversation(turns, tools=tools), "pool") == {}


@pytest.mark.parametrize(
    "unit",
    [
        *("411 ", "sk-", "-eyJ", "eyJaaaaaaaaaaaa.", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "\\n4", f"{KEY} "),
        *(
            "DE89 3704 0044 0532 0130 00 ",
            "4539703184295567 order ",
            "[Name](",
            "`{{a}}`",
            "{{a ",
            "${a",
            "<<a",
            "```",
            "<code>",
        ),
        *("\u202b", '["', "a_", "-----BEGIN PRIVATE KEY-----\n"),
    ],
)
def test_the_time_grows_with_the_text_and_no_faster(unit):
    text = unit * (200_000 // len(unit))
    begin = time.process_time()
    faults(text), excerpt(text), one_line(text)
    # What takes the square of the length takes minutes.
    assert time.process_time() - begin < 5


def test_the_place_is_marked():
    assert snippet("Dear {{name}}, welcome", (5, 13)) == "Dear ‹{{name}}›, welcome"


def test_what_a_terminal_would_obey_is_shown_as_its_number():
    assert snippet("Bell\x1b[31m.", (4, 5)) == "Bell‹\\x1b›[31m."


def test_nothing_is_unfinished_where_nothing_is():
    assert finished("  ")


LOOKS = ["a", "7", " ", "\n", "@", ".", "com", "â€™", "é", "[x]", "[INST]", '["', "\x07", "\ufffd", "<s>", "<"]
PIECES = [
    *LOOKS,
    "4539 7031 8429 5567",
    "453",
    "5567.",
    KEY,
    "-----BEGIN PRIVATE KEY-----",
    "+44 20 7946 0958",
    "AKIA5R7QJX2MNVT4WZ6B",
]


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=3))
def test_what_is_asked_first_hides_no_fault(texts):
    expected = {name for name, find in {**SECRETS, **BROKEN}.items() if any(map(find, texts))}
    found = INSPECTOR.faults(Conversation(tuple(Message("user", text) for text in texts)))
    assert set(found) - {"special_token", "unfinished", "echo", *UNFILLED, "placeholders"} == expected


def test_the_message_is_named():
    assert faults("Dear {{name}}.")["placeholder"].startswith("message 2 (assistant): Dear ‹")
