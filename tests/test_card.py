"""The model card that finetune leaves beside the tuned model, read with the Hub's own library."""

import json

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from transformers import AutoTokenizer

from stages import files
from stages.backends.unsloth import card
from stages.params import load
from stages.paths import BASE, SPLITS, TRAIN_METRICS, TUNED

from .conftest import set_params


def test_the_card_of_a_training_says_what_was_trained(train):
    assert train(epochs=2, lr=0.01, lora__r=4) is None
    # As the card says, prompts are written with the chat template of the tokenizer beside the model.
    assert AutoTokenizer.from_pretrained(TUNED).chat_template == AutoTokenizer.from_pretrained(BASE).chat_template
    found = ModelCard.load(TUNED / "README.md")
    head = metadata_load(TUNED / "README.md")
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-generation" and "base_model" not in head
    metrics = json.loads(TRAIN_METRICS.read_text())
    assert f"epoch {metrics['best_epoch']}, {metrics['validation_loss']} nats" in found.text
    assert "| `lr` | `0.01` |" in found.text and "| `lora.r` | `4` |" in found.text
    assert f"| `train` | 16 | `{files.sha256(SPLITS['train'])}` |" in found.text


@pytest.mark.parametrize("method, library", [("lora", "peft"), ("full", "transformers")])
def test_a_base_of_the_hub_is_linked_and_equal_runs_write_equal_bytes(splits, tmp_path, method, library):
    set_params(method=method, unsloth__model="owner/base-model", unsloth__revision="0" * 40)
    metrics = {"best_epoch": 1, "validation_loss": 0.5}
    cards = []
    for _ in range(2):
        card.write(tmp_path, load(), metrics, {"train": 16, "validation": 4}, adapter=method == "lora")
        cards.append((tmp_path / "README.md").read_bytes())
    one, two = cards
    head = metadata_load(tmp_path / "README.md")
    assert one == two and head["base_model"] == "owner/base-model" and head["library_name"] == library
    code = one.decode().split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
