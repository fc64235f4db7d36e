"""Continuous batching of transformers, on the CPU with a small cache: the answers are those of plain generation."""

from types import SimpleNamespace

import pytest
import torch
from transformers import ContinuousBatchingConfig

from stages.backends.unsloth.common import device
from stages.backends.unsloth.inference import continuous, local
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from tests.backends.unsloth.test_inference import TALKS
from tests.backends.unsloth.test_inference_numbers import adapter

# As large as needed: by default the cache takes the machine's memory.
SMALL = ContinuousBatchingConfig(num_blocks=64, block_size=16, max_batch_tokens=64)


@pytest.fixture
def pair(base, tmp_path):
    adapter(base, tmp_path / "adapter", lora_alpha=256, target_modules="all-linear")
    found = LocalPair.load(base, tmp_path / "adapter", Chat.load(), batch_size=2)
    found.models.model.float()
    return found


@pytest.fixture
def on_the_cpu(monkeypatch):
    real = continuous.generated
    monkeypatch.setattr(continuous, "generated", lambda *given: real(*given, attention="sdpa", config=SMALL))


def test_answers_are_the_same_and_in_the_same_order(pair, on_the_cpu):
    expected = [pair.answers(TALKS, tuned, 8) for tuned in (False, True)]
    pair.engine = local._CONTINUOUS
    assert [pair.answers(TALKS, tuned, 8) for tuned in (False, True)] == expected
    assert expected[0] != expected[1] and pair.facts()["engine"] == "transformers, continuous batching"
    model = pair.models.model.get_base_model()
    assert "paged" not in model.config._attn_implementation, "the model computes likelihoods as before"


def test_where_it_fails_answers_come_in_padded_batches(pair, monkeypatch, capsys):
    expected = pair.answers(TALKS, True, 8)
    pair.engine = local._CONTINUOUS
    calls = []

    def fail(*given):
        calls.append(given)
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setattr(continuous, "generated", fail)
    assert pair.answers(TALKS, True, 8) == pair.answers(TALKS, True, 8) == expected
    assert len(calls) == 1 and pair.facts()["engine"] == "transformers, padded batches"
    assert "no continuous batching, so answers come in padded batches (no kernel)" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [{}, {"a": SimpleNamespace(error="out of cache", generated_tokens=[])}])
def test_missing_answers_are_no_answers(answers):
    model = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="sdpa"),
        set_attn_implementation=lambda name: None,
        generate_batch=lambda *_, **__: answers,
    )
    with pytest.raises(RuntimeError, match="out of cache|answers are missing"):
        continuous.generated(model, [[5]], None)


@pytest.mark.parametrize(
    "kind, flash, places, expected",
    [
        ("cuda", True, {"": 0}, True),
        ("cuda", True, None, True),
        ("cuda", True, {"a": 0, "b": "cpu"}, False),
        ("cuda", False, {"": 0}, False),
        ("cpu", True, None, False),
    ],
)
def test_it_needs_flash_attention_and_one_gpu(monkeypatch, kind, flash, places, expected):
    monkeypatch.setattr(device, "kind", lambda: kind)
    monkeypatch.setattr(continuous, "is_flash_attn_2_available", lambda: flash)
    model = SimpleNamespace(hf_device_map=places) if places else torch.nn.Linear(1, 1)
    assert continuous.applies(model) is expected
