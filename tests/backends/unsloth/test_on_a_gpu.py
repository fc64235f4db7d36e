"""What only a GPU can show: Unsloth's kernels, 4 and 8 bit, fp16, and running out of its memory.

`make gpu-check` runs them in a process of their own, which imports Unsloth first, as the stage does.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages import params
from stages.backends.unsloth.common import device
from stages.backends.unsloth.reader import IGNORED, Chat, Example
from stages.core.cli import UserError
from tests.backends.unsloth.training.test_prefix_tree import batch_of
from tests.conftest import ROOT, set_params, use_base
from tests.support.small import SPECIAL, TEMPLATE

if device.kind() == "cpu":
    REASON = "no GPU that torch can use"
else:
    REASON = (
        "" if os.environ.get("GPU_CHECK") else "run by make gpu-check, since importing Unsloth changes transformers"
    )
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]
# Heads as large as kernels expect.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
SMALL = {
    "epochs": 2,
    "batch_size": 4,
    "lr": 0.01,
    "dropout": 0.0,
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "scheduler": "constant",
    "unsloth__max_length": 2048,
    "lora__r": 8,
    "lora__alpha": 16,
    "lora__target_modules": "all-linear",
    "lora__layers_to_transform": None,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base of each kind, by name; Unsloth is imported first."""
    from stages.backends.unsloth.training import model
    from tests.support import small

    model.start()
    found = {}
    for kind in ("llama", "qwen3", "mistral"):
        found[kind] = tmp_path_factory.mktemp(kind)
        tokenizer = small._byte_tokenizer(SPECIAL, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:2]})
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(found[kind])
        ids = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
        small._make_model(found[kind], kind, len(tokenizer), **SIZES, **ids)
    return found


@pytest.fixture
def loaded(project, folders):
    """loaded(kind, **knobs): the model as `finetune` loads it, and the parameters."""

    def load(kind="llama", **values):
        from stages.backends.unsloth.training import model

        use_base(folders[kind])
        set_params(**{**SMALL, **values})
        knobs = params.load()
        model.refuse_impossible(knobs)
        return model.load(folders[kind], knobs), knobs

    return load


@pytest.fixture
def trained(loaded, capsys):
    """trained(kind, train, **knobs): a training's result, its history, and what it said."""

    def train(kind="llama", examples=None, kept="kept", **values):
        from stages.backends.unsloth.training import run

        held, knobs = loaded(kind, **values)
        examples = batch_of(200, count=12) if examples is None else examples
        history = []
        Path(kept).mkdir(exist_ok=True)
        result = run.train(held, examples, examples[:4], knobs, history.append, Path(kept).resolve())
        return SimpleNamespace(result=result, history=history, said=capsys.readouterr().out, held=held)

    return train


def losses(done, kind="train_loss"):
    return [row[kind] for row in done.history if kind in row]


def reference(base, adapter, examples):
    """Mean loss and gradients from plain transformers, in a process without Unsloth."""
    pairs, out = Path("examples.json").resolve(), Path("reference.pt").resolve()
    pairs.write_text(json.dumps([[one.input_ids, one.labels] for one in examples]))
    command = [sys.executable, "-m", "tests.support.gpu_reference", str(base), str(adapter), str(pairs), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


def randomized(model, folder):
    """Give the adapter an effect, and write it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape) * 0.05)
    model.save_pretrained(folder, save_embedding_layers=False)


@pytest.mark.parametrize(
    "kind, checkpointing", [("llama", False), ("llama", True), ("qwen3", False), ("mistral", True)]
)
def test_loss_and_gradient_of_each_form_equal_those_of_plain_transformers(
    loaded, folders, tmp_path, kind, checkpointing
):
    from stages.backends.unsloth.training.micro_batches import PADDED
    from tests.support import plain

    held, knobs = loaded(kind, batch_size=5, gradient_checkpointing=checkpointing)
    randomized(held.model, tmp_path / "adapter")
    batch = batch_of(200)
    expected = reference(folders[kind], tmp_path / "adapter", batch)
    wanted = torch.cat([one.flatten() for one in expected["gradients"].values()])
    trainer = plain.trainer(held, knobs, Path("kept").resolve(), batch, batch)
    for form in (held.batches.form, *held.batches.fallbacks):
        held.batches.form = form
        held.model.zero_grad()
        loss = trainer.training_step(trainer.model, {"examples": batch})
        assert float(loss) == pytest.approx(expected["loss"], rel=0.02), form
        gradients = {name: one.grad for name, one in held.model.named_parameters() if one.grad is not None}
        found = torch.cat([gradients[name].flatten().float().cpu() for name in expected["gradients"]])
        assert float((found - wanted).norm() / wanted.norm()) < 0.1, form
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["loss"], rel=0.02), form
    assert form == PADDED


def test_packing_uses_the_best_form_and_says_nothing(trained):
    for kind, form in (("llama", "segments"), ("qwen3", "segments"), ("mistral", "sequence")):
        done = trained(kind, kept=kind)
        assert (done.held.batches.form, "ignores" in done.said, "cannot" in done.said) == (form, False, False)


def test_steps_and_epochs_are_counted(trained):
    done = trained()
    assert done.result.metrics["steps"] == 6 == len(losses(done))
    assert [row["epoch"] for row in done.history if "validation_loss" in row] == [0, 1, 2]
    assert losses(done)[-1] < losses(done)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"method": "qlora"},
        {"optim": "adamw_8bit"},
        {"method": "qlora", "optim": "adamw_8bit", "gradient_checkpointing": True},
        {"method": "full", "lr": 0.001},
        {"packing": False},
        {"adversarial__method": "fgm"},
    ],
    ids=str,
)
def test_methods_and_optimizers_learn(trained, values):
    done = trained(**values)
    found = losses(done)
    assert all(map(math.isfinite, found)) and found[-1] < found[0]
    assert "cannot" not in done.said and "ignores" not in done.said


def test_in_fp16_a_scaler_keeps_training_from_diverging(trained, monkeypatch):
    """As on a card without bf16."""
    from unsloth import FastLanguageModel

    real = FastLanguageModel.from_pretrained
    monkeypatch.setattr(
        FastLanguageModel, "from_pretrained", lambda *a, **given: real(*a, **given, dtype=torch.float16)
    )
    monkeypatch.setattr(device, "half", lambda: torch.float16)
    done = trained(epochs=6, lr=0.003)
    assert done.result.run["dtype"] == "float16"
    assert all(map(math.isfinite, losses(done))) and losses(done)[-1] < losses(done)[0]


def test_an_interrupted_training_resumes_from_its_checkpoint(trained, monkeypatch):
    from stages.backends.unsloth.training import trainer

    values = {"epochs": 3, "checkpoint__every": 2}
    whole = trained(kept="whole", **values)
    real = trainer.Trainer.training_step

    def killed(self, *given, **others):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return real(self, *given, **others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "training_step", killed)
        trained(**values)
    resumed = trained(**values)
    assert resumed.result.run["resumed_from_step"] == 4 and resumed.result.metrics["steps"] == 9
    assert losses(resumed) == pytest.approx(losses(whole), rel=0.02)


def test_a_batch_that_does_not_fit_is_split(loaded, capsys):
    from tests.support import plain

    held, knobs = loaded(packing=False, batch_size=16)
    batch = batch_of(1500, count=16)
    trainer = plain.trainer(held, knobs, Path("kept").resolve(), batch, batch)
    step = {"examples": batch}
    peaks = []
    for budget in (1, sys.maxsize):
        held.batches.budget = budget
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        expected = float(trainer.training_step(trainer.model, step))
        held.model.zero_grad()
        peaks.append(torch.cuda.max_memory_reserved())
    assert peaks[1] > 1.5 * peaks[0]
    torch.cuda.empty_cache()
    limit = (peaks[0] + peaks[1]) / 2 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        found = float(trainer.training_step(trainer.model, step))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found == pytest.approx(expected, rel=0.01)
    assert "out of memory; limiting micro-batches" in capsys.readouterr().out


def test_a_conversation_that_does_not_fit_is_an_error_for_the_user(loaded, monkeypatch):
    from tests.support import plain

    held, knobs = loaded()
    batch = [Example([5] * 50, [IGNORED] + [5] * 49)] * 2
    trainer = plain.trainer(held, knobs, Path("kept").resolve(), batch, batch)

    def fail(*_):
        torch.empty(2**50, device=device.kind())

    monkeypatch.setattr(trainer, "_gradients", fail)
    with pytest.raises(UserError, match="out of memory with one conversation of up to 50 tokens"):
        trainer.training_step(trainer.model, {"examples": batch})


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_evaluation_measures_what_was_trained(trained, folders, monkeypatch, method):
    from stages.backends.unsloth.common import four_bit
    from stages.backends.unsloth.inference.local import LocalPair
    from stages.backends.unsloth.training import run
    from tests.backends.unsloth.test_inference import TALKS

    done = trained(method=method, lr=0.003)
    tuned = run.best(Path("kept").resolve())
    if method == "qlora":
        four_bit.mark(tuned)
    del done
    chat = Chat.load(folders["llama"])
    expected = LocalPair.load(folders["llama"], tuned, chat, batch_size=3)
    facts = expected.facts()
    assert facts["device"] == device.name() and facts["precision"] in ("bfloat16", "float16") and expected.varies
    likely = {one: expected.likelihoods(TALKS, one).nll for one in (False, True)}
    assert (likely[True] != likely[False]).all()
    assert (expected.perturbed(TALKS, True, 2.0).nll > likely[True]).all()
    texts, _ = expected.answers(TALKS, True, 4)
    assert len(texts) == 3
    if method == "qlora":
        # Where 16 bit do not fit.
        monkeypatch.setattr(device, "free_memory", lambda: [0])
        small = LocalPair.load(folders["llama"], tuned, chat, batch_size=3)
        assert small.facts()["precision"] == "nf4"
        assert small.likelihoods(TALKS, True).nll == pytest.approx(likely[True], rel=0.1)
