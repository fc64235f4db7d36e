"""How fast parse, validate and split are, beside a plain pandas + json script that makes the same checks without GX.

    .venv/bin/python -m tests.benchmark_data 18 10000

Rows per second and peak memory of each, in a process of its own, for synthetic conversations of a front desk. Run it
after `make run` (it uses models/base), on a machine that does nothing else; it works in a temporary folder.
"""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEPS = ("parse", "validate", "split", "plain")
WORDS = (
    "room key breakfast pool late checkout towel view quiet floor taxi train luggage invoice parking gym sauna lift"
    " window pillow dinner table menu harbour museum ticket rain umbrella doctor pharmacy wifi password charger"
)


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in STEPS:
        run_step(sys.argv[1])
        return
    print(f"{'rows':>9} {'step':<10}{'seconds':>9}{'rows/s':>9}{'peak MB':>9}")
    for count in map(int, sys.argv[1:] or ["18", "10000"]):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), count)
            total = 0.0
            for step in STEPS:
                seconds, memory = in_own_process(step, Path(folder))
                total += seconds if step != "plain" else 0
                print(f"{count:>9} {step:<10}{seconds:>9.1f}{count / seconds:>9.0f}{memory:>9}", flush=True)
            print(f"{count:>9} {'all three':<10}{total:>9.1f}{count / total:>9.0f}", flush=True)


def prepare(folder: Path, count: int) -> None:
    for name in ("params.yaml", "data/expectations.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "models/base", folder / "models/base")
    rng, words = random.Random(0), WORDS.split()
    with (folder / "data/raw.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        for number in range(count):
            turns = [("system", "You are a front desk host. Be kind and brief.")]
            turns.append(("user", f"{number}: " + " ".join(rng.choices(words, k=15)) + "?"))
            turns.append(("assistant", " ".join(rng.choices(words, k=25)) + "."))
            messages = [{"role": role, "content": content} for role, content in turns]
            writer.writerow([json.dumps({"messages": messages})])


def in_own_process(step: str, folder: Path) -> tuple[float, int]:
    """Seconds of the whole process, imports included, and its peak memory in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    begin = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmark_data", step]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, int(done.stdout.splitlines()[-1])


def run_step(step: str) -> None:
    import importlib
    import resource

    if step == "plain":
        plain()
    else:
        importlib.import_module(f"stages.{step}").main()
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


def plain() -> None:
    """What one would write in an afternoon: all in memory, one row at a time, the finders shared with the project."""
    import pandas as pd
    from transformers import AutoTokenizer

    from stages.content import BROKEN, SECRETS, finished
    from stages.language import detect

    tokenizer = AutoTokenizer.from_pretrained("models/base")
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    frame = pd.read_csv("data/raw.csv", header=None, names=["chat"])
    frame["messages"] = frame["chat"].map(lambda chat: json.loads(chat)["messages"])

    def check(messages: list[dict[str, str]]) -> dict[str, object]:
        roles = "".join(message["role"][0] for message in messages)
        texts = [message["content"] for message in messages]
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        return {
            "roles": bool(re.fullmatch("s?(ua)+", roles)),
            "empty": any(not text.strip() for text in texts),
            "tokens": len(ids),
            "short": len(tokenizer(texts[-1], add_special_tokens=False)["input_ids"]) < 2,
            "language": detect(" ".join(texts[1:])),
            "special": any(special.search(text) for text in texts),
            "finished": finished(texts[-1]),
            "prompt": re.sub(r"\W+", " ", " ".join(texts[1:-1]).lower()),
            "response": texts[-1],
            **{name: any(find(text) for text in texts) for name, find in {**SECRETS, **BROKEN}.items()},
        }

    checks = pd.DataFrame(list(frame["messages"].map(check)))
    checks["duplicate"] = frame["chat"].duplicated(keep=False)
    checks["conflict"] = checks.groupby("prompt")["response"].transform("nunique") > 1
    order = frame.sample(frac=1, random_state=42).index
    cuts = {"train": order[: int(0.7 * len(order))], "test": order[int(0.7 * len(order)) :]}
    for name, rows in cuts.items():
        with Path(f"data/plain-{name}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"messages": messages}) + "\n" for messages in frame["messages"][rows])


if __name__ == "__main__":
    main()
