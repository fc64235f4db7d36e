"""Wrong parameters end in a sentence of this project, also when every stage is up to date."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def refused(*arguments):
    done = subprocess.run(["dvc", *arguments], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("backend=openia", "backend: 'openia' is not allowed; expected one of unsloth, openai"),
        ("data.source=nowhere", "data.source: 'nowhere' is not in data.sources; "),
        ("lr=fast", "lr: 'fast' is not allowed; expected a number > 0 and <= 1"),
        ("+learning_rate=0.1", "learning_rate: unknown key; "),
        ("+review.tolerance=1", "review.tolerance: unknown key; known: regressions"),
        (
            "data.sources.sample.format=csv",
            "data.sources.sample.format: 'csv' is not allowed; expected one of messages,",
        ),
        ("evaluate.confidence=95", "evaluate.confidence: 95 is not allowed; expected a number >= 0.5 and < 1"),
        ("export.formats=[onnx]", "export.formats.0: 'onnx' is not allowed; expected one of safetensors, gguf, ollama"),
        ("+review.regressions.lss=1", "review.regressions: 'lss' is not a metric; did you mean 'loss'?"),
    ],
)
def test_a_wrong_parameter_is_refused_whatever_is_up_to_date(clone, setting, sentence):
    output = refused("exp", "run", "-S", setting)
    assert "error: params.yaml has 1 error; fix it, or the -S that set it" in output
    assert sentence in output and "No such file or directory" not in output


def test_an_unknown_key_in_the_file_is_refused_by_repro(clone):
    with Path("params.yaml").open("a", encoding="utf-8") as file:
        file.write("backends: unsloth\n")
    assert re.search(r"backends: unknown key; did you mean 'backend'\?", refused("repro"))
