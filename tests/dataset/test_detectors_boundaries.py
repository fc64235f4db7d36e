"""Each kind of secret and of broken text at the edge of what counts as one; numbers and lengths worked out by hand."""

import re

import pytest

from stages.dataset import detectors
from stages.dataset.conversations import Conversation, Message
from stages.dataset.detectors import BROKEN, SECRETS
from stages.dataset.inspector import Inspector
from stages.dataset.masking import excerpt, masked, one_line, snippet
from stages.dataset.sentences import finished


def found(kind, text):
    span = {**SECRETS, **BROKEN}[kind](text)
    return None if span is None else text[slice(*span)]


def luhn(digits):
    """Whether a card's number is valid: from the right every second digit doubled, the sum of all digits in tens."""
    doubled = [int(one) * (2 if at % 2 else 1) for at, one in enumerate(reversed(digits))]
    return sum(sum(divmod(one, 10)) for one in doubled) % 10 == 0


def card(prefix, length):
    """The number with this beginning and length whose last digit is right."""
    return next(one for last in range(10) if luhn(one := prefix.ljust(length - 1, "3") + str(last)))


# Beginnings and the lengths that cards of that kind have.
CARDS = {
    "4": (13, 16, 19),
    **dict.fromkeys(("51", "55", "22", "27"), (16,)),
    **dict.fromkeys(("34", "37"), (15,)),
    **dict.fromkeys(("30", "36", "38", "39"), (12, 13, 14, 15, 16, 17, 18, 19)),
    **dict.fromkeys(("35", "50", "56", "57", "58", "60", "62", "65", "69"), (12, 13, 14, 15, 16, 17, 18, 19)),
}
# Those that nearly all cards have: they count where nothing speaks of a card.
COMMON = {
    **dict.fromkeys(("4", "51", "55", "223", "271", "353", "6011", "645", "65"), (16,)),
    **{"34": (15,), "37": (15,), "303": (14,), "36": (14,), "38": (14,), "39": (14,)},
}


@pytest.mark.parametrize("prefix", CARDS)
def test_cards_have_a_beginning_a_length_and_a_check_digit(prefix):
    for length in range(12, 21):
        number = card(prefix, length)
        assert found("card", f"My card: {number}, yes") == (number if length in CARDS[prefix] else None), length
        wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
        assert found("card", wrong) is None


@pytest.mark.parametrize("prefix", [*CARDS, *COMMON])
def test_where_no_card_is_spoken_of_only_common_forms_count(prefix):
    for length in range(13, 20):
        number = card(prefix, length)
        common = any(number.startswith(one) and length in COMMON[one] for one in COMMON)
        assert (found("card", f"It is {number}, yes") is not None) == common, length


@pytest.mark.parametrize("prefix", ["1", "2", "20", "21", "28", "31", "32", "33", "59", "7", "8", "9", "0"])
def test_other_beginnings_are_no_cards(prefix):
    numbers = [card(prefix + "0", length) for length in range(13, 20)]
    assert [number for number in numbers if found("card", f"Card {number}")] == []


@pytest.mark.parametrize(
    "text, number",
    [
        ("4539 7031 8429 5567", "4539 7031 8429 5567"),
        ("4539-7031-8429-5567", "4539-7031-8429-5567"),
        ("4539.7031.8429.5567", "4539.7031.8429.5567"),
        ("4539\u00a07031\u00a08429\u00a05567", "4539\u00a07031\u00a08429\u00a05567"),
        ("3782 822463 10013", "3782 822463 10013"),
        ("4539 7031 8429 5567 5555", "4539 7031 8429 5567"),
        ("123 4539703184295567", "4539703184295567"),
        ("453 970 318 429 556 7", None),  # a group of one digit
        ("45 39703184295567", None),  # a group of two
        ("453 970 318 429 5567", "453 970 318 429 5567"),
        ("4539  7031 8429 5567", None),
        ("4539,7031,8429,5567", None),
        ("a4539703184295567", None),
        ("4539703184295567a", None),
        ("_4539703184295567", None),
        ("0.4539703184295567", None),
        ("3.4539703184295567", None),
        ("point 1.4539.7031.8429.5567", "4539.7031.8429.5567"),
    ],
)
def test_how_a_card_s_number_is_written(text, number):
    assert found("card", text) == number


def test_a_card_has_at_most_six_groups():
    six = card("6019", 19)
    parts = [six[0:4], six[4:7], six[7:10], six[10:13], six[13:16], six[16:19]]
    assert found("card", "card " + " ".join(parts)) == " ".join(parts)


@pytest.mark.parametrize(
    "key, shorter",
    [
        ("sk-" + "a1" * 10, 1),
        ("AKIA" + "A1" * 8, 1),
        ("ASIA" + "A1" * 8, 1),
        *((f"gh{letter}_" + "a1" * 18, 1) for letter in "pousr"),
        ("github_pat_" + "a1" * 11, 1),
        ("hf_" + "a1" * 15, 1),
        ("glpat-" + "a1" * 10, 1),
        *((f"{letter}k_{mode}_" + "a1" * 8, 1) for letter in "sr" for mode in ("live", "test")),
        *((f"xox{letter}-" + "a1" * 5, 1) for letter in "abprs"),
        ("AIza" + "a1" * 17 + "b", 1),
        ("eyJ" + "a1" * 5 + ".eyJ" + "a1" * 5 + "." + "a1" * 5, 1),
    ],
    ids=lambda value: value[:11] if isinstance(value, str) else "",
)
def test_the_shortest_key_of_each_kind(key, shorter):
    assert found("api_key", f"Use {key} now") == key
    assert found("api_key", f"Use {key[:-shorter]} now") is None
    assert found("api_key", f"Usex{key} now") is None
    assert detectors.HINTS["api_key"](key)
    for way in (masked(f"a {key} b"), excerpt(key), one_line(f"got {key}"), snippet(key, (0, len(key)), secret=True)):
        assert key[2:] not in way and "•••" in way


@pytest.mark.parametrize("kind, length", [("AKIA", 16), ("AIza", 35)])
def test_keys_of_one_length_have_no_other(kind, length):
    assert found("api_key", kind + "A" * (length + 1)) is None


@pytest.mark.parametrize(
    "text, is_key",
    [
        ("sk-" + "a" * 20, False),  # a word
        ("sk-" + "a" * 19 + "7", True),
        ("sk-" + "a" * 19 + "B", True),
        ("eyJ" + "a" * 10, False),
        ("eyJ" + "a" * 10 + ".eyJ" + "a" * 10, False),
        ("eyJ" + "a" * 9 + ".eyJ" + "a" * 10 + "." + "a" * 10, False),
        ("eyJ" + "a" * 10 + ".eyJ" + "a" * 9 + "." + "a" * 10, False),
        ("eyJ" + "a" * 10 + ".eyJ" + "a" * 10 + "." + "a" * 9, False),
        ("hf_" + "a" * 30, True),
    ],
)
def test_words_and_halves_of_tokens_are_no_keys(text, is_key):
    assert (found("api_key", text) is not None) == is_key
    # What follows is looked at all the same.
    key = "sk-" + "a1B2" * 8
    assert found("api_key", f"{text} {key}") == (text if is_key else key)


@pytest.mark.parametrize(
    "kind", ["PRIVATE KEY", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK", "ENCRYPTED PRIVATE KEY"]
)
def test_a_private_key_is_all_from_its_beginning_to_its_end(kind):
    key = f"-----BEGIN {kind}-----\n{'MHcC' * 10}\n-----END {kind}-----"
    assert found("api_key", f"a {key} b") == key
    assert found("api_key", f"a {key[:-30]}") == key[:-30]
    assert found("api_key", f"-----BEGIN PUBLIC {kind[-3:]}-----\n{'MHcC' * 8}") is None
    assert found("api_key", f"-----BEGIN {kind}-----\n{'MHcC' * 7}") is None


@pytest.mark.parametrize(
    "text, address",
    [
        ("a@b.co", "a@b.co"),
        ("a.b-c+d_e@x.y.example", "a.b-c+d_e@x.y.example"),
        ("(me@host.example)", "me@host.example"),
        ("me@host.example.", "me@host.example"),
        ("a" * 64 + "@b.co", "a" * 64 + "@b.co"),
        ("a" * 65 + "@b.co", None),
        ("a@" + "b" * 63 + ".co", "a@" + "b" * 63 + ".co"),
        ("a@" + "b" * 64 + ".co", None),
        ("a@" + "b." * 8 + "co", "a@" + "b." * 8 + "co"),
        ("a@b." + "c" * 24, "a@b." + "c" * 24),
        ("a@b.c", None),
        ("a@b.12", None),
        ("a@b", None),
        ("@b.co", None),
        ("a @b.co", None),
    ],
)
def test_where_an_e_mail_address_begins_and_ends(text, address):
    assert found("email", text) == address


@pytest.mark.parametrize(
    "text, number",
    [
        ("+44 20 7946 0958", "+44 20 7946 0958"),
        ("+1 (212) 555-0123", "+1 (212) 555-0123"),
        ("+49 30 901820", "+49 30 901820"),
        ("+33 1 42 68 53 00", "+33 1 42 68 53 00"),
        ("(212) 555-0123", "(212) 555-0123"),
        ("212-555-0123", "212-555-0123"),
        ("212.555.0123", "212.555.0123"),
        ("212 555 0123", "212 555 0123"),
        ("2125550123", None),
        ("020 7946 0958", "020 7946 0958"),
        ("02079460958", None),
        ("2024-11-24 10:00", None),
        ("24.11.2024", None),
        ("01/02/2024 1234", None),
        ("12345", None),
        ("+999 12 345 678", None),
    ],
)
def test_what_is_written_as_a_phone_number(text, number):
    assert found("phone", f"Call {text}") == number


@pytest.mark.parametrize("before, seen", [(99, True), (100, False)])
def test_a_hundred_numbers_are_looked_at(before, seen):
    text = ", ".join(["1234567"] * before) + ", +44 20 7946 0958"
    assert (found("phone", text) is not None) == seen


@pytest.mark.parametrize("kind", SECRETS)
def test_the_search_begins_where_it_should(kind):
    secret = {
        "api_key": "AKIA5R7QJX2MNVT4WZ6B",
        "card": "4539703184295567",
        "email": "a@b.co",
        "phone": "+44 20 7946 0958",
    }
    text = f"{secret[kind]} and, {secret[kind]}"
    first = SECRETS[kind](text)
    assert first == (0, len(secret[kind])) and SECRETS[kind](text, first[1]) == (
        len(text) - len(secret[kind]),
        len(text),
    )
    assert masked(text).count("•••") == 2 and secret[kind][2:] not in masked(text)
    assert masked(text).startswith(secret[kind][:2] + "•••")


@pytest.mark.parametrize(
    "code, is_control",
    [
        *((code, True) for code in (0, 8, 0x0B, 0x0C, 0x0E, 0x1F, 0x7F, 0x9F, 0x202A, 0x202E, 0x2066, 0x2069)),
        *((code, False) for code in (9, 10, 13, 0x20, 0x7E, 0xA0, 0x2029, 0x202F, 0x2065, 0x206A, 0x200D)),
    ],
)
def test_which_characters_are_controls(code, is_control):
    assert (found("control", f"a{chr(code)}b") is not None) == is_control


@pytest.mark.parametrize(
    "text, is_template",
    [
        ('["a', True),
        (" [ 'a", True),
        ('a ["b', False),
        ("<|user|>", True),
        ("<||>", False),
        ("{{name}}", False),
        ('["a", "b"]', False),
        ('["It is open."]', True),
        ("[INST]", True),
        ("[/INST]", True),
        ("[inst]", False),
        ("<<SYS>>", True),
        ("<</SYS>>", True),
    ],
)
def test_what_is_left_of_a_template(text, is_template):
    assert (found("template", text) is not None) == is_template


@pytest.mark.parametrize(
    "end", [*".!?…:;。！？：；।؟)]}\"'”’»›*`~|", "5", "🙂", "https://a.example/b", "me@host.example", ". \n"]
)
def test_signs_that_end_a_sentence(end):
    assert finished(f"It is {end}")


@pytest.mark.parametrize("end", ["a", "é", ",", "-", "–", "—", "a@b", "http", "も、"])
def test_signs_that_do_not_end_one(end):
    assert not finished(f"It is {end}")


def test_only_the_last_answer_can_be_unfinished():
    inspector = Inspector([])
    ask, open_end = Message("user", "and then"), Message("assistant", "It is ")
    assert "unfinished" not in inspector.faults(Conversation(()))
    assert "unfinished" not in inspector.faults(Conversation((ask, open_end, ask, Message("assistant", "Yes."))))
    assert inspector.faults(Conversation((ask, open_end)))["unfinished"] == "message 2 (assistant): It is‹› "
    calls = Message("assistant", "It is", tool_calls=[{"id": "1"}])
    assert "unfinished" not in inspector.faults(Conversation((ask, calls)))


def test_the_longest_special_token_is_found_first_and_without_any_nothing_is():
    talk = Conversation((Message("assistant", "a <s><s> b."),))
    assert Inspector(["<s>", "<s><s>"]).faults(talk)["special_token"] == "message 1 (assistant): a ‹<s><s>› b."
    assert Inspector([]).faults(talk) == {}
    assert "special_token" in Inspector(["(a|"]).faults(Conversation((Message("assistant", "(a|."),)))


def test_a_snippet_has_thirty_characters_on_either_side_and_three_hundred_of_the_fault():
    text = "".join(chr(0x4E00 + n) for n in range(1000))
    assert snippet(text, (100, 500)) == f"{text[70:100]}‹{text[100:400]}›{text[500:530]}"
    assert snippet(text, (10, 11)) == f"{text[:10]}‹{text[10]}›{text[11:41]}"


def test_an_excerpt_has_sixty_characters():
    assert excerpt("x" * 61) == "x" * 60


def test_a_long_reason_loses_its_middle():
    text = "".join(chr(0x4E00 + n) for n in range(1000))
    assert one_line(text[:200]) == text[:200]
    assert one_line(text[:201]) == f"{text[:120]}…{text[121:201]}"
    assert one_line(text) == f"{text[:120]}…{text[-80:]}"


@pytest.mark.parametrize(
    "secret", ["a" * 64 + "@" + ("b" * 63 + ".") * 8 + "c" * 24, "4539 7031 8429 5567", "+44 20 7946 0958"]
)
@pytest.mark.parametrize("show", [excerpt, one_line, masked])
def test_no_secret_is_half_shown_wherever_the_text_is_cut(secret, show):
    for before in (0, 40, 58, 60, 100, 118, 121, 190):
        shown = show("é " * (before // 2) + secret + " é" * 200)
        assert secret[2:] not in shown and not re.search(r"\d{3}|a{3}|b{3}", shown)


def test_a_secret_near_a_fault_is_masked_in_its_snippet_from_either_side():
    mail = "a" * 64 + "@" + ("b" * 63 + ".") * 8 + "c" * 24
    for text in (f"{mail} \x07.", f"\x07 {mail}"):
        at = text.index("\x07")
        assert not re.search("a{3}|b{3}|c{3}", snippet(text, (at, at + 1)))
