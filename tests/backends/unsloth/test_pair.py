"""The evaluate stage and chat on a small base, compared with plain transformers and peft."""

import json
from pathlib import Path

import pytest
import torch

from stages import backends, evaluate, params
from stages.backends.unsloth.inference import models as models_of_pair
from stages.backends.unsloth.reader import Chat
from stages.core import files
from stages.core.paths import MEASURES, PREDICTIONS, SPLIT_REPORT, SPLITS, TEST_LABELS, TRAIN_METRICS, TUNED
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from tests.conftest import set_params


def models(base):
    """The base, and a copy of it with the adapter in models/tuned."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain, under = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval() for _ in range(2))
    return {"base": plain, "tuned": PeftModel.from_pretrained(under, str(TUNED)).eval()}


@pytest.fixture
def tuned(splits, base, monkeypatch):
    """A project with a random adapter in models/tuned; returns both models, loaded with plain libraries.

    All in 32 bits: the likeliest tokens of random weights are closer to each other than 16 bits can tell.
    """
    monkeypatch.setattr(models_of_pair, "_DTYPE", torch.float32)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    adapter = LoraConfig(init_lora_weights=False, target_modules="all-linear", lora_alpha=256)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter).save_pretrained(TUNED)
    files.write_json(SPLIT_REPORT, {name: {"conversations": 4} for name in SPLITS})
    files.write_json(TRAIN_METRICS, {})
    files.write_json(TEST_LABELS, [])
    set_params(evaluate__max_new_tokens=6, evaluate__resamples=100, evaluate__epsilon=None)
    return models(base)


def generated(model, chat, prompt, limit):
    text = chat.render(Conversation(tuple(prompt)), answer_next=True)
    ids = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, do_sample=False, max_new_tokens=limit, pad_token_id=0, eos_token_id=2)
    return chat.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def loss(model, chat, talk):
    """Mean loss over the response's tokens, and their number."""
    example = chat.example(talk)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].float()
    labels = torch.tensor(example.labels[1:])
    learned = labels != -100
    return float(torch.nn.functional.cross_entropy(logits[learned], labels[learned])), int(learned.sum())


def test_the_metrics_of_both_models_equal_those_from_plain_libraries(tuned):
    evaluate.main()
    chat = Chat.load()
    lines = [json.loads(line) for line in PREDICTIONS.read_text().splitlines()]
    talks = list(conversations.read_jsonl(SPLITS["test"]))
    assert len(lines) == len(talks) == 4
    sums, tokens = {"base": 0.0, "tuned": 0.0}, 0
    for line, talk in zip(lines, talks, strict=True):
        for name, model in tuned.items():
            value, count = loss(model, chat, talk)
            assert (
                line["scores"][name]["loss"] == pytest.approx(value, rel=1e-4)
                and line["weights"][name]["loss"] == count
            )
            assert line[name] == generated(model, chat, talk.prompt, 6)
            sums[name] += value * count
        tokens += count
    found = json.loads(MEASURES.read_text())["test"]
    for name, total in sums.items():
        assert found[name]["loss"]["value"] == pytest.approx(total / tokens, rel=1e-4)
    # So that mixing them up would be noticed.
    assert abs(sums["base"] - sums["tuned"]) / tokens > 0.1


def test_chat_answers_with_the_requested_model(tuned):
    pair = backends.inference(params.load()).pair(params.load())
    chat, asked = Chat.load(), (Message("system", "Be kind."), Message("user", "Room 3?"))
    for name, model in tuned.items():
        words = []
        said = pair.say(asked, name == "tuned", 6, words.append)
        assert said == "".join(words).strip() == generated(model, chat, asked, 6)
    assert Path(TUNED / "adapter_config.json").exists()
    engine = "transformers, padded batches"
    assert pair.facts() == {"engine": engine, "precision": "float32", "device": "cpu"}
