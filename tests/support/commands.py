"""Run the project's commands in the current folder, as a user would."""

import subprocess

STAGES = ["base", "download", "parse", "validate", "split", "finetune", "evaluate", "report", "export"]


def call(*command, **given):
    """Run a command, which must succeed, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*arguments):
    return call("dvc", *arguments)


def ran(output):
    """The stages run by `dvc repro` or `dvc exp run`, from its output."""
    return [name for name in STAGES if f"Running stage '{name}'" in output]
