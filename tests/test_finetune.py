import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from stages import conversations, finetune
from stages.backends import unsloth
from stages.backends.unsloth.chat import Chat
from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.paths import HISTORY, RUN, SIGNALS, SPLITS, TRAIN_METRICS, TUNED, VALIDATION_HISTORY

from .conftest import ROOT


def talks(count):
    return [
        Conversation(
            (Message("system", "Be kind."), Message("user", f"Room {n}?"), Message("assistant", f"It is {n}."))
        )
        for n in range(count)
    ]


@pytest.fixture
def splits(base):
    SPLITS["train"].parent.mkdir(parents=True)
    for name, count in (("train", 16), ("validation", 4), ("test", 4)):
        conversations.write_jsonl(SPLITS[name], talks(count))
    pd.DataFrame({"row": [1, 2], "n_tokens": [20.0, 30.0]}).to_parquet(SIGNALS)


def set_params(**values):
    """Change keys of params.yaml; of two keys with one name, the first."""
    lines = Path("params.yaml").read_text().splitlines()
    for key, value in values.items():
        at, *_ = [number for number, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
        lines[at] = f"{lines[at].partition(':')[0]}: {value}"
    Path("params.yaml").write_text("\n".join(lines) + "\n")


def train(**knobs):
    """The stage in its own process, as DVC runs it: Unsloth patches whatever process it is imported into."""
    set_params(**knobs)
    command = [sys.executable, "-m", "stages.finetune"]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_learns_and_keeps_the_best_epoch(splits):
    # The rate is so high that a later epoch is worse than an earlier one.
    done = train(lr=1.0, epochs=4, batch_size=4, scheduler="constant", warmup_ratio=0.0)
    assert done.returncode == 0, done.stderr
    losses = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    metrics = json.loads(TRAIN_METRICS.read_text())
    assert len(losses) == 5 and len(rows(HISTORY)) == 16 == metrics["steps"]
    assert metrics["validation_loss"] == min(losses[1:]) == losses[metrics["best_epoch"]]
    assert metrics["best_epoch"] != 4, "the test needs a run whose last epoch is not its best"
    assert all(float(row["lr"]) == 1.0 for row in rows(HISTORY))
    assert json.loads(RUN.read_text())["trainable_parameters"] > 0

    # What is kept is that epoch's adapter: plain peft loads it, and measures the same loss.
    from stages.backends.unsloth import weights_folder
    from stages.backends.unsloth.local import Pair

    pair = Pair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    found = pair.likelihoods(list(conversations.read_jsonl(SPLITS["validation"])), tuned=True)
    assert found.nll.sum() / found.tokens.sum() == pytest.approx(metrics["validation_loss"], rel=0.02)
    assert str(Path.cwd()) not in (TUNED / "adapter_config.json").read_text()


def test_equal_runs_give_equal_bytes(splits):
    outcomes = []
    for _ in range(2):
        done = train(epochs=1, dropout=0.1)
        assert done.returncode == 0, done.stderr
        outcomes.append([path.read_bytes() for path in (TUNED / "adapter_model.safetensors", HISTORY, TRAIN_METRICS)])
    assert outcomes[0] == outcomes[1]


def test_overlong_conversations_stop_the_run_by_row(splits):
    done = train(max_length=25)
    assert done.returncode == 1 and "row 2: 30 tokens" in done.stderr and "overlong: drop" in done.stderr
    assert "Traceback" not in done.stderr


def test_overlong_conversations_are_dropped_when_asked(base, capsys):
    SPLITS["train"].parent.mkdir(parents=True)
    chat = Chat.load()
    long = Conversation((Message("user", "x" * 500), Message("assistant", "y")))
    conversations.write_jsonl(SPLITS["train"], [*talks(3), long])
    assert len(unsloth.examples(chat, "train", 200)) == 3
    assert "left out 1 conversations of more than 200 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="is within unsloth.max_length 20; raise it"):
        unsloth.examples(chat, "train", 20)


def test_a_second_training_is_refused(project, monkeypatch):
    monkeypatch.setattr(finetune, "_LOCK_SECONDS", 0.1)
    with finetune.alone(), pytest.raises(UserError, match="another training runs"), finetune.alone():
        pass
