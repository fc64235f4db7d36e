"""Tools, their calls and results, names: what each family's template writes of them, and what is said of the rest."""

import pytest

from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message
from tests.support.families import FAMILIES, learned

ID = "call_8Zq0JxY3"
CALL = {"id": ID, "type": "function", "function": {"name": "free_rooms", "arguments": '{"day": "Monday"}'}}
TOOL = {"type": "function", "function": {"name": "free_rooms", "description": "Rooms.", "parameters": {}}}
ASKED, CALLS, RESULT = Message("user", "Rooms?"), Message("assistant", tool_calls=[CALL]), Message("tool", "two")
ANSWER = Message("assistant", "Two.")
CHATML = '<tool_call>\n{"name": "free_rooms", "arguments": {"day": "Monday"}}\n</tool_call><|im_end|>'
LLAMA = '{"name": "free_rooms", "parameters": {"day": "Monday"}}<|eot_id|>'
DEEPSEEK = '<|call|>free_rooms\n{"day": "Monday"}<|eos|>'
# What is learned of a call, and how its result is written; None where the template leaves a call out.
CALLED = {
    "llama 3.1": (LLAMA, '<|start_header_id|>ipython<|end_header_id|>\n\n"two"<|eot_id|>'),
    "llama 3.2 with pad": (LLAMA, '<|start_header_id|>ipython<|end_header_id|>\n\n"two"<|eot_id|>'),
    "qwen2.5": (f"\n{CHATML}", "<tool_response>\ntwo\n</tool_response>"),
    "qwen3": (CHATML, "<tool_response>\ntwo\n</tool_response>"),
    "qwen3-moe": (CHATML, "<tool_response>\ntwo\n</tool_response>"),
    "gemma 2": None,
    "gemma 3": None,
    "gemma 3 vision": None,
    "mistral": None,
    "mistral nemo": (
        '[TOOL_CALLS][{"name": "free_rooms", "arguments": {"day": "Monday"}, "id": "%s"}]</s>',
        '[TOOL_RESULTS]{"content": two, "call_id": "%s"}[/TOOL_RESULTS]',
    ),
    "phi-3": None,
    "phi-4": None,
    "phi-4-mini": None,
    "gpt-oss": (
        ' to=functions.free_rooms<|channel|>commentary json<|message|>{"day": "Monday"}<|call|>',
        '<|start|>functions.free_rooms to=assistant<|channel|>commentary<|message|>"two"<|end|>',
    ),
    "smollm3": None,
    "olmo 2": None,
    "granite": None,
    "deepseek": (DEEPSEEK, "<|output|>two"),
    "deepseek r1 distilled": (DEEPSEEK, "<|output|>two"),
}
NOT_SHOWN = {"gemma 2", "gemma 3", "gemma 3 vision", "mistral", "phi-3", "phi-4", "olmo 2", "deepseek"} | {
    "deepseek r1 distilled"
}


def test_every_family_has_a_row():
    assert set(CALLED) == set(FAMILIES)


@pytest.mark.parametrize("family", [name for name, found in CALLED.items() if found])
def test_a_call_is_learned_with_arguments_encoded_once_and_its_result_follows(family_chat, family):
    chat = family_chat(family)
    call, result = CALLED[family]
    results = Message("tool", "two", tool_call_id=ID)
    whole = Conversation((ASKED, CALLS, results, ANSWER), tools=[TOOL])
    # The only family that writes ids wants them to have nine letters and digits.
    short = chat.render(whole).partition('"id": "')[2].partition('"')[0]
    assert len(short) == (9 if family == "mistral nemo" else 0) and short != ID[:9]
    (example,) = chat.examples(Conversation((ASKED, CALLS), tools=[TOOL]))
    assert learned(chat, example) == (call % short if short else call)
    assert (result % short if short else result) in chat.render(whole)
    texts = "".join(learned(chat, one) for one in chat.examples(whole))
    assert texts.count("free_rooms") == 1 and texts.count("Two.") == 1 and "two" not in texts
    assert chat.counts([whole])[0] > 0


@pytest.mark.parametrize("family", [name for name, found in CALLED.items() if not found])
def test_a_call_that_would_vanish_is_refused_as_the_answer_and_as_what_came_before(family_chat, family):
    chat = family_chat(family)
    target = Conversation((ASKED, CALLS), tools=[TOOL])
    before = Conversation((ASKED, CALLS, RESULT, ANSWER), tools=[TOOL])
    (of_target, of_before) = chat.counts([target, before])
    assert of_target.startswith("the model's chat template leaves out the tool_calls of message 2 (assistant)")
    assert "message 2 (assistant)" in of_before or "roles must alternate" in of_before
    with pytest.raises(UserError, match="tool_calls of message 2"):
        chat.examples(target)


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_the_template_does_not_write_are_found_by_writing_without_them(family_chat, family):
    chat = family_chat(family)
    named = Message("user", "Rooms?", name="Ann")
    plain, full = Conversation((ASKED, ANSWER)), Conversation((named, ANSWER), [TOOL], parallel_tool_calls=True)
    tools = ["tools"] if family in NOT_SHOWN else []
    assert chat.left_out([plain, full]) == [[], ["name", "parallel_tool_calls", *tools]]
    assert ("free_rooms" in chat.render(full)) != bool(tools)
    # They are no reason to refuse a conversation.
    assert all(isinstance(count, int) for count in chat.counts([plain, full]))
    identified = Conversation((ASKED, CALLS, Message("tool", "two", tool_call_id=ID), ANSWER), [TOOL])
    if CALLED[family] and family != "mistral nemo":
        assert chat.left_out([identified]) == [["tool_call_id", *tools]]


def test_tools_that_are_a_part_of_the_system_s_message_are_put_there(family_chat):
    chat = family_chat("phi-4-mini")
    system = Message("system", "Be kind.")
    head = "Be kind.<|tool|>[{"
    assert chat.render(Conversation((system, ASKED), [TOOL])).startswith(f"<|system|>{head}")
    assert chat.render(Conversation((ASKED,), [TOOL])).startswith("<|system|><|tool|>[{")


def test_a_message_that_the_template_does_not_write_is_refused_with_its_number(family_chat):
    chat = family_chat("phi-3")
    talk = Conversation((ASKED, Message("assistant", "One moment."), RESULT, ANSWER))
    (reason,) = chat.counts([talk])
    assert "leaves out the content of message 3 (tool); remove the conversation" in reason


def test_a_name_that_is_written_for_one_role_only_is_still_missing_for_the_other(family_chat):
    chat = family_chat("qwen2.5")
    chat.tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + (m.name or '') * (m.role == 'user') + '\n' }}"
        "{{- m.content + '<|im_end|>' }}{% endfor %}"
    )
    asked, answered = Message("user", "Rooms?", name="Ann"), Message("assistant", "Two.", name="Bob")
    assert chat.left_out([Conversation((asked, ANSWER)), Conversation((ASKED, answered))]) == [[], ["name"]]
