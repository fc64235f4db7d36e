"""How fast the finetune stage trains, beside stock Unsloth + SFTTrainer, and what the rest of the pipeline costs.

    .venv/bin/python -m tests.benchmark

Both trainers see the same conversations, base model and params.yaml (one epoch), each in a process of
its own, in turns. Then the pipeline runs once with `dvc repro -f`; its overhead is all its time but the training's.
Run it after `make run`, on a machine that does nothing else. It leaves the results of a normal run.
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
from stages.backends import unsloth
from stages.backends.unsloth import trainable, training
from stages.backends.unsloth.chat import Chat, Example
from stages.paths import RUN

ROUNDS = 2


def main() -> None:
    os.environ.setdefault("DVC_ROOT", str(Path.cwd()))
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    print(f"{'trainer':<10}{'tokens/s':>10}{'seconds':>10}{'peak MB':>10}{'mean loss':>12}", flush=True)
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for trainer in ("stock", "finetune"):
            found = in_own_process(trainer)
            print(
                f"{trainer:<10}{found['speed']:>10.0f}{found['seconds']:>10.1f}{found['memory']:>10}{found['loss']:>12.4f}",
                flush=True,
            )
            best[trainer] = max(best.get(trainer, 0), found["speed"])
    print(f"finetune trains {best['finetune'] / best['stock']:.2f} times as many tokens per second as stock")
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-f"], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - begin
    training = json.loads(RUN.read_text())["seconds"]
    print(f"pipeline: {whole:.0f} s, of which training {training:.0f} s; overhead {whole - training:.0f} s")


def in_own_process(trainer: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.benchmark", trainer], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(trainer: str) -> dict[str, Any]:
    """Train one epoch; real tokens per second (padding does not count), seconds, peak memory, mean training loss."""
    knobs = params.load().model_copy(update={"epochs": 1})
    trainable.start()
    train = unsloth.examples(Chat.load(), "train", knobs.unsloth.max_length)
    tokens = sum(len(example.input_ids) for example in train)
    if trainer == "stock":
        seconds, loss = stock(train, knobs)
    else:
        seconds, loss = ours(train, knobs)
    return {"speed": tokens / seconds, "seconds": seconds, "memory": training.peak_memory_mb(), "loss": loss}


def ours(train: list[Example], knobs: params.Params) -> tuple[float, float]:
    history: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        loaded = trainable.load(unsloth.weights_folder(), knobs)
        result = training.train(loaded, train, train[:1], knobs, history.append, Path(scratch))
    losses = [row["train_loss"] for row in history if "train_loss" in row]
    return result.run["seconds"], sum(losses) / len(losses)


def stock(train: list[Example], knobs: params.Params) -> tuple[float, float]:
    """As in Unsloth's notebooks: its own loader, adapters and checkpointing, TRL's own collator and loss."""
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(unsloth.weights_folder()), max_seq_length=knobs.unsloth.max_length, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=knobs.lora.r,
        lora_alpha=knobs.lora.alpha,
        lora_dropout=knobs.dropout,
        target_modules=list(knobs.lora.target_modules),
        use_gradient_checkpointing="unsloth",
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
            seed=knobs.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, args=arguments, train_dataset=training.dataset(train)
        )
        begin = time.perf_counter()
        loss = trainer.train().training_loss
        return time.perf_counter() - begin, loss


if __name__ == "__main__":
    main()
