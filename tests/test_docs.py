"""The documentation's commands, run as they stand in a clone with a small model, page by page from top to bottom."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from stages import conversations
from stages.paths import SPLITS

from .conftest import ROOT

pytestmark = pytest.mark.slow

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|yaml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that cannot run here, and what stands in for each.
STAND_INS = {
    "make run     # sets up, then runs the pipeline on the sample data with a small model: no GPU, no account": "",
    "make test    # sets up, then runs the tests": "",
    "export OPENAI_API_KEY=...": "",
}
MERGE = """
import sys, yaml
from stages.params import read_yaml
from pathlib import Path
def merge(old, new):
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = value
path = Path("params.yaml")
params = read_yaml(path)
merge(params, yaml.safe_load(sys.stdin))
path.write_text(yaml.safe_dump(params, sort_keys=False))
"""


# Runs a command that is shown with what it prints: each line must come, in this order; `...` is any text.
EXPECT = """
import re, sys
output, lines = sys.argv[1], sys.stdin.read().splitlines()
pattern = ".*?".join(r"(?m:^)" + r".*?".join(map(re.escape, line.split("..."))) for line in lines)
assert re.search(pattern, output, re.DOTALL), output
"""


def script(page):
    """The page's commands; a block of YAML stands for an edit of params.yaml."""
    lines = ["set -eo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    lines += ['expect() { python ../expect.py "$(eval "$1" 2>&1)"; }']
    for kind, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if kind == "yaml":
            lines += ["python ../merge.py <<'YAML'", block.rstrip("\n"), "YAML"]
        elif kind == "console":
            command, *output = block.splitlines()
            lines += [f"expect {shlex.quote(command.removeprefix('$ '))} <<'OUTPUT'", *output, "OUTPUT"]
        else:
            lines += [STAND_INS.get(line, line) for line in block.splitlines()]
    return "\n".join(lines) + "\n"


def a_table_of_questions(small_base):
    """What docs/own-csv.md supposes: the user's file."""
    talks = [one for path in SPLITS.values() for one in conversations.read_jsonl(path)]
    table = pd.DataFrame(
        {
            "question": [talk.messages[-2].content for talk in talks],
            "answer": [talk.messages[-1].content for talk in talks],
            "topic": ["rooms" if number % 2 else "meals" for number in range(len(talks))],
        }
    )
    table.to_csv("data/local/mine.csv", index=False)
    return {}


def a_model_of_the_hub(small_base):
    """What docs/gpu.md downloads, as it lies in the Hub's cache afterwards: here the small model under that name."""
    commit = "0123456789" * 4
    cache = Path("../hub").resolve()
    snapshot = cache / "models--unsloth--Llama-3.2-1B-Instruct/snapshots" / commit
    shutil.copytree(small_base, snapshot)
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "COMMIT": commit}


GIVEN = {"docs/own-csv.md": a_table_of_questions, "docs/gpu.md": a_model_of_the_hub}


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search((ROOT / page).read_text(encoding="utf-8"))])
def test_the_commands_of_a_page_run_as_they_stand(page, clone, small_base):
    given = GIVEN.get(page, lambda _: {})(small_base)
    (clone.parent / "page.sh").write_text(script(page))
    (clone.parent / "merge.py").write_text(MERGE)
    (clone.parent / "expect.py").write_text(EXPECT)
    environment = {**os.environ, "PYTHONPATH": str(clone), **given}
    done = subprocess.run(
        ["bash", "-x", str(clone.parent / "page.sh")], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
