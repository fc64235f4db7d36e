"""How fast the finetune stage trains, beside stock Unsloth + SFTTrainer, and what the rest of the pipeline costs.

    .venv/bin/python -m tests.benchmark

All trainers see the same conversations, base model and params.yaml (one epoch), each in a process of its own, in turns:
`finetune` is this pipeline's; `stock` has the same gradient checkpointing as params.yaml asks for, which is the fair
comparison; `notebook` always has Unsloth's, as in its notebooks. Then come their loss curves, side by side, and the
pipeline runs once with `dvc repro -f`; its overhead is all its time but the training's. Run it after `make run`, on a
machine that does nothing else. It leaves the results of a normal run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stages import params
from stages.backends.unsloth import training
from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.reader import Chat, Example
from stages.backends.unsloth.training import model, run
from stages.core.paths import RUN

ROUNDS = 2
TRAINERS = ("notebook", "stock", "finetune")
# Points of the loss curves: means over as many steps each.
POINTS = 6


def main() -> None:
    os.environ.setdefault("DVC_ROOT", str(Path.cwd()))
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    best = compare()
    print(curves({trainer: found["losses"] for trainer, found in best.items()}))
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-f"], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - begin
    training = json.loads(RUN.read_text())["seconds"]
    print(f"pipeline: {whole:.0f} s, of which training {training:.0f} s; overhead {whole - training:.0f} s")


def compare() -> dict[str, dict[str, Any]]:
    """Measure all trainers in turns, print each run, and return the fastest run of each."""
    print(f"{'trainer':<10}{'tokens/s':>10}{'seconds':>10}{'peak MB':>10}{'mean loss':>12}", flush=True)
    best: dict[str, dict[str, Any]] = {}
    for trainer in TRAINERS * ROUNDS:
        found = in_own_process(trainer)
        mean = sum(found["losses"]) / len(found["losses"])
        print(
            f"{trainer:<10}{found['speed']:>10.0f}{found['seconds']:>10.1f}{found['memory']:>10}{mean:>12.4f}",
            flush=True,
        )
        best[trainer] = max(best.get(trainer, found), found, key=lambda one: one["speed"])
    for other in ("stock", "notebook"):
        ratio = best["finetune"]["speed"] / best[other]["speed"]
        print(f"finetune trains {ratio:.2f} times as many tokens per second as {other}")
    return best


def curves(losses: dict[str, list[float]]) -> str:
    """The trainers' loss curves side by side, and the largest difference between finetune and stock at a step."""
    steps = len(losses["finetune"])
    lines = [f"{'steps':<10}" + "".join(f"{name:>12}" for name in losses)]
    for point in range(min(POINTS, steps)):
        first, end = (steps * at // min(POINTS, steps) for at in (point, point + 1))
        means = (sum(one[first:end]) / (end - first) for one in losses.values())
        lines.append(f"{f'{first + 1}-{end}':<10}" + "".join(f"{mean:>12.4f}" for mean in means))
    apart = max(abs(a - b) for a, b in zip(losses["finetune"], losses["stock"], strict=True))
    return "\n".join([*lines, f"largest difference between finetune and stock at a step: {apart:.4f}"])


def in_own_process(trainer: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.benchmark", trainer], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(trainer: str) -> dict[str, Any]:
    """Train one epoch; real tokens per second (padding does not count), seconds, peak memory, each step's loss."""
    knobs = params.load().model_copy(update={"epochs": 1})
    model.start()
    train = training.examples(Chat.load(), "train", knobs.unsloth)
    tokens = sum(len(example.input_ids) for example in train)
    if trainer == "finetune":
        seconds, losses = ours(train, knobs)
    else:
        seconds, losses = stock(train, knobs, checkpointing=trainer == "notebook" or knobs.gradient_checkpointing)
    return {"speed": tokens / seconds, "seconds": seconds, "memory": run.peak_memory_mb(), "losses": losses}


def ours(train: list[Example], knobs: params.Params) -> tuple[float, list[float]]:
    history: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        loaded = model.load(weights_folder(), knobs)
        result = run.train(loaded, train, train[:1], knobs, history.append, Path(scratch))
    return result.run["seconds"], [row["train_loss"] for row in history if "train_loss" in row]


def stock(train: list[Example], knobs: params.Params, checkpointing: bool) -> tuple[float, list[float]]:
    """As in Unsloth's notebooks: its own loader, adapters and, if asked for, checkpointing, TRL's collator and loss."""
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(weights_folder()),
        max_seq_length=knobs.unsloth.max_length,
        load_in_4bit=False,
        use_gradient_checkpointing="unsloth" if checkpointing else False,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=knobs.lora.r,
        lora_alpha=knobs.lora.alpha,
        lora_dropout=knobs.dropout,
        target_modules=list(knobs.lora.target_modules),
        use_gradient_checkpointing="unsloth" if checkpointing else False,
        random_state=knobs.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            num_train_epochs=knobs.epochs,
            per_device_train_batch_size=knobs.batch_size,
            learning_rate=knobs.lr,
            weight_decay=knobs.weight_decay,
            lr_scheduler_type=knobs.scheduler,
            warmup_steps=round(knobs.warmup_ratio * -(-len(train) // knobs.batch_size)),
            optim=knobs.optim,
            max_grad_norm=knobs.max_grad_norm or 0.0,
            # TRL's own default is to checkpoint.
            gradient_checkpointing=checkpointing,
            seed=knobs.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=run.dataset(train))
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
