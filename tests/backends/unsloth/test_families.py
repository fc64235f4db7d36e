"""What is learned from a conversation with each family's template, worked out by hand from how the family writes."""

import json

import pytest

from stages.backends.unsloth.reader import IGNORED, Chat
from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message
from tests.support.families import FAMILIES, learned

SYSTEM, POOL, SEVEN = Message("system", "Be kind."), Message("user", "Pool?"), Message("assistant", "At 7.")
THANKS, GLADLY = Message("user", "Thanks!"), Message("assistant", "Gladly.")
ONE, TWO = Conversation((POOL, SEVEN)), Conversation((SYSTEM, POOL, SEVEN, THANKS, GLADLY))
EMPTY = "<think>\n\n</think>\n"
# For each family what two turns teach, an item for each example, and how an answer ends.
LEARNED = {
    "llama 3.1": (["At 7.<|eot_id|>Gladly.<|eot_id|>"], "<|eot_id|>"),
    "llama 3.2 with pad": (["At 7.<|eot_id|>Gladly.<|eot_id|>"], "<|eot_id|>"),
    "qwen2.5": (["At 7.<|im_end|>Gladly.<|im_end|>"], "<|im_end|>"),
    "qwen3": (["At 7.<|im_end|>", "Gladly.<|im_end|>"], "<|im_end|>"),
    "qwen3-moe": (["At 7.<|im_end|>", "Gladly.<|im_end|>"], "<|im_end|>"),
    "gemma 2": (["At 7.<end_of_turn>Gladly.<end_of_turn>"], "<end_of_turn>"),
    "gemma 3": (["At 7.<end_of_turn>Gladly.<end_of_turn>"], "<end_of_turn>"),
    "gemma 3 vision": (["At 7.<end_of_turn>Gladly.<end_of_turn>"], "<end_of_turn>"),
    "mistral nemo": (["At 7.</s>Gladly.</s>"], "</s>"),
    "mistral": ([" At 7.</s> Gladly.</s>"], "</s>"),
    "phi-3": (["At 7.<|end|>", "Gladly.<|end|>"], "<|end|>"),
    "phi-4": (["At 7.<|im_end|>Gladly.<|im_end|>"], "<|im_end|>"),
    "phi-4-mini": (["At 7.<|end|>", "Gladly.<|end|>"], "<|end|>"),
    "gpt-oss": (
        ["<|channel|>final<|message|>At 7.<|return|>", "<|channel|>final<|message|>Gladly.<|return|>"], "<|return|>"
    ),
    "smollm3": (["At 7.<|im_end|>Gladly.<|im_end|>"], "<|im_end|>"),
    "olmo 2": (["At 7.<|endoftext|>Gladly.<|endoftext|>"], "<|endoftext|>"),
    "granite": (["At 7.<|end_of_text|>Gladly.<|end_of_text|>"], "<|end_of_text|>"),
    "deepseek": (["At 7.<|eos|>Gladly.<|eos|>"], "<|eos|>"),
    "deepseek r1 distilled": (["At 7.<|eos|>", "Gladly.<|eos|>"], "<|eos|>"),
}  # fmt: skip


def test_every_family_has_a_row():
    assert set(LEARNED) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_learned_up_to_the_token_that_ends_it(family_chat, family):
    texts, end = LEARNED[family]
    chat = family_chat(family)
    chat.check()
    assert [learned(chat, one) for one in chat.examples(TWO)] == texts
    assert chat.end_token == end
    answer = texts[0][: texts[0].index(end) + len(end)]
    (single,) = chat.examples(ONE)
    assert learned(chat, single) == answer == learned(chat, chat.example(ONE))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_follows_what_the_model_is_asked(family_chat, family):
    chat = family_chat(family)
    for example in chat.examples(TWO):
        last = max(at for at, label in enumerate(example.labels) if label != IGNORED)
        while example.labels[last - 1] != IGNORED:
            last -= 1
        given = chat.tokenizer.decode(example.input_ids[:last])
        asked = [TWO.messages[:2], TWO.messages[:4]]
        assert given in [chat.render(Conversation(messages), answer_next=True) for messages in asked]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_system_s_text_reaches_the_model_before_the_question(family_chat, family):
    text = family_chat(family).render(TWO)
    assert text.index("Be kind.") < text.index("Pool?") < text.index("Thanks!")
    assert text.count("Be kind.") == 1


def test_where_there_is_no_place_for_a_system_message_it_opens_the_question(family_chat):
    for family, expected in [
        ("gemma 2", "<bos><start_of_turn>user\nBe kind.\n\nPool?<end_of_turn>\n<start_of_turn>model\n"),
        ("mistral", "<s>[INST] Be kind.\n\nPool? [/INST]"),
    ]:
        loaded = family_chat(family)
        assert loaded.render(Conversation((SYSTEM, POOL)), answer_next=True) == expected


def test_a_system_message_that_cannot_be_said_is_reported_with_its_conversation(family_chat):
    odd = Conversation((SYSTEM, GLADLY, POOL, SEVEN))
    (reason,) = family_chat("gemma 2").counts([odd])
    assert "rejects the conversation: System role not supported" in reason


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_end_at_the_template_s_the_tokenizer_s_and_the_model_s_tokens(family_chat, tmp_path, family):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    chat = family_chat(family)
    names = {chat.end_token, FAMILIES[family].end}
    assert set(chat.end_ids) == {0, 1, *chat.tokenizer.convert_tokens_to_ids(sorted(names))}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert 2 in Chat.load(tmp_path).end_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_padded(family_chat, family):
    tokenizer = family_chat(family).tokenizer
    padded = tokenizer.pad({"input_ids": [[3], [3, 4]]}, padding_side="left")
    assert padded["attention_mask"] == [[0, 1], [1, 1]] and padded["input_ids"][0][1] == 3


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('one turn only') }}", "rejects the conversation: one turn only"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "rewrites earlier turns",
        ),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not end responses with a special token"),
    ],
)
def test_a_base_whose_template_cannot_be_trained_on_is_refused_before_there_are_data(family_chat, template, message):
    chat = family_chat("qwen2.5")
    chat.tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"^unsloth.model: .*{message}"):
        chat.check()


@pytest.mark.parametrize(
    "family, prompt", [("qwen3", "assistant\n<think>\n\n</think>\n\n"), ("smollm3", f"assistant\n{EMPTY}")]
)
def test_reasoning_is_off_unless_it_is_asked_for(family_chat, family, prompt):
    asked = Conversation((POOL,))
    assert family_chat(family).render(asked, answer_next=True).endswith(prompt)
    assert family_chat(family, thinking=True).render(asked, answer_next=True).endswith("<|im_start|>assistant\n")


R1 = "<|Assistant|><think>\n"
THOUGHT = Conversation((POOL, Message("assistant", "<think>\nIt is a pool.\n</think>\n\nAt 7."), THANKS, GLADLY))


@pytest.mark.parametrize(
    "family, thinking, prompt, texts",
    [
        ("qwen3", False, "assistant\n<think>\n\n</think>\n\n", ["At 7.<|im_end|>"]),
        ("qwen3", True, "assistant\n", ["<think>\nIt is a pool.\n</think>\n\nAt 7.<|im_end|>"]),
        ("smollm3", False, f"assistant\n{EMPTY}", ["At 7.<|im_end|>Gladly.<|im_end|>"]),
        ("deepseek r1 distilled", False, f"{R1}\n</think>\n\n", ["At 7.<|eos|>", "Gladly.<|eos|>"]),
        (
            "deepseek r1 distilled",
            True,
            R1,
            ["It is a pool.\n</think>\n\nAt 7.<|eos|>", "\n</think>\n\nGladly.<|eos|>"],
        ),
        ("llama 3.1", False, "\n\n", ["<think>\nIt is a pool.\n</think>\n\nAt 7.<|eot_id|>Gladly.<|eot_id|>"]),
    ],
)
def test_reasoning_in_the_data_is_learned_where_the_model_is_asked_to_reason(
    family_chat, family, thinking, prompt, texts
):
    chat = family_chat(family, thinking)
    assert chat.render(Conversation((POOL,)), answer_next=True).endswith(prompt)
    examples = chat.examples(THOUGHT)
    found = [learned(chat, one) for one in examples]
    assert found[: len(texts)] == texts
    # Each is what follows the prompt, and what is left of it as an answer has no reasoning.
    for example, text in zip(examples[:1], texts, strict=False):
        assert chat.tokenizer.decode(example.input_ids).startswith(
            chat.render(Conversation((POOL,)), answer_next=True) + text[:5]
        )
    ids = chat.tokenizer(texts[0].partition("Gladly")[0], add_special_tokens=False)["input_ids"]
    assert chat.spoken(ids, chat.render(Conversation((POOL,)), answer_next=True)) == "At 7."
    assert THOUGHT.messages[1].text != "At 7." and Conversation(THOUGHT.messages[:2]).response == "At 7."


@pytest.mark.parametrize("family", ["qwen3", "smollm3", "deepseek r1 distilled"])
def test_reasoning_that_is_switched_off_is_nowhere_in_what_is_learned(family_chat, family):
    chat = family_chat(family)
    assert chat.counts([THOUGHT])[0] > 0
    assert not any("pool" in chat.tokenizer.decode(one.input_ids) for one in chat.examples(THOUGHT))


@pytest.mark.parametrize(
    "text, said",
    [
        ("<|channel|>final<|message|>At 7.<|return|>", "At 7."),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>At 7.<|return|>",
            "At 7.",
        ),
        ("<|channel|>analysis<|message|>The pool opens at", ""),
        ("At 7.<|return|>", "At 7."),
    ],
)
def test_what_is_in_other_channels_is_no_part_of_an_answer(family_chat, text, said):
    chat = family_chat("gpt-oss")
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.spoken(ids, chat.render(Conversation((POOL,)), answer_next=True)) == said


@pytest.mark.parametrize("family", FAMILIES)
def test_white_space_around_an_answer_does_not_hide_where_it_ends(family_chat, family):
    chat = family_chat(family)
    (example,) = chat.examples(Conversation((POOL, Message("assistant", " At 7. \n"))))
    text = learned(chat, example)
    assert "At 7." in text and text.endswith(chat.end_token) and text.count(chat.end_token) == 1


@pytest.mark.parametrize("family", ["llama 3.1", "gpt-oss", "smollm3", "granite"])
def test_the_date_that_templates_write_is_always_the_same(family_chat, family):
    assert "2026" in family_chat(family).render(ONE)


@pytest.mark.parametrize(
    "text, prompt, said",
    [
        ("At 7.", "", "At 7."),
        ("<think>\nThe pool...\n</think>\n\nAt 7.", "", "At 7."),
        ("The pool...</think>At 7.", "assistant\n<think>\n", "At 7."),
        ("<think>\nThe pool", "", ""),
        ("The pool", "assistant\n<think>\n", ""),
        ("At 7.", f"assistant\n{EMPTY}", "At 7."),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_reasoning_is_no_part_of_an_answer(family_chat, text, prompt, said, special):
    chat = family_chat("qwen3")
    chat.tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    assert chat.spoken(chat.tokenizer(text, add_special_tokens=False)["input_ids"], prompt) == said
