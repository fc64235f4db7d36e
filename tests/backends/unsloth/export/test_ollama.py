"""Ollama's Modelfile, and the check that it matches the chat template."""

import json
import re

import pytest

from stages.backends.unsloth.export import ollama
from stages.backends.unsloth.reader import Chat
from stages.core.cli import UserError
from stages.core.paths import BASE, SPLITS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from tests.conftest import talks

# With a default system prompt, as many models have, and different text around each role.
WITH_HEAD = (
    "{% if messages[0].role != 'system' %}<|im_start|>sys\nBe nice.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ ' ' if m.role == 'system' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_text_around_each_role(base):
    found = ollama.Wrapping.of(Chat.load(BASE))
    end = "<|im_end|>\n"
    assert found == ollama.Wrapping(
        head="",
        system=("<|im_start|>system\n", end),
        user=("<|im_start|>user\n", end),
        assistant=("<|im_start|>assistant\n", end),
    )


def test_a_default_system_prompt_becomes_the_head(base):
    chat = Chat.load(BASE)
    chat.tokenizer.chat_template = WITH_HEAD
    found = ollama.Wrapping.of(chat)
    assert found.head == "<|im_start|>sys\nBe nice.<|im_end|>\n" and found.system == (
        "<|im_start|>system\n",
        " <|im_end|>\n",
    )
    asked = Message("user", "Hi")
    assert found.render([asked]) == f"{found.head}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert found.render([Message("system", "S"), asked]).startswith("<|im_start|>system\nS <|im_end|>\n")
    assert found.template() == (
        '{{ if ne (index .Messages 0).Role "system" }}{{ "<|im_start|>sys\\nBe nice.<|im_end|>\\n" }}{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "system" }}{{ "<|im_start|>system\\n" }}{{ .Content }}'
        '{{ " <|im_end|>\\n" }}{{ else }}{{ if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}'
        '{{ "<|im_end|>\\n" }}{{ else }}{{ if eq .Role "assistant" }}{{ "<|im_start|>assistant\\n" }}{{ .Content }}'
        '{{ "<|im_end|>\\n" }}{{ end }}{{ end }}{{ end }}{{ end }}{{ "<|im_start|>assistant\\n" }}'
    )


@pytest.mark.parametrize("system", ["Be kind.", None])
def test_the_modelfile_has_weights_template_stop_token_and_shared_system_prompt(base, tmp_path, system):
    SPLITS["train"].parent.mkdir(parents=True)
    shared = talks(3)
    if not system:
        shared[1] = Conversation((Message("system", "Be brief."), *shared[1].messages[1:]))
    conversations.write_jsonl(SPLITS["train"], shared)
    ollama.write(BASE, tmp_path / "Modelfile", "some.gguf")
    template = ollama.Wrapping.of(Chat.load(BASE)).template()
    expected = f'FROM ./some.gguf\nTEMPLATE """{template}"""\nPARAMETER stop "<|im_end|>"\n'
    assert (tmp_path / "Modelfile").read_text() == expected + ('SYSTEM """Be kind."""\n' if system else "")


def instructions(modelfile):
    """The instructions of a Modelfile, in which a text in triple quotes may have several lines."""
    found, open_text = [], None
    for line in re.split(r"[\r\n]", modelfile):
        if open_text is not None:
            open_text += f"\n{line}"
        elif line.strip():
            name, _, open_text = line.partition(" ")
            found.append(name)
        text = (open_text or "").strip()
        if not text.startswith('"""') or (len(text) >= 6 and text.endswith('"""')):
            open_text = None
    return found


@pytest.mark.parametrize(
    "system",
    [
        'Be kind.\n"""\nFROM evil\nADAPTER evil.gguf',
        'Be """ \rPARAMETER stop "x"',
        '"""\nFROM evil',
        'Say """hello""" and no more.',
        'Quote them with """',
    ],
)
def test_a_system_prompt_with_quotes_gives_no_instructions(base, tmp_path, system):
    SPLITS["train"].parent.mkdir(parents=True)
    shared = [Conversation((Message("system", system), *one.messages[1:])) for one in talks(3)]
    conversations.write_jsonl(SPLITS["train"], shared)
    ollama.write(BASE, tmp_path / "Modelfile", "some.gguf")
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    found = instructions(text)
    assert found[:3] == ["FROM", "TEMPLATE", "PARAMETER"] and found[3:] in ([], ["SYSTEM"])
    # The prompt is in the file, as it is or as a string of the template.
    assert system in text if found[3:] else json.dumps(f"<|im_start|>system\n{system}<|im_end|>\n") in text


TRIMS = "{{ m.content | trim }}"


@pytest.mark.parametrize("place, trusted", [(0, False), (19, False), (20, True)])
def test_the_template_is_compared_on_the_first_twenty_conversations(base, place, trusted):
    chat = Chat.load(BASE)
    chat.tokenizer.chat_template = WITH_HEAD.replace("{{ m.content }}", TRIMS)
    compared = talks(25)
    spaced = Message("user", " with white space ")
    compared[place] = Conversation((*compared[place].messages[:1], spaced, *compared[place].messages[2:]))
    if trusted:
        assert ollama._trusted(chat, compared) == ollama.Wrapping.of(chat)
    else:
        with pytest.raises(UserError, match="remove ollama"):
            ollama._trusted(chat, compared)


def test_a_begin_token_that_the_runtime_adds_is_omitted(base):
    from tokenizers.processors import TemplateProcessing

    chat = Chat.load(BASE)
    without = ollama.Wrapping.of(chat)
    begin = "<|im_start|>"
    assert ollama._begin(chat.tokenizer) == ""
    chat.tokenizer.bos_token = begin
    assert ollama._begin(chat.tokenizer) == "", "the tokenizer has a begin token but does not add it"
    chat.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, chat.tokenizer.bos_token_id)]
    )
    assert ollama._begin(chat.tokenizer) == begin
    chat.tokenizer.chat_template = f"{{{{ '{begin}' }}}}" + chat.tokenizer.chat_template
    found = ollama._trusted(chat, talks(3))
    assert (found.head, found.system, found.user, found.assistant) == (
        without.head,
        without.system,
        without.user,
        without.assistant,
    )
