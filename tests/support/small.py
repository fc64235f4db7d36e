"""A base model for tests: real architecture and template, random weights, one token per byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.families import SEEN, Family

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
# What a tiny model that also sees has beside its language model.
SEEING = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    **{f"{name}_token_index": number for number, name in enumerate(("boi", "eoi", "image"), 4)},
}


def make_base(folder: Path, kind: str = "llama") -> Path:
    """Two layers of Llama (or Qwen2, which has biases) and a byte tokenizer: a step takes milliseconds."""
    tokenizer = _byte_tokenizer(SPECIAL, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:2]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    _make_model(folder, kind, len(tokenizer), eos_token_id=2, pad_token_id=0, bos_token_id=None)
    return folder


def make_family(folder: Path, family: Family) -> Path:
    """A base of the family's own architecture, with its tokenizer."""
    tokenizer = make_tokenizer(folder, family)
    if family.kind == "gemma3":
        _make_processor(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    _make_model(folder, family.kind, len(tokenizer), bos_token_id=tokenizer.bos_token_id, **ids, **family.config)
    return folder


def _make_model(folder: Path, kind: str, vocabulary: int, **given: Any) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    if kind == "gemma3":
        # Its parts are configured apart.
        config = AutoConfig.for_model(kind, text_config={"vocab_size": vocabulary, **sizes, **given}, **SEEING)
        model = AutoModelForCausalLM.from_config(config)
        # Its first value is 0, with which no picture makes a difference.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
        model.save_pretrained(folder)
        return
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **{**sizes, **given})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _make_processor(folder: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    named = {f"{name}_token": token for name, token in zip(("boi", "eoi", "image"), SEEN, strict=True)}
    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=named)
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, image_seq_length=4)
    Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(folder)


def make_tokenizer(folder: Path, family: Family) -> Any:
    """A byte tokenizer with a family's template and special tokens."""
    named = {"eos_token": family.end, "bos_token": family.begin, "pad_token": family.pad}
    tokenizer = _byte_tokenizer(family.special, **{name: token for name, token in named.items() if token})
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_tokenizer(special: Sequence[str], **named: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)
