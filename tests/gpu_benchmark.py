"""How fast the finetune stage trains on a GPU, beside stock Unsloth and plain TRL + PEFT, on a model of random weights.

    .venv/bin/python -m tests.gpu_benchmark [SECONDS]

`make gpu-check` runs it after the tests that need a GPU. The model is the largest of `MODELS` that fits: its shape is
that of a known one, and its weights, tokenizer and conversations are drawn here, so nothing is downloaded. Each trainer
has a process of its own and the same conversations, batches, adapters, optimizer and number of steps. A trainer for
which the seconds do not suffice is left out, and the table says so.
"""

import functools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import params
from stages.backends.unsloth.reader import IGNORED, Example
from tests import benchmark
from tests.conftest import ROOT

STEPS, BATCH = 20, 8
# Steps in which kernels are compiled and tuned; they do not count.
WARM_UP = 4
# Adapters, gradients and activations of a batch, beside the weights.
BESIDE = 12 * 2**30
SECONDS = 270


@dataclass(frozen=True)
class Shape:
    """A model's configuration, without its weights."""

    name: str
    kind: str
    config: dict[str, Any]

    @functools.cached_property
    def parameters(self) -> int:
        """Number of weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.kind, **self.config))
        return sum(weight.numel() for weight in model.parameters())

    @property
    def multiplied(self) -> int:
        """Number of weights that each token is multiplied with: all but embeddings that are no head."""
        embedded = 0 if self.config["tie_word_embeddings"] else self.config["vocab_size"] * self.config["hidden_size"]
        return self.parameters - embedded


def _llama(hidden: int, inner: int, layers: int, heads: int, shared: int, size: int, **other: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": size,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
        **other,
    }


# Largest first. Larger ones would take most of eight minutes to write and to load.
MODELS = [
    Shape("Llama-3.1-8B", "llama", _llama(4096, 14336, 32, 32, 8, 128, tie_word_embeddings=False)),
    Shape("Llama-3.2-3B", "llama", _llama(3072, 8192, 28, 24, 8, 128)),
    Shape("Llama-3.2-1B", "llama", _llama(2048, 8192, 16, 32, 8, 64)),
    Shape("SmolLM2-135M", "llama", _llama(576, 1536, 30, 9, 3, 64, vocab_size=49152)),
]
# Dense bf16 TFLOP/s from the makers' data sheets, by what the card's name contains; the first that fits counts.
PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L40": 181,
    "L4": 121, "A10G": 70, "A10": 125, "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 210, "RTX 4090": 165,
    "RTX 3090": 71,
}  # fmt: skip


def largest(free: int) -> Shape:
    """The largest model that can be trained in so many bytes, or the smallest if none can."""
    return next((shape for shape in MODELS if 2 * shape.parameters + BESIDE <= free), MODELS[-1])


def peak(card: str) -> float | None:
    """The card's bf16 peak in FLOP/s; None if it is not known."""
    return next((1e12 * tera for name, tera in PEAKS.items() if name in card), None)


def share_of_peak(tokens_per_second: float, multiplied: int, card: str) -> float | None:
    """Share of the card's peak: 4 operations per token and weight, two forward and two back through frozen weights.

    What is computed again for checkpointing does not count, and a shared prompt counts for each conversation.
    """
    known = peak(card)
    return None if known is None else 4 * multiplied * tokens_per_second / known


def conversations(vocabulary: int, steps: int = STEPS) -> list[Example]:
    """Conversations of random tokens with a common prompt, of the lengths that support desks have."""
    draw = random.Random(3)

    def some(least: int, most: int) -> list[int]:
        return [draw.randrange(300, vocabulary) for _ in range(draw.randint(least, most))]

    system, found = some(200, 200), []
    for _ in range(steps * BATCH):
        question, answer = some(20, 200), some(50, 400)
        found.append(Example(system + question + answer, [IGNORED] * (len(system) + len(question)) + answer))
    return found


def write(shape: Shape, folder: Path) -> None:
    """Write the model with random weights, and a tokenizer of one token per byte."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.support.small import make_base

    make_base(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.kind, **shape.config, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def knobs(checkpointing: bool) -> params.Params:
    """Parameters as in Unsloth's notebooks, in place of what params.yaml chose for the sample."""
    shipped = params.load(ROOT / "params.yaml")
    lora = {"r": 16, "alpha": 16, "target_modules": "all-linear", "layers_to_transform": None}
    changes = {"epochs": 1, "batch_size": BATCH, "lr": 2e-4, "dropout": 0.0, "warmup_ratio": 0.0, "scheduler": "linear"}
    local = shipped.unsloth.model_copy(update={"max_length": 2048})
    return shipped.model_copy(
        update={
            **changes,
            "lora": shipped.lora.model_copy(update=lora),
            "unsloth": local,
            "gradient_checkpointing": checkpointing,
        }
    )


class Clock:
    """The time and the loss of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def step(self, loss: float) -> None:
        """Call it when a step has been computed."""
        self.times.append(time.perf_counter())
        self.losses.append(loss)

    def speed(self, tokens: int) -> float:
        """Tokens per second after warming up, of so many tokens in all steps."""
        steps = len(self.times) - WARM_UP
        return tokens / len(self.times) * steps / (self.times[-1] - self.times[WARM_UP - 1])


def _ours(folder: Path, train: list[Example], clock: Clock, checkpointing: bool) -> None:
    from stages.backends.unsloth.training import model, run

    def log(row: dict[str, Any]) -> None:
        if "train_loss" in row:
            clock.step(row["train_loss"])

    chosen = knobs(checkpointing)
    model.start()
    with tempfile.TemporaryDirectory() as scratch:
        run.train(model.load(folder, chosen), train, train[:BATCH], chosen, log, Path(scratch))


def _unsloth(folder: Path, train: list[Example], clock: Clock) -> None:
    from stages.backends.unsloth.training import model

    model.start()
    benchmark.stock(train, knobs(True), True, folder, [_callback(clock)])


def _trl(folder: Path, train: list[Example], clock: Clock) -> None:
    benchmark.plain(train, knobs(True), folder, [_callback(clock)])


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                clock.step(float(logs["loss"]))

    return Timed()


TRAINERS: dict[str, Callable[[Path, list[Example], Clock], None]] = {
    "this pipeline": functools.partial(_ours, checkpointing=True),
    "stock Unsloth, as in its notebooks": _unsloth,
    "TRL + PEFT": _trl,
    "this pipeline, without gradient checkpointing": functools.partial(_ours, checkpointing=False),
}


def measure(trainer: str, folder: Path, vocabulary: int, steps: int) -> dict[str, Any]:
    """Train in this process; tokens/s, peak memory in MB, and the mean loss of all steps."""
    train, clock = conversations(vocabulary, steps), Clock()
    TRAINERS[trainer](folder, train, clock)
    from stages.backends.unsloth.training import run

    tokens = sum(len(one.input_ids) for one in train)
    mean = sum(clock.losses) / len(clock.losses)
    return {"speed": clock.speed(tokens), "memory": run.peak_memory_mb(), "loss": mean, "steps": len(clock.losses)}


def in_own_process(trainer: str, folder: Path, vocabulary: int, steps: int, seconds: float) -> dict[str, Any] | str:
    """What `measure` found, or why it found nothing."""
    command = [sys.executable, "-m", "tests.gpu_benchmark", trainer, str(folder), str(vocabulary), str(steps)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1), cwd=ROOT)
    except subprocess.TimeoutExpired:
        return "no time left"
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return ([line for line in done.stderr.splitlines() if line.strip()] or ["failed"])[-1][:200]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, Any] | str], multiplied: int, card: str) -> str:
    """The results in Markdown."""
    lines = ["| trainer | tokens/s | peak MB | share of bf16 peak | mean loss |", "| --- | ---: | ---: | ---: | ---: |"]
    for trainer, found in results.items():
        if isinstance(found, str):
            lines.append(f"| {trainer} | not measured: {found.replace('|', '/')} | | | |")
            continue
        share = share_of_peak(found["speed"], multiplied, card)
        shown = "unknown" if share is None else f"{100 * share:.0f}%"
        numbers = f"{found['speed']:,.0f} | {found['memory']:,} | {shown} | {found['loss']:.4f}"
        lines.append(f"| {trainer} | {numbers} |")
    return "\n".join(lines)


def compare(shape: Shape, card: str, seconds: float, steps: int = STEPS) -> tuple[str, bool]:
    """Measure all trainers one after another; the table with its heading, and whether all were measured."""
    end = time.monotonic() + seconds
    results: dict[str, dict[str, Any] | str] = {}
    with tempfile.TemporaryDirectory(dir=_roomy(3 * shape.parameters)) as scratch:
        folder = Path(scratch)
        write_in_own_process(shape, folder)
        for trainer in TRAINERS:
            left = end - time.monotonic()
            results[trainer] = in_own_process(trainer, folder, shape.config["vocab_size"], steps, left)
            print(f"{trainer}: {results[trainer]}", flush=True)
    heading = (
        f"{card}, {time.strftime('%Y-%m-%d')}: LoRA r=16 on all linear layers of {shape.name}'s shape with random"
        f" weights, {steps} steps of {BATCH} conversations with a common prompt of 200 tokens"
    )
    complete = all(isinstance(found, dict) for found in results.values())
    return f"{heading}\n\n{table(results, shape.multiplied, card)}", complete


def write_in_own_process(shape: Shape, folder: Path) -> None:
    """So that its GPU memory is free again."""
    subprocess.run(
        [sys.executable, "-m", "tests.gpu_benchmark", "write", str(folder), shape.name], check=True, cwd=ROOT
    )


def _roomy(wanted: int) -> str | None:
    """The folder in memory if it has so many bytes, else the one for temporary files."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > wanted else None


def main() -> None:
    if len(sys.argv) > 2:
        what, folder, *others = sys.argv[1:]
        if what == "write":
            write(next(shape for shape in MODELS if shape.name == others[0]), Path(folder))
        else:
            print(json.dumps(measure(what, Path(folder), *map(int, others))))
        return
    from stages.backends.unsloth.common import device

    if device.kind() == "cpu":
        sys.exit("error: no GPU that torch can use; `make doctor` says why")
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    found, complete = compare(largest(device.free_memory()[0]), device.name(), seconds)
    print(found)
    sys.exit(not complete)


if __name__ == "__main__":
    main()
