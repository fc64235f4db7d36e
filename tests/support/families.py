"""Chat templates that write as those of model families do, in their own form, for the tokenizer of support/small.py.

Each has what distinguishes its family: how turns begin and end, where the system's text goes, what happens to earlier
turns, whether tools are shown, and in which form a call's arguments are wanted.
"""

from dataclasses import dataclass, field
from typing import Any

CHATML = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}{% for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Reasoning is kept only after the last question, and answers begin with an empty one where it is switched off.
QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}
{{- m.content + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

GEMMA2 = """\
{{- bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

GEMMA3 = """\
{{- bos_token }}{% set first = '' %}{% set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}{% endif %}
{%- for m in turns %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
{{- m.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# The system's text is left out without a word, as in older Mistrals.
MISTRAL = """\
{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

# A whole conversation ends with the end token, which is not how a response ends.
PHI3 = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

PHI4 = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

# The last answer ends otherwise than earlier ones.
GPT_OSS = """\
{%- for m in messages %}{% if m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Reasoning is on by default.
SMOLLM3 = """\
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- for m in messages %}{% if m.role == 'assistant' and not enable_thinking %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + m.content + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{% endif %}"""

OLMO2 = """\
{{- bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' if not loop.last }}{% endfor %}
{%- if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"""

GRANITE = """\
{%- for m in messages %}
{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

# A call's arguments are JSON already, and are put together with text.
DEEPSEEK = """\
{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '<|call|>' + call.function.name + '\\n' + call.function.arguments }}{% endfor %}
{{- eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"""


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
    "phi-3": Family(
        "phi3", PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>"
    ),
    "phi-4": Family("phi3", PHI4, ("<|im_start|>", "<|im_sep|>", "<|im_end|>"), "<|im_end|>"),
    "gpt-oss": Family(
        "gpt_oss",
        GPT_OSS,
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
        "<|return|>",
        None,
        "<|end|>",
    ),
    "smollm3": Family("smollm3", SMOLLM3, ("<|im_start|>", "<|im_end|>", "<pad>"), "<|im_end|>", None, "<pad>"),
    "olmo 2": Family("olmo2", OLMO2, ("<|endoftext|>", "<pad>"), "<|endoftext|>", "<|endoftext|>", "<pad>"),
    "granite": Family(
        "granite", GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "<|end_of_text|>"
    ),
    "deepseek": Family(
        "llama", DEEPSEEK, ("<|User|>", "<|Assistant|>", "<|call|>", "<|eos|>", "<|bos|>"), "<|eos|>", "<|bos|>"
    ),
}
