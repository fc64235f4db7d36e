import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.backends.unsloth import training
from stages.backends.unsloth.reader import Chat
from stages.core.cli import UserError
from stages.core.paths import HISTORY, RUN, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.params.backends import Unsloth
from tests.conftest import ROOT, set_params, talks


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_learns_and_keeps_the_best_epoch(train):
    # The rate is so high that a later epoch is worse than an earlier one.
    assert train(lr=1.0, epochs=4, batch_size=4, scheduler="constant", warmup_ratio=0.0) is None
    losses = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    metrics = json.loads(TRAIN_METRICS.read_text())
    assert len(losses) == 5 and len(rows(HISTORY)) == 16 == metrics["steps"]
    assert metrics["validation_loss"] == min(losses[1:]) == losses[metrics["best_epoch"]]
    assert metrics["best_epoch"] != 4, "the test needs a run whose last epoch is not its best"
    assert all(float(row["lr"]) == 1.0 for row in rows(HISTORY))
    assert json.loads(RUN.read_text())["trainable_parameters"] > 0

    # What is kept is that epoch's adapter: plain peft loads it, and measures the same loss.
    from stages.backends.unsloth.base import weights_folder
    from stages.backends.unsloth.inference.local import LocalPair

    pair = LocalPair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    found = pair.likelihoods(list(conversations.read_jsonl(SPLITS["validation"])), tuned=True)
    assert found.nll.sum() / found.tokens.sum() == pytest.approx(metrics["validation_loss"], rel=0.02)
    assert str(Path.cwd()) not in (TUNED / "adapter_config.json").read_text()


def test_equal_runs_give_equal_bytes(train):
    outcomes = []
    for _ in range(2):
        assert train(epochs=1, dropout=0.1) is None
        outcomes.append([path.read_bytes() for path in (TUNED / "adapter_model.safetensors", HISTORY, TRAIN_METRICS)])
    assert outcomes[0] == outcomes[1]


def test_conversations_that_the_gate_let_through_stop_the_run_when_they_are_too_long(train):
    error = train(unsloth__max_length=25)
    assert "16 of 16 conversations, longer than unsloth.max_length 25" in error and "overlong: drop" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_command_stops_with_a_message_and_an_exit_status(splits):
    set_params(unsloth__max_length=25)
    command = [sys.executable, "-m", "stages.finetune"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "unsloth.max_length 25" in done.stderr and "overlong: drop" in done.stderr
    assert "Traceback" not in done.stderr


def test_overlong_conversations_are_dropped_when_asked(base, capsys):
    SPLITS["train"].parent.mkdir(parents=True)
    chat = Chat.load()
    long = Conversation((Message("user", "x" * 500), Message("assistant", "y")))
    conversations.write_jsonl(SPLITS["train"], [*talks(3), long])
    limits = Unsloth.model_construct(max_length=200, overlong="drop")
    assert len(training.examples(chat, "train", limits)) == 3
    assert "dropped 1 of 4 conversations, longer than 200 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="every conversation exceeds unsloth.max_length 20; raise it"):
        training.examples(chat, "train", Unsloth.model_construct(max_length=20, overlong="drop"))
