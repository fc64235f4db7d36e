"""Commands of the project as a user types them, run in the current folder."""

import subprocess

STAGES = ["download", "base", "parse", "validate", "split", "finetune", "evaluate", "report", "export"]


def call(*command, **given):
    """Run a command, which must succeed, and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*arguments):
    return call("dvc", *arguments)


def ran(output):
    """The stages that `dvc repro` or `dvc exp run` ran, by what it printed."""
    return [name for name in STAGES if f"Running stage '{name}'" in output]
