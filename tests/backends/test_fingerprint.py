"""Equal fingerprints mean identical training, local or hosted, so every input is changed on its own."""

import contextlib
import copy
import dataclasses
import functools
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from stages.backends.openai.base import client
from stages.backends.openai.training import jobs
from stages.backends.unsloth.training import fingerprint
from stages.core import files
from stages.core.paths import BASE, SPLITS
from stages.params import Params, read_yaml
from stages.params.kinds import Section
from tests.conftest import ROOT
from tests.pipeline.test_dependencies import UNWATCHED, computes, imported, name
from tests.support.recorder import leaves

SHIPPED = read_yaml(ROOT / "params.yaml")
RECORD = BASE / "base.json"

# For each backend, every parameter is in one of two tables; a new one must be added to the right one.
DECIDES = {
    "unsloth": {
        "backend", "seed", "lr", "epochs", "early_stopping_patience", "batch_size", "dropout", "attention_dropout",
        "weight_decay", "scheduler", "warmup_ratio", "label_smoothing_factor", "optim", "max_grad_norm",
        "gradient_checkpointing", "packing", "method", "schedule.num_cycles", "schedule.power", "schedule.decay_ratio",
        "lora.r", "lora.alpha", "lora.target_modules", "lora.bias", "lora.use_rslora", "lora.init_lora_weights",
        "lora.layers_to_transform", "lora.loraplus_lr_ratio", "layers.lr_decay", "layers.lr", "adversarial.method",
        "adversarial.epsilon", "adversarial.steps", "adversarial.step_size", "unsloth.model", "unsloth.revision",
        "unsloth.max_length", "unsloth.overlong", "unsloth.enable_thinking",
    },
    "openai": {
        "seed", "epochs", "batch_size", "openai.model", "openai.base_url", "openai.learning_rate_multiplier",
        "openai.hyperparameters", "openai.extra_body", "openai.suffix", "openai.attempt",
    },
}  # fmt: skip
# Where the data comes from (the splits' content counts), and what happens to a trained model.
BEFORE_AND_AFTER = {
    "data.source", "data.max_mb", "data.sources", "validate.on_error", "validate.max_quarantined", "split.validation",
    "split.test", "evaluate.batch_size", "evaluate.max_new_tokens", "evaluate.resamples", "evaluate.confidence",
    "evaluate.epsilon", "evaluate.baselines", "evaluate.max_cost_usd", "verdict.retention",
    "export.formats", "export.gguf_type", "review.regressions",
}  # fmt: skip
# How a hosted model is asked, and what that costs.
NAMES_AND_PRICES = {
    "openai.chat_model", "openai.base_chat_model", "openai.prices.training", "openai.prices.base_input",
    "openai.prices.base_output", "openai.prices.tuned_input", "openai.prices.tuned_output",
}  # fmt: skip
DECIDES_NOT = {
    "unsloth": BEFORE_AND_AFTER | {
        # How often it is checkpointed.
        "checkpoint.every",
        # The other backend's.
        "openai.model", "openai.base_url", "openai.learning_rate_multiplier", "openai.suffix", "openai.checkpoint",
        "openai.attempt", "openai.max_cost_usd", "openai.timeout", "openai.poll_seconds", "openai.hyperparameters",
        "openai.extra_body", *NAMES_AND_PRICES,
    },
    "openai": BEFORE_AND_AFTER | {
        # Which checkpoint is used, the price limit, and how long to wait.
        "openai.checkpoint", "openai.max_cost_usd", "openai.timeout", "openai.poll_seconds", *NAMES_AND_PRICES,
        # Not supported by the service; the other backend has its own fingerprint.
        *(DECIDES["unsloth"] - {"seed", "epochs", "batch_size"}), "checkpoint.every",
    },
}  # fmt: skip
KNOBS = [(backend, knob) for backend in DECIDES for knob in leaves(Params)]

LIBRARIES = ["unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes"]
TRAINING = {name(path) for path in imported(ROOT / "stages/backends/unsloth/training/__init__.py", "unsloth")}
CODE = {path for path in TRAINING - UNWATCHED if computes(ROOT / path)}


@pytest.fixture
def digest(project, monkeypatch):
    """digest(backend, knobs) returns the fingerprint of a training, by default with the shipped parameters."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for path in (*SPLITS.values(), RECORD):
        files.write_text(path, f"{path}\n")

    def run(backend, knobs=None):
        knobs = knobs or shipped(backend)
        if backend == "openai":
            return jobs.Order.make(client.endpoint(knobs), knobs).fingerprint
        return fingerprint.fingerprint(knobs, RECORD)

    return run


def shipped(backend, /, **changed):
    """The shipped parameters with this backend and these changes; lora__r is the key r in section lora."""
    values = copy.deepcopy(SHIPPED)
    for knob, value in {"backend": backend, **changed}.items():
        *sections, last = knob.split("__")
        functools.reduce(dict.__getitem__, sections, values)[last] = value
    return Params.model_validate(values)


def another(backend, knob):
    """The shipped parameters, except one with another value."""
    for value in candidates():
        with contextlib.suppress(ValidationError):
            knobs = shipped(backend, **{knob.replace(".", "__"): value})
            if knobs != shipped(backend):
                return knobs
    raise AssertionError(f"no candidate is another valid value of {knob}: add one")


def candidates():
    yield from (True, False, 1, 2, 3, 200, 0.5, 0.25, "https://example.org/v1", "hotel", *options(Params))
    yield from (["q_proj"], ["gguf"], ["nearest"], [0], {"mlp": 0.5}, {"loss": 0.5})
    yield {"sample": {"url": "x", "sha256": None, "format": "messages"}}


def options(kind):
    """All strings that any parameter allows."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return [word for field in kind.model_fields.values() for word in options(field.annotation)]
    parts = get_args(kind)
    return [kind] if isinstance(kind, str) else [word for part in parts for word in options(part)]


@pytest.mark.parametrize("backend", DECIDES)
def test_every_parameter_is_classified_as_part_of_the_fingerprint_or_not(backend):
    assert sorted([*DECIDES[backend], *DECIDES_NOT[backend]]) == sorted(leaves(Params))


@pytest.mark.parametrize("backend, knob", [(one, knob) for one, knob in KNOBS if knob in DECIDES[one]])
def test_a_parameter_that_determines_the_result_changes_the_fingerprint(digest, backend, knob):
    assert digest(backend, another(backend, knob)) != digest(backend)


@pytest.mark.parametrize("backend, knob", [(one, knob) for one, knob in KNOBS if knob in DECIDES_NOT[one]])
def test_a_parameter_that_does_not_affect_the_result_keeps_the_fingerprint(digest, backend, knob):
    assert digest(backend, another(backend, knob)) == digest(backend)


@pytest.mark.parametrize("backend", DECIDES)
@pytest.mark.parametrize("split, decides", [("train", True), ("validation", True), ("test", False)])
def test_only_the_splits_used_in_training_are_part_of_the_fingerprint(digest, backend, split, decides):
    before = digest(backend)
    files.write_text(SPLITS[split], "other\n")
    assert (digest(backend) != before) == decides


@pytest.mark.parametrize("backend", DECIDES)
def test_swapping_train_and_validation_changes_the_fingerprint(digest, backend):
    before = digest(backend)
    train, validation = (SPLITS[name].read_text() for name in ("train", "validation"))
    files.write_text(SPLITS["train"], validation)
    files.write_text(SPLITS["validation"], train)
    assert digest(backend) != before


def test_the_base_is_part_of_the_fingerprint(digest):
    before = digest("unsloth")
    files.write_text(RECORD, "other\n")
    assert digest("unsloth") != before


@pytest.fixture
def with_code(monkeypatch):
    """with_code(path, edit) makes a file of the project appear as edited by `edit`."""
    real = Path.read_text

    def run(path, edit):
        def read(file, *given, **named):
            text = real(file, *given, **named)
            return edit(text) if file == ROOT / path else text

        monkeypatch.setattr(Path, "read_text", read)

    return run


@pytest.mark.parametrize("path", sorted(CODE))
def test_each_module_of_training_is_part_of_the_fingerprint(digest, with_code, path):
    before = digest("unsloth")
    with_code(path, lambda text: f"{text}\nOTHER = 1\n")
    assert digest("unsloth") != before


@pytest.mark.parametrize("path", sorted(CODE))
def test_a_comment_is_not_part_of_the_fingerprint(digest, with_code, path):
    before = digest("unsloth")
    with_code(path, lambda text: f"{text}\n# Another comment.\n")
    assert digest("unsloth") == before


@pytest.mark.parametrize("path", [*sorted(UNWATCHED), "stages/backends/openai/training/jobs.py", "stages/report.py"])
def test_code_that_cannot_change_the_weights_is_not_part_of_the_fingerprint(digest, with_code, path):
    before = digest("unsloth")
    with_code(path, lambda text: f"{text}\nOTHER = 1\n")
    assert digest("unsloth") == before


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_version_of_each_library_is_part_of_the_fingerprint(digest, monkeypatch, name):
    before, real = digest("unsloth"), fingerprint.installed
    monkeypatch.setattr(fingerprint, "installed", lambda package: "0" if package == name else real(package))
    assert digest("unsloth") != before


def test_the_device_is_part_of_the_fingerprint(digest, monkeypatch):
    found = [digest("unsloth")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpu in ("one GPU", "another GPU"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu=gpu: gpu)
        found.append(digest("unsloth"))
    assert len(set(found)) == 3


def test_the_endpoint_in_the_environment_is_part_of_the_hosted_fingerprint(digest, monkeypatch):
    before = digest("openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://example.org/v1")
    assert digest("openai") != before


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(jobs.Order)])
def test_everything_in_an_order_is_part_of_the_hosted_fingerprint(digest, name):
    knobs = shipped("openai")
    order = jobs.Order.make(client.endpoint(knobs), knobs)
    assert dataclasses.replace(order, **{name: "other"}).fingerprint != order.fingerprint


@pytest.mark.parametrize("backend", DECIDES)
def test_the_same_training_has_the_same_fingerprint(digest, backend):
    assert digest(backend) == digest(backend)
