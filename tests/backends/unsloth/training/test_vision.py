"""Models that also see, trained on text: only the language model is trained, and the rest is kept as it is."""

import json

import pytest
import torch

from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.export import merged
from stages.backends.unsloth.reader import Chat
from stages.backends.unsloth.training.weight_change import Weights
from stages.core.paths import RUN, TUNED, WEIGHTS
from tests.conftest import use_base
from tests.support.families import FAMILIES
from tests.support.small import make_family
from tests.support.trainings import rows

pytestmark = pytest.mark.slow
LANGUAGE = "base_model.model.model.language_model.layers."


@pytest.fixture
def seeing(splits, tmp_path):
    use_base(make_family(tmp_path / "seeing", FAMILIES["gemma 3 vision"]))


@pytest.mark.parametrize("modules", ["all-linear", "mlp", "attention", ["q_proj", "up_proj"], r".*\.[qv]_proj"])
def test_adapters_are_those_of_the_language_model_and_all_of_them_are_compared(seeing, train, modules):
    assert train(lora__target_modules=modules, lr=0.01, epochs=1) is None
    tensors = list(Weights(TUNED))
    assert tensors and all(name.startswith(LANGUAGE) for name in tensors)
    moved = rows(WEIGHTS)
    assert len(moved) == len(tensors) / 2 and all(float(row["change"]) > 0 for row in moved)


def test_a_module_that_only_sees_cannot_be_trained_on_text(seeing, train):
    assert "no module 'fc1'" in train(lora__target_modules=["fc1"], epochs=1)


def test_full_training_leaves_what_sees_unchanged_and_out_of_the_counts(seeing, train):
    assert train(method="full", lr=0.003, epochs=1) is None
    before, after = Weights(weights_folder()), Weights(TUNED)
    assert set(before) == set(after)
    seeing = [name for name in before if "language_model" not in name]
    # The base is written in the number format that it came in.
    assert seeing and all(torch.equal(before[name], after[name]) for name in seeing)
    of_text = [name for name in before if name not in seeing]
    assert len(rows(WEIGHTS)) == len(of_text)
    assert json.loads(RUN.read_text())["trainable_parameters"] == sum(before[name].numel() for name in of_text)


def test_the_merged_model_still_sees(seeing, train, tmp_path):
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert train(lr=0.01, epochs=1) is None
    merged.write(tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    asked = [{"role": "user", "content": "<start_of_image>What is this?"}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    picture = Image.new("RGB", (28, 28), "red")
    inputs = processor(text=text, images=[picture], add_special_tokens=False, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        red = model(**inputs).logits[0, -1]
        inputs["pixel_values"] = -inputs["pixel_values"]
        assert not torch.equal(model(**inputs).logits[0, -1], red)


def test_the_context_is_that_of_the_language_model(seeing):
    assert Chat.load().context == 2048
