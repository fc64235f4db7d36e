import pytest

from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message


def talk(*turns):
    return Conversation(tuple(Message(*turn) for turn in turns))


def key(text):
    return talk(("user", text), ("assistant", "b")).prompt_key


@pytest.mark.parametrize(
    "text, same",
    [("IS IT?", "is it"), ("a - b", "a b"), ("a_b", "a b"), (" a\n\tb ", "a b"), ("ﬁn", "FIN"), ("Straße", "STRASSE")],
)
def test_trivially_different_prompts_have_one_key(text, same):
    assert key(text) == key(same)


@pytest.mark.parametrize("text, other", [("a b", "ab"), ("a1", "a2"), ("?!", "!?"), ("🙂", "🙁"), ("?", "")])
def test_other_prompts_have_other_keys(text, other):
    assert key(text) != key(other)


def test_the_key_has_the_roles_of_all_messages_but_the_system_s_and_the_response():
    one = talk(("system", "Be kind."), ("user", "Hi!"), ("assistant", "Yes?"), ("user", "Pool"), ("assistant", "x"))
    assert one.prompt_key == "user:hi\nassistant:yes\nuser:pool"
    assert one.response == "x" and [message.text for message in one.prompt] == ["Be kind.", "Hi!", "Yes?", "Pool"]


@pytest.mark.parametrize("length", [255, 256, 257, 512, 600])
def test_a_long_word_is_normalized_as_a_short_one_is(length):
    assert key("é" * length) == key("e\u0301" * length)
    assert [len(part) for part in conversations._parts("é" * length)] == [256] * (length // 256) + [length % 256] * (
        length % 256 > 0
    )


def test_a_mark_stays_with_its_letter_up_to_a_second_word_s_length():
    word = "a" * 255 + "e" + "\u0301" * 300 + "b"
    assert [len(part) for part in conversations._parts(word)] == [512, 45]
    assert [len(part) for part in conversations._parts("a" * 255 + "e\u0301b")] == [257, 1]


def test_jsonl_is_one_record_a_line_in_utf_8_without_what_is_not_there(tmp_path):
    talks = [
        talk(("user", "é\n"), ("assistant", "ü")),
        Conversation((Message("user", "a", weight=0),), tools=[{"b": 1}]),
    ]
    path = tmp_path / "a.jsonl"
    conversations.write_jsonl(path, talks)
    assert (
        path.read_bytes()
        == (
            '{"messages":[{"role":"user","content":"é\\n"},{"role":"assistant","content":"ü"}]}\n'
            '{"messages":[{"role":"user","content":"a","weight":0}],"tools":[{"b":1}]}\n'
        ).encode()
    )
    assert list(conversations.read_jsonl(path)) == talks


def test_the_identity_of_a_line_is_its_blake2b_hash_of_128_bits():
    # printf abc | b2sum -l 128
    assert conversations.identity(b"abc") == "cf4ab791c62b8d2b2109c90275287816"


@pytest.mark.parametrize(
    "talks, shared",
    [
        ([], ""),
        ([talk(("system", "A"), ("user", "q"))], "A"),
        ([talk(("system", "A"), ("user", "q")), talk(("system", "A"))], "A"),
        ([talk(("system", "A")), talk(("system", "B"))], ""),
        ([talk(("system", "A")), talk(("user", "A"))], ""),
        ([talk(("user", "A")), talk(("user", "A"))], ""),
    ],
)
def test_a_system_prompt_that_all_share(talks, shared):
    assert conversations.shared_system(talks) == shared
