"""A killed training resumes from its last complete checkpoint, with the result of an uninterrupted run."""

import json
from pathlib import Path

import pytest

from stages.core import files
from stages.core.paths import HISTORY, RUN, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY
from stages.dataset import conversations
from tests.conftest import set_params, talks, use_base
from tests.support.small import make_base

# 4 steps per epoch, 12 in total, with everything that draws random numbers.
KNOBS = {
    "epochs": 3,
    "batch_size": 4,
    "lr": 0.01,
    "dropout": 0.2,
    "adversarial__method": "freelb",
    "checkpoint__every": 3,
}


def outcome():
    weights = sorted(TUNED.glob("*.safetensors"))
    return [path.read_bytes() for path in (*weights, HISTORY, VALIDATION_HISTORY, TRAIN_METRICS)]


@pytest.fixture
def killed(observed):
    """killed(place, times) starts training in a process that kills itself there (see probes.py)."""

    def run(place, times):
        assert observed("kill", place, times) == ["the process ended with -9", {}]
        # As DVC does before it reruns the stage.
        for path in (HISTORY, VALIDATION_HISTORY):
            path.unlink(missing_ok=True)

    return run


@pytest.fixture(scope="module")
def uninterrupted():
    """A function that trains and returns the outcome, cached by parameters and splits."""
    known = {}

    def run(train, **knobs):
        key = repr(sorted(knobs.items()))
        if key in known:
            set_params(**knobs)
        else:
            assert train(**knobs) is None
            assert not list(Path(".state/training").iterdir()), "a finished training leaves no checkpoints and no lock"
            known[key] = outcome()
        return known[key]

    return run


def resumed_from():
    return json.loads(RUN.read_text())["resumed_from_step"]


def state():
    (folder,) = [path for path in Path(".state/training").iterdir() if path.is_dir()]
    return folder


@pytest.mark.parametrize(
    "place, times, step",
    [
        ("stages.backends.unsloth.training.trainer.Trainer.training_step", 2, 0),
        ("stages.backends.unsloth.training.trainer.Trainer.training_step", 8, 6),
        ("stages.backends.unsloth.training.checkpoints.seal", 3, 6),
        ("stages.backends.unsloth.training.callbacks.KeepBest._keep", 2, 6),
        ("stages.backends.unsloth.training.callbacks.KeepBest.on_train_end", 1, 12),
        ("stages.backends.unsloth.training.save.write", 1, 12),
    ],
)
def test_kill_9_at_any_point_does_not_change_the_result(train, killed, uninterrupted, place, times, step):
    expected = uninterrupted(train, **KNOBS)
    killed(place, times)
    assert train() is None
    assert outcome() == expected and resumed_from() == step


@pytest.mark.parametrize(
    "knobs",
    [
        {"method": "qlora"},
        {"method": "full", "dropout": 0.0, "lr": 0.003},
        {"lora__init_lora_weights": "pissa"},
        {"lora__target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_every_method_resumes_correctly(train, killed, uninterrupted, knobs):
    expected = uninterrupted(train, **{**KNOBS, **knobs})
    killed("stages.backends.unsloth.training.trainer.Trainer.training_step", 8)
    assert train() is None
    assert outcome() == expected and resumed_from() == 6


def spoil(checkpoint, how):
    weights = checkpoint / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    if how == "cut":
        content = content[:-100]
    elif how == "flipped bit":
        content[-50] ^= 1
    weights.write_bytes(content)
    if how == "no manifest":
        (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("how", ["cut", "flipped bit", "no manifest"])
def test_an_incomplete_checkpoint_falls_back_to_the_previous_one(train, killed, uninterrupted, how):
    expected = uninterrupted(train, **KNOBS)
    killed("stages.backends.unsloth.training.trainer.Trainer.training_step", 11)
    spoil(state() / "checkpoint-9", how)
    assert train() is None
    assert outcome() == expected and resumed_from() == 6


def other_data(tmp_path):
    conversations.write_jsonl(SPLITS["train"], talks(17)[1:])


def other_base(tmp_path):
    use_base(make_base(tmp_path / "other", "qwen2"))


def other_code(tmp_path):
    # As if a line of code had changed.
    (folder,) = [path for path in Path(".state/training").iterdir() if path.is_dir()]
    folder.rename(folder.with_name("0" * 16))


@pytest.mark.parametrize("change", [other_data, other_base, other_code, lambda _: set_params(lr=0.02)])
def test_a_different_training_never_resumes_from_it(train, killed, tmp_path, change):
    set_params(**KNOBS)
    killed("stages.backends.unsloth.training.trainer.Trainer.training_step", 8)
    change(tmp_path)
    assert train() is None
    assert resumed_from() == 0


def test_the_checkpoints_are_locked_until_they_are_deleted(observed):
    assert observed("lock", epochs=1) == [None, {"free": False}]


@pytest.fixture
def digest(splits, monkeypatch):
    """A function that returns the training's current fingerprint; the test may change the code."""
    from stages import params
    from stages.backends.unsloth.training import fingerprint

    places = [Path("code"), Path("alone.py")]
    for path in (places[0] / "some.py", places[1]):
        files.write_text(path, "1")
    monkeypatch.setattr(fingerprint, "_CODE", tuple(places))
    return lambda: fingerprint.fingerprint(params.load(), SPLITS["test"])


@pytest.mark.parametrize("path", ["code/some.py", "alone.py"])
def test_the_code_is_part_of_the_fingerprint(digest, path):
    before = digest()
    files.write_text(Path(path), "2")
    assert digest() != before


def test_the_reader_of_conversations_is_part_of_the_code():
    from stages.backends.unsloth.training import fingerprint

    assert Path(conversations.__file__) in fingerprint._CODE


@pytest.mark.parametrize("name", ["unsloth_zoo", "accelerate", "bitsandbytes", "torch"])
def test_versions_are_part_of_the_fingerprint(digest, monkeypatch, name):
    from stages.backends.unsloth.training import fingerprint

    before, real = digest(), fingerprint.installed
    monkeypatch.setattr(fingerprint, "installed", lambda package: "0" if package == name else real(package))
    assert digest() != before


@pytest.mark.parametrize(
    "knobs",
    [
        {"checkpoint__every": 7},
        {"evaluate__resamples": 100},
        {"export__formats": ["gguf"]},
        {"review__regressions": {}},
        {"validate__max_quarantined": 0.5},
    ],
)
def test_parameters_that_do_not_affect_training_keep_the_fingerprint(digest, knobs):
    before = digest()
    set_params(**knobs)
    assert digest() == before
    set_params(lr=0.02)
    assert digest() != before


def test_training_continues_if_a_checkpoint_cannot_be_written(observed, train, uninterrupted):
    """Simulates a full disk with a limit on file size: the optimizer's state is larger than the adapter."""
    limit = 150_000
    expected = uninterrupted(train, **KNOBS)
    assert len(expected[0]) < limit
    error, found = observed("small_disk", limit)
    assert error is None and "no checkpoint at step 3, continuing without it" in found["output"]
    assert outcome() == expected
