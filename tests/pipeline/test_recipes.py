"""The recipes of CONTRIBUTING.md, followed word by word in a copy: what is added shows wherever it should.

The recipe of a data format is followed in tests/dataset/test_formats.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.commands import call, dvc, ran


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the project's files, as the current folder."""
    listed = call("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def edit(path, *changes):
    """Replace text that must be there once."""
    text = Path(path).read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, (path, old, text.count(old))
        text = text.replace(old, new)
    Path(path).write_text(text, encoding="utf-8")


def lines(path):
    """The records of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


METRIC = '''

def length_ratio(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Length of the answer over that of the reference, in characters."""
    pairs = zip(answers, references, strict=True)
    return np.array([len(answer) / max(1, len(reference)) for answer, reference in pairs])
'''
# The committed run's answers are evaluated again, with the metric.
EVALUATED = """
import json
from pathlib import Path
from types import SimpleNamespace
from stages import backends, evaluate, params, report
from stages.commands import comparison
from stages.core import files
from stages.core.paths import MEASURES, PREDICTIONS, SPLITS, TEST_LABELS
from stages.dataset import conversations
from stages.metrics.intervals import Bootstrap

lines = [json.loads(line) for line in PREDICTIONS.read_text().splitlines()]
SPLITS["test"].parent.mkdir(parents=True, exist_ok=True)
answered = [{"role": "assistant", "content": line["reference"]} for line in lines]
records = [json.dumps({"messages": [*line["prompt"], said]}) for line, said in zip(lines, answered)]
for name in ("train", "test"):
    conversations.write_jsonl(SPLITS[name], map(conversations.decode, records))
files.write_json(TEST_LABELS, [])
pair = SimpleNamespace(
    answers=lambda test, tuned, limit: ([line["tuned" if tuned else "base"] for line in lines], 0),
    likelihoods=lambda *_: None, perturbed=lambda *_: None, price=lambda *_: 0.0, facts=dict, varies=False,
    kept=[],
)
backends.inference = lambda knobs: SimpleNamespace(pair=lambda knobs: pair)
evaluate.main()
ratios = [len(line["tuned"]) / len(line["reference"]) for line in lines]
found = json.loads(MEASURES.read_text())["test"]["tuned"]["length_ratio"]
assert abs(found["value"] - sum(ratios) / len(ratios)) < 1e-4 and found["low"] < found["value"] < found["high"], found

report.main()
for name in ("reports/report.md", "reports/report.html"):
    assert "length ratio" in Path(name).read_text()

new = [json.loads(line) for line in PREDICTIONS.read_text().splitlines()]
shared = comparison.Shared(comparison.pairs(new, new), [])
own = {"length_ratio": found["value"]}
(change,) = comparison.changes(shared, own, own, Bootstrap(seed=1, resamples=100, confidence=0.9))
assert change.name == "length_ratio" and change.word == "within noise", change

text = Path("params.yaml").read_text()
Path("params.yaml").write_text(text.replace("regressions: {", "regressions: {length_ratio: 0.1, "))
assert params.load().review.regressions["length_ratio"] == 0.1
"""


def test_a_metric_is_one_function_and_one_entry(copy):
    with (copy / "stages/metrics/scoring.py").open("a", encoding="utf-8") as file:
        file.write(METRIC)
    added = '    Metric("length_ratio", "length ratio", "How long answers are.", score=scoring.length_ratio),\n'
    edit("stages/metrics/registry.py", (")\nREGISTRY = ", f"{added})\nREGISTRY = "))
    python(EVALUATED)
    call("make", "--assume-old=setup", "docs")
    assert "length ratio" in (copy / "docs/metrics.md").read_text(encoding="utf-8")


def test_a_parameter_is_one_field_and_one_key(copy):
    edit(
        "stages/params/data.py",
        ("class Split(Section):\n", 'class Split(Section):\n    rounds: Count = knob("Rounds of splitting.")\n'),
        ("from stages.params.kinds import ", "from stages.params.kinds import Count, "),
    )
    edit("params.yaml", ("\nsplit:\n", "\nsplit:\n  rounds: 2\n"))
    python(
        """
from pathlib import Path
from stages import params
from stages.core.cli import UserError

assert params.load().split.rounds == 2 and "split.rounds" in params.read_by("split")
text = Path("params.yaml").read_text()
expected = "is not allowed; expected a whole number >= 1"
for value, error in (("0", f"split.rounds: 0 {expected}"), ("many", f"split.rounds: 'many' {expected}")):
    Path("params.yaml").write_text(text.replace("rounds: 2", f"rounds: {value}"))
    try:
        params.load()
    except UserError as refused:
        assert error in str(refused), refused
    else:
        raise AssertionError("not refused")
Path("params.yaml").write_text(text)
"""
    )
    call("make", "--assume-old=setup", "docs")
    assert "# Rounds of splitting.\n  rounds: 2" in Path("params.yaml").read_text(encoding="utf-8")
    assert "| `split.rounds` | `2` | a whole number >= 1 | Rounds of splitting. | split | all |" in (
        copy / "docs/params.md"
    ).read_text(encoding="utf-8")
    assert json.loads((copy / "docs/params.schema.json").read_text(encoding="utf-8"))["$defs"]["Split"]["properties"][
        "rounds"
    ]


STAGE = '''"""shortest: name the shortest training response."""

from stages.core import files
from stages.core.cli import notice, run
from stages.core.paths import SHORTEST, SPLITS
from stages.dataset import conversations


def main() -> None:
    found = min((one.response for one in conversations.read_jsonl(SPLITS["train"])), key=len)
    files.write_json(SHORTEST, found)
    notice(f"shortest: {found}")


if __name__ == "__main__":
    run(main)
'''
IN_DVC_YAML = """
  shortest:
    cmd: '"$DVC_ROOT/.venv/bin/python" -m stages.shortest'
    deps: [stages/shortest.py, stages/dataset/conversations.py, data/splits/train.jsonl]
    outs: [reports/shortest.json]

plots:
"""


@pytest.mark.slow
def test_a_stage_is_one_file_and_one_entry(clone):
    Path("stages/shortest.py").write_text(STAGE, encoding="utf-8")
    edit("stages/core/paths.py", ("MARKDOWN = ", 'SHORTEST = Path("reports/shortest.json")\nMARKDOWN = '))
    edit("dvc.yaml", ("\nplots:\n", IN_DVC_YAML))
    edit("pyproject.toml", ("report | export | commands", "report | export | shortest | commands"))
    edit("tests/support/commands.py", ('"export"]', '"export", "shortest"]'))
    assert "Running stage 'shortest'" in dvc("repro")
    train = [one["messages"][-1]["content"] for one in lines("data/splits/train.jsonl")]
    assert json.loads(Path("reports/shortest.json").read_text(encoding="utf-8")) == min(train, key=len)
    call("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    call(sys.executable, "-m", "pytest", "-q", "tests/pipeline/test_dependencies.py", "-k", "shortest", env=environment)
    # It imports no other stage: that would be refused.
    edit(
        "stages/shortest.py",
        ("from stages.core import files\n", "from stages import split  # noqa\nfrom stages.core import files\n"),
    )
    assert subprocess.run(["lint-imports"], capture_output=True).returncode == 1


ECHO = {
    "__init__": Path(ROOT / "stages/backends/openai/__init__.py").read_text(encoding="utf-8").replace("openai", "echo"),
    "common/__init__": '"""Nothing is shared so far."""\n',
    "base": '''"""A base that needs no model."""

from stages.core import files
from stages.core.paths import BASE
from stages.params import Params


def prepare(knobs: Params) -> str:
    """Record the greeting."""
    files.write_json(BASE / "base.json", {"greeting": knobs.echo.greeting})
    return "echo"
''',
    "reader": '''"""Counts words."""

import sys
from collections.abc import Sequence

from stages.dataset.conversations import Conversation, ModelReader


class Words:
    """A token is a word."""

    special_tokens: list[str] = []
    control_tokens: list[str] = []
    context = sys.maxsize

    def counts(self, conversations: Sequence[Conversation]) -> list[int | str]:
        """Words of whole conversations."""
        return [sum(self.lengths([message.text for message in one.messages])) for one in conversations]

    def left_out(self, conversations: Sequence[Conversation]) -> list[list[str]]:
        """Nothing."""
        return [[] for _ in conversations]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Words of texts."""
        return [len(text.split()) for text in texts]


def load() -> ModelReader:
    """The reader."""
    return Words()
''',
    "training": '''"""Learns by heart."""

from stages.backends.protocol import Log, Result
from stages.core import files
from stages.core.paths import SPLITS, TUNED
from stages.dataset import conversations
from stages.params import Params

HISTORY: tuple[str, ...] = ("step", "epoch", "train_loss")
VALIDATION_HISTORY: tuple[str, ...] = ("step", "epoch", "validation_loss")


def finetune(knobs: Params, log: Log) -> Result:
    """Keep the first answer."""
    first = next(conversations.read_jsonl(SPLITS["train"])).response
    log({"step": 1, "epoch": 1.0, "train_loss": 1.0})
    TUNED.mkdir(parents=True, exist_ok=True)
    files.write_json(TUNED / "model.json", {"answer": first})
    return Result({"steps": 1}, {"seconds": 0.1})
''',
    "inference": '''"""Answers with the greeting, or with what it learned."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from stages.backends.protocol import Likelihoods, ModelPair
from stages.core.paths import TUNED
from stages.dataset.conversations import Conversation, Message
from stages.params import Params


class Pair:
    """Two texts."""

    def __init__(self, base: str, tuned: str) -> None:
        self.texts = {False: base, True: tuned}

    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """The same for all."""
        return [self.texts[tuned]] * len(conversations), 0

    varies = False

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def price(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> float | None:
        """Nothing."""
        return 0.0

    def likelihoods(self, conversations: Sequence[Conversation], tuned: bool) -> Likelihoods | None:
        """Not known."""
        return None

    def perturbed(self, conversations: Sequence[Conversation], tuned: bool, epsilon: float) -> Likelihoods | None:
        """Not known."""
        return None

    def say(self, messages: Sequence[Message], tuned: bool, max_new_tokens: int, on_text: Callable[[str], Any]) -> str:
        """The same for all."""
        on_text(self.texts[tuned])
        return self.texts[tuned]

    def facts(self) -> dict[str, Any]:
        """None."""
        return {}


def pair(knobs: Params) -> ModelPair:
    """Both."""
    return Pair(knobs.echo.greeting, json.loads((TUNED / "model.json").read_text(encoding="utf-8"))["answer"])
''',
    "export": Path(ROOT / "stages/backends/openai/export/__init__.py").read_text(encoding="utf-8"),
    "doctor": '''"""Needs nothing."""

from collections.abc import Callable, Mapping

from stages.core.diagnosis import Diagnosis
from stages.params import Params

ACCESS: Mapping[str, Callable[[Params], Diagnosis]] = {}


def model(knobs: Params) -> Diagnosis:
    """Always there."""
    return Diagnosis(f"echo, which greets with {knobs.echo.greeting}")
''',
}


@pytest.mark.slow
def test_a_backend_is_one_package_and_one_section(clone):
    for name, text in ECHO.items():
        single = name in ("__init__", "common/__init__", "reader", "doctor")
        path = Path("stages/backends/echo", f"{name}.py" if single else f"{name}/__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    edit("stages/params/kinds.py", ('Literal["unsloth", "openai"]', 'Literal["unsloth", "openai", "echo"]'))
    edit(
        "stages/params/backends.py",
        ("class OpenAI(", 'class Echo(Section):\n    greeting: Text = knob("What the base says.")\n\n\nclass OpenAI('),
    )
    edit(
        "stages/params/models.py",
        (
            "    evaluate: Evaluate",
            '    echo: Echo = knob("For backend: echo.", ReadBy(("finetune",), ("echo",)))\n    evaluate: Evaluate',
        ),
        ("import OpenAI, Unsloth", "import Echo, OpenAI, Unsloth"),
    )
    with Path("params.yaml").open("a", encoding="utf-8") as file:
        file.write("\necho:\n  greeting: Hello\n")
    edit("dvc.yaml", ("stages/backends/openai/base,\n", "stages/backends/openai/base, stages/backends/echo/base,\n"))
    edit(
        "pyproject.toml",
        (
            'modules = ["stages.backends.unsloth", "stages.backends.openai"]',
            'modules = ["stages.backends.unsloth", "stages.backends.openai", "stages.backends.echo"]',
        ),
        (
            'containers = ["stages.backends.unsloth", "stages.backends.openai"]',
            'containers = ["stages.backends.unsloth", "stages.backends.openai", "stages.backends.echo"]',
        ),
    )
    call("git", "add", "-A")
    call("git", "commit", "-qm", "Add a backend")
    assert {"base", "finetune", "evaluate", "report"} <= set(ran(dvc("exp", "run", "-S", "backend=echo")))
    answers = lines("reports/eval/predictions.jsonl")
    first = lines("data/splits/train.jsonl")[0]
    assert {(one["base"], one["tuned"]) for one in answers} == {("Hello", first["messages"][-1]["content"])}
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    assert (
        "echo, which greets with Hello"
        in subprocess.run(
            [sys.executable, "-m", "stages.commands.doctor"], env=environment, capture_output=True, text=True
        ).stdout
    )
    call("mypy", "stages/backends/echo", env=environment)
    call("lint-imports")
