"""Equal fingerprints mean the same training, on this machine or hosted; so each input is changed alone, all of them."""

import contextlib
import copy
import dataclasses
import functools
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from stages import files
from stages.backends.openai import client, jobs
from stages.backends.unsloth import fingerprint
from stages.params import Params, Section, read_yaml
from stages.paths import BASE, SPLITS

from .conftest import ROOT
from .recorder import leaves
from .test_check import imported

SHIPPED = read_yaml(ROOT / "params.yaml")
RECORD = BASE / "base.json"

# Each knob stands in one of the two tables of each backend: a new one must be put where it belongs.
DECIDES = {
    "unsloth": {
        "backend", "seed", "lr", "epochs", "early_stopping_patience", "batch_size", "dropout", "attention_dropout",
        "weight_decay", "scheduler", "warmup_ratio", "label_smoothing_factor", "optim", "max_grad_norm",
        "gradient_checkpointing", "packing", "method", "schedule.num_cycles", "schedule.power", "schedule.decay_ratio",
        "lora.r", "lora.alpha", "lora.target_modules", "lora.bias", "lora.use_rslora", "lora.init_lora_weights",
        "lora.layers_to_transform", "lora.loraplus_lr_ratio", "layers.lr_decay", "layers.lr", "adversarial.method",
        "adversarial.epsilon", "adversarial.steps", "adversarial.step_size", "unsloth.model", "unsloth.revision",
        "unsloth.max_length", "unsloth.overlong",
    },
    "openai": {
        "seed", "epochs", "batch_size", "openai.model", "openai.base_url", "openai.learning_rate_multiplier",
        "openai.suffix", "openai.attempt",
    },
}  # fmt: skip
# What brings the data in (the splits' content counts), and what is done with a trained model.
BEFORE_AND_AFTER = {
    "data.source", "data.max_mb", "data.sources", "validate.on_error", "validate.max_quarantined", "split.validation",
    "split.test", "evaluate.batch_size", "evaluate.max_new_tokens", "evaluate.resamples", "evaluate.confidence",
    "evaluate.epsilon", "export.formats", "export.gguf_type", "review.regressions",
}  # fmt: skip
DECIDES_NOT = {
    "unsloth": BEFORE_AND_AFTER | {
        # How often it is saved.
        "checkpoint.every",
        # The other backend's.
        "openai.model", "openai.base_url", "openai.learning_rate_multiplier", "openai.suffix", "openai.checkpoint",
        "openai.attempt", "openai.max_cost_usd", "openai.timeout", "openai.poll_seconds",
    },
    "openai": BEFORE_AND_AFTER | {
        # Which of the job's models is taken, when it may not begin, and how it is waited for.
        "openai.checkpoint", "openai.max_cost_usd", "openai.timeout", "openai.poll_seconds",
        # What the service does not have; the other backend has a fingerprint of its own.
        *(DECIDES["unsloth"] - {"seed", "epochs", "batch_size"}), "checkpoint.every",
    },
}  # fmt: skip
KNOBS = [(backend, knob) for backend in DECIDES for knob in leaves(Params)]

LIBRARIES = ["unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes"]
# Modules that training imports and that decide no weight: they write, lock, name, report, or read what is part of the
# fingerprint by its value.
HELPERS = {
    f"stages/{name}.py"
    for name in ("backends/__init__", "command", "files", "flat", "locking", "measures", "packages", "params", "paths")
}
CODE = {
    path
    for folder in ("stages/backends/unsloth", "stages/training")
    for module in (ROOT / folder).glob("*.py")
    for path in imported(module.relative_to(ROOT), set())
}


@pytest.fixture
def digest(project, monkeypatch):
    """digest(backend, knobs) gives the fingerprint of a training, by default with the shipped knobs."""
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
    """The shipped knobs with this backend, and others changed that are named like lora__r."""
    values = copy.deepcopy(SHIPPED)
    for knob, value in {"backend": backend, **changed}.items():
        *sections, last = knob.split("__")
        functools.reduce(dict.__getitem__, sections, values)[last] = value
    return Params.model_validate(values)


def another(backend, knob):
    """The shipped knobs, but that one has another value."""
    for value in candidates():
        with contextlib.suppress(ValidationError):
            knobs = shipped(backend, **{knob.replace(".", "__"): value})
            if knobs != shipped(backend):
                return knobs
    raise AssertionError(f"no candidate is another valid value of {knob}: add one")


def candidates():
    yield from (True, False, 1, 2, 3, 200, 0.5, 0.25, "https://example.org/v1", "hotel", *options(Params))
    yield from (["q_proj"], ["gguf"], [0], {"mlp": 0.5}, {"loss": 0.5})
    yield {"sample": {"url": "x", "sha256": None, "format": "messages"}}


def options(kind):
    """All words that some knob allows."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return [word for field in kind.model_fields.values() for word in options(field.annotation)]
    parts = get_args(kind)
    return [kind] if isinstance(kind, str) else [word for part in parts for word in options(part)]


@pytest.mark.parametrize("backend", DECIDES)
def test_every_knob_is_known_to_decide_a_training_or_not(backend):
    assert sorted([*DECIDES[backend], *DECIDES_NOT[backend]]) == sorted(leaves(Params))


@pytest.mark.parametrize("backend, knob", [(one, knob) for one, knob in KNOBS if knob in DECIDES[one]])
def test_a_knob_that_decides_the_training_changes_the_fingerprint(digest, backend, knob):
    assert digest(backend, another(backend, knob)) != digest(backend)


@pytest.mark.parametrize("backend, knob", [(one, knob) for one, knob in KNOBS if knob in DECIDES_NOT[one]])
def test_a_knob_that_does_not_decide_the_training_keeps_the_fingerprint(digest, backend, knob):
    assert digest(backend, another(backend, knob)) == digest(backend)


@pytest.mark.parametrize("backend", DECIDES)
@pytest.mark.parametrize("split, decides", [("train", True), ("validation", True), ("test", False)])
def test_the_splits_that_training_sees_are_part_of_the_fingerprint(digest, backend, split, decides):
    before = digest(backend)
    files.write_text(SPLITS[split], "other\n")
    assert (digest(backend) != before) == decides


@pytest.mark.parametrize("backend", DECIDES)
def test_train_and_validation_are_not_confused(digest, backend):
    before = digest(backend)
    train, validation = (SPLITS[name].read_text() for name in ("train", "validation"))
    files.write_text(SPLITS["train"], validation)
    files.write_text(SPLITS["validation"], train)
    assert digest(backend) != before


def test_the_base_is_part_of_the_fingerprint(digest):
    before = digest("unsloth")
    files.write_text(RECORD, "other\n")
    assert digest("unsloth") != before


@pytest.mark.parametrize("path", sorted(CODE - HELPERS))
def test_each_module_of_training_is_part_of_the_fingerprint(digest, monkeypatch, path):
    before, real = digest("unsloth"), files.sha256
    monkeypatch.setattr(files, "sha256", lambda file: "0" * 64 if file == ROOT / path else real(file))
    assert digest("unsloth") != before


@pytest.mark.parametrize("path", [*sorted(HELPERS), "stages/backends/openai/jobs.py", "stages/report.py"])
def test_code_that_decides_no_weight_is_no_part_of_the_fingerprint(digest, monkeypatch, path):
    before, real = digest("unsloth"), files.sha256
    monkeypatch.setattr(files, "sha256", lambda file: "0" * 64 if file == ROOT / path else real(file))
    assert digest("unsloth") == before


def test_training_imports_each_module_that_is_said_to_decide_no_weight():
    assert HELPERS <= CODE


@pytest.mark.parametrize("name", LIBRARIES)
def test_each_library_s_version_is_part_of_the_fingerprint(digest, monkeypatch, name):
    before, real = digest("unsloth"), fingerprint.installed
    monkeypatch.setattr(fingerprint, "installed", lambda package: "0" if package == name else real(package))
    assert digest("unsloth") != before


def test_the_device_is_part_of_the_fingerprint(digest, monkeypatch):
    found = [digest("unsloth")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("one GPU", "another GPU"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
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
