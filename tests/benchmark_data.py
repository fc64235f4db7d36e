"""How fast download, parse, validate and split are, beside a plain pandas + json script of the same checks without GX.

    .venv/bin/python -m tests.benchmark_data 18 10000

Seconds, rows per second and peak memory of each, in a process of its own, for synthetic conversations of a front desk.
Run it after `make run` (it uses models/base), on a machine that does nothing else; it works in a temporary folder.
The plain script makes every check but one: that nearly equal prompts are found, and share a split, is the stages' only.
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

import yaml

ROOT = Path(__file__).parent.parent
STAGES = ("download", "parse", "validate", "split")
STEPS = (*STAGES, "plain")
SOURCE = Path("data/local/desk.csv")
WORDS = (
    "room key breakfast pool late checkout towel view quiet floor taxi train luggage invoice parking gym sauna lift"
    " window pillow dinner table menu harbour museum ticket rain umbrella doctor pharmacy wifi password charger"
)


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in STEPS:
        run_step(sys.argv[1])
        return
    print(f"{'rows':>9} {'':<8}" + "".join(f"{name:>10}" for name in (*STAGES, "all", "plain")))
    for count in map(int, sys.argv[1:] or ["18", "10000"]):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), count)
            measured = {step: in_own_process(step, Path(folder)) for step in STEPS}
        seconds = [measured[step][0] for step in STAGES]
        seconds += [sum(seconds), measured["plain"][0]]
        peaks = [measured[step][1] for step in STAGES]
        peaks += [max(peaks), measured["plain"][1]]
        show(count, "seconds", [f"{value:.1f}" for value in seconds])
        show(count, "rows/s", [f"{count / value:.0f}" for value in seconds])
        show(count, "peak MB", [str(value) for value in peaks])


def show(count: int, what: str, values: list[str]) -> None:
    print(f"{count:>9} {what:<8}" + "".join(f"{value:>10}" for value in values), flush=True)


def prepare(folder: Path, count: int) -> None:
    (folder / SOURCE).parent.mkdir(parents=True)
    shutil.copy(ROOT / "data/expectations.yaml", folder / "data")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    desk = {"url": (folder / SOURCE).as_uri(), "sha256": None, "format": "messages"}
    params["data"] = {"source": "desk", "max_mb": 10_000, "sources": {"desk": desk}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    shutil.copytree(ROOT / "models/base", folder / "models/base")
    rng, words = random.Random(0), WORDS.split()
    with (folder / SOURCE).open("w", newline="", encoding="utf-8") as out:
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
    from transformers import AutoConfig, AutoTokenizer

    from stages.dataset.detectors import BROKEN, SECRETS
    from stages.dataset.language import detect
    from stages.dataset.sentences import finished

    tokenizer = AutoTokenizer.from_pretrained("models/base")
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    context = AutoConfig.from_pretrained("models/base").max_position_embeddings
    frame = pd.read_csv(SOURCE, header=None, names=["chat"])
    frame["messages"] = frame["chat"].map(lambda chat: json.loads(chat)["messages"])

    def check(messages: list[dict[str, str]]) -> dict[str, object]:
        roles = "".join(message["role"][0] for message in messages)
        texts = [message["content"] for message in messages]
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        return {
            "roles": bool(re.fullmatch("s?(ua)+", roles)),
            "empty": any(not text.strip() for text in texts),
            "over": max(0, len(ids) - context),
            "short": len(tokenizer(texts[-1], add_special_tokens=False)["input_ids"]) < 2,
            "language": detect(" ".join(texts[1:])),
            "special": any(special.search(text) for text in texts),
            "finished": finished(texts[-1]),
            "prompt": re.sub(r"\W+", " ", " ".join(texts[1:-1]).lower()),
            "response": texts[-1],
            "system": "\n".join(message["content"] for message in messages if message["role"] == "system"),
            **{name: any(find(text) for text in texts) for name, find in {**SECRETS, **BROKEN}.items()},
        }

    checks = pd.DataFrame(list(frame["messages"].map(check)))
    checks["duplicate"] = frame["chat"].duplicated(keep=False)
    checks["conflict"] = checks.groupby("prompt")["response"].transform("nunique") > 1
    for name in ("system", "language"):
        checks[f"other_{name}"] = checks[name].notna() & (checks[name] != checks[name].mode().iloc[0])
    order = frame.sample(frac=1, random_state=42).index
    cuts = {"train": order[: int(0.7 * len(order))], "test": order[int(0.7 * len(order)) :]}
    for name, rows in cuts.items():
        with Path(f"data/plain-{name}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"messages": messages}) + "\n" for messages in frame["messages"][rows])


if __name__ == "__main__":
    main()
