"""Runs the finetune stage repeatedly, each time in a process as fresh as one started by DVC.

Unsloth is slow to import and patches the process that imports it. So this process imports it, loads a model once to
fill the libraries' caches, and forks a child for each run: runs cannot affect each other, even if they are killed.

Reads lines of JSON from standard input: a folder, a probe (see probes.py) and its arguments. Runs the stage in the
folder and answers with its error or null, and with what the probe found.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

from stages import finetune, params
from stages.backends.unsloth.training import model
from stages.core.cli import UserError
from tests.support import probes
from tests.support.small import make_base


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warm_up()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            print(json.dumps(run(*json.loads(line))), file=answers)
            os._exit(0)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            print(json.dumps([f"the process ended with {code}", {}]), file=answers)


def warm_up() -> None:
    model.start()
    from stages.backends.unsloth.base import weights  # noqa: F401
    from stages.backends.unsloth.training import callbacks, checkpoints, trainer, weight_change  # noqa: F401

    model.load(make_base(Path("base")), params.load(Path(__file__).parents[2] / "params.yaml"))
    # Keep the garbage collector of the children away from existing objects.
    gc.collect()
    gc.freeze()


def run(folder: str, probe: str, given: list) -> tuple[str | None, dict]:
    os.chdir(folder)
    found: dict = {}
    try:
        with getattr(probes, probe)(*given) as found:
            finetune.main()
    except UserError as raised:
        return str(raised), found
    except Exception:
        return traceback.format_exc(), found
    return None, found


if __name__ == "__main__":
    main()
