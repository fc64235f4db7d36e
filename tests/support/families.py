"""Chat templates that write as those of model families do, in their own form, for the tokenizer of support/small.py.

Each has what distinguishes its family: how turns begin and end, where the system's text goes, what happens to earlier
turns, whether tools are shown, and in which form a call's arguments are wanted.
"""

from dataclasses import dataclass, field
from typing import Any

from stages.backends.unsloth.reader import IGNORED, Chat, Example

# Calls are written as JSON in tags of their own, and their results are the user's.
CHATML = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' or m.role == 'assistant' %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# The day's date is written; tools are in the first question; results are JSON, once more where they are text.
LLAMA3 = """\
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{ 'Environment: ipython\\n' }}{% endif %}
{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}
{%- if messages[0].role == 'system' %}
{{- messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + m.tool_calls[0].function.name + '", ' }}
{{- '"parameters": ' + m.tool_calls[0].function.arguments | tojson + '}<|eot_id|>' }}
{%- elif m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if tools and loop.first %}{% for tool in tools %}{{ tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}{% endif %}
{{- m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Reasoning is kept only after the last question, and answers begin with an empty one where it is switched off.
QWEN3 = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools><|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{% set said = m.content %}{% set thought = '' %}
{%- if m.role == 'assistant' and '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + said + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ said }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

# No system role and no tools; roles have to alternate.
GEMMA2 = """\
{{- bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

GEMMA3 = """\
{{- bos_token }}{% set first = '' %}{% set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}{% endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
{{- m.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# The system's text is left out without a word, as in older Mistrals.
MISTRAL = """\
{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

# Tools and the system's text are in the last question; ids have nine letters and digits.
MISTRAL_NEMO = """\
{%- set system = '' %}{% set turns = messages %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in turns %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}{% for m in turns %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == ns.last %}{{ '[AVAILABLE_TOOLS][' }}
{%- for tool in tools %}{{ tool | tojson }}{{ ', ' if not loop.last }}{% endfor %}{{ '][/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + (system + '\\n\\n' if system and loop.last else '') + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids of calls have length 9') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}{% endfor %}
{%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}' }}
{{- '[/TOOL_RESULTS]' }}{% endif %}{% endfor %}"""

# A whole conversation ends with the end token, which is not how a response ends.
PHI3 = """\
{%- for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}
{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

PHI4 = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

# Tools are a part of the system's message.
PHI4_MINI = """\
{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}
{%- if m.role == 'system' and m.tools %}{{ '<|tool|>' + m.tools + '<|/tool|>' }}{% endif %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

# Answers are in a channel of their own, and the last one ends otherwise than earlier ones. The date is written.
GPT_OSS = """\
{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}
{%- set turns = messages %}{% set system = '' %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% endif %}
{%- if system or tools %}{{ '<|start|>developer<|message|># Instructions\\n\\n' + system }}
{%- for tool in tools or [] %}{{ '\\ntype ' + tool.function.name + ' = (_: any) => any;' }}{% endfor %}
{{- '<|end|>' }}{% endif %}
{%- set ns = namespace(called='') %}
{%- for m in turns %}{% if m.tool_calls %}{% set ns.called = m.tool_calls[0].function.name %}
{{- '<|start|>assistant to=functions.' + ns.called + '<|channel|>commentary json<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- elif m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}
{%- elif m.role == 'tool' %}
{{- '<|start|>functions.' + ns.called + ' to=assistant<|channel|>commentary<|message|>' + m.content | tojson }}
{{- '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Reasoning is on by default, and calls are text of the answer's.
SMOLLM3 = """\
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{{- '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') }}
{%- if messages[0].role == 'system' %}{{ '\\n' + messages[0].content }}{% endif %}
{%- for tool in tools or [] %}{{ '\\n<tool>' + tool | string + '</tool>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}
{%- if not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{{ m.content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{% endif %}"""

OLMO2 = """\
{{- bos_token }}{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}
{{- '<|' + m.role + '|>\\n' + m.content }}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' if not loop.last }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"""

# Tools have a turn of their own. Calls are text of the answer's.
GRANITE = """\
{%- set turns = messages %}{% set system = 'Date: ' + strftime_now('%B %d, %Y') %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}
{{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' }}{% endif %}
{%- for m in turns %}
{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

# A call's arguments are JSON already and are put together with text, and a message that calls has no content.
DEEPSEEK = """\
{{- bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' and m.content is none %}
{%- for call in m.tool_calls %}
{{- '<|Assistant|><|call|>' + call.function.name + '\\n' + call.function.arguments + eos_token }}{% endfor %}
{%- elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}
{%- elif m.role == 'tool' %}{{ '<|output|>' + m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"""

# Each answer begins with a reasoning, of which nothing is left in what was answered.
DEEPSEEK_R1 = DEEPSEEK.replace("{{ '<|Assistant|>' }}{% endif %}", "{{ '<|Assistant|><think>\\n' }}{% endif %}")


@dataclass(frozen=True)
class Family:
    """A template, its special tokens, the tokens that begin, end and pad a text, and the architecture."""

    kind: str
    template: str
    special: tuple[str, ...]
    end: str
    begin: str | None = None
    pad: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


# What begins and ends a picture, and what takes its place in a text.
SEEN = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TURNS = ("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>")
_DEEPSEEK = ("<|User|>", "<|Assistant|>", "<|call|>", "<|output|>", "<|eos|>", "<|bos|>")
FAMILIES = {
    "llama 3.1": Family("llama", LLAMA3, _HEADERS, "<|eot_id|>", "<|begin_of_text|>"),
    "llama 3.2 with pad": Family("llama", LLAMA3, (*_HEADERS, "<pad>"), "<|eot_id|>", "<|begin_of_text|>", "<pad>"),
    "qwen2.5": Family("qwen2", CHATML, _CHATML, "<|im_end|>", None, "<|endoftext|>"),
    "qwen3": Family("qwen3", QWEN3, _CHATML, "<|im_end|>", None, "<|endoftext|>"),
    "qwen3-moe": Family(
        "qwen3_moe",
        QWEN3,
        _CHATML,
        "<|im_end|>",
        None,
        "<|endoftext|>",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "gemma 2": Family("gemma2", GEMMA2, (*_TURNS, "<pad>"), "<eos>", "<bos>", "<pad>"),
    "gemma 3": Family("gemma3_text", GEMMA3, (*_TURNS, "<pad>"), "<eos>", "<bos>", "<pad>"),
    "gemma 3 vision": Family("gemma3", GEMMA3, (*_TURNS, *SEEN, "<pad>"), "<eos>", "<bos>", "<pad>"),
    "mistral": Family("mistral", MISTRAL, ("<s>", "</s>"), "</s>", "<s>"),
    "mistral nemo": Family(
        "mistral",
        MISTRAL_NEMO,
        ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
        + ("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<pad>"),
        "</s>",
        "<s>",
        "<pad>",
    ),
    "phi-3": Family(
        "phi3", PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>"
    ),
    "phi-4": Family("phi3", PHI4, ("<|im_start|>", "<|im_sep|>", "<|im_end|>"), "<|im_end|>"),
    "phi-4-mini": Family(
        "phi3",
        PHI4_MINI,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "gpt-oss": Family(
        "gpt_oss",
        GPT_OSS,
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
        "<|return|>",
        None,
        "<|end|>",
    ),
    "smollm3": Family("smollm3", SMOLLM3, ("<|im_start|>", "<|im_end|>", "<pad>"), "<|im_end|>", None, "<pad>"),
    "olmo 2": Family("olmo2", OLMO2, ("<|endoftext|>", "<pad>"), "<|endoftext|>", "<|endoftext|>", "<pad>"),
    "granite": Family(
        "granite", GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "<|end_of_text|>"
    ),
    "deepseek": Family("llama", DEEPSEEK, _DEEPSEEK, "<|eos|>", "<|bos|>"),
    "deepseek r1 distilled": Family("qwen2", DEEPSEEK_R1, _DEEPSEEK, "<|eos|>", "<|bos|>"),
}


def learned(chat: Chat, example: Example) -> str:
    """The text of the tokens that an example teaches."""
    return str(chat.tokenizer.decode([label for label in example.labels if label != IGNORED]))
