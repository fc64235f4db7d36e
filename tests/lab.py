"""The finetune stage, run again and again, each time in a process that is as new as one that DVC starts.

Unsloth takes long to import and patches the process that imports it. So this process imports it, loads a model once,
which fills the libraries' caches, and then forks a child for each run: the next one sees nothing of it, and one that is
killed takes nothing with it.

Reads lines of JSON from standard input: a folder, and what to observe or disturb (see tests/probes.py) with what that
is given. Runs the stage there and answers with its error, or null, and with what was found.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

from stages import finetune, params
from stages.backends.unsloth import trainable
from stages.command import UserError

from . import probes
from .small import make_base


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
    trainable.start()
    from stages.backends.unsloth import card, fingerprint, training, tuned, weights  # noqa: F401
    from stages.training import checkpoints, movement, progress, trainer  # noqa: F401

    trainable.load(make_base(Path("base")), params.load(Path(__file__).parent.parent / "params.yaml"))
    # Children need not look through what is here already.
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
