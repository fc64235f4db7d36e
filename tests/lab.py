"""The finetune stage in a process of its own, for one run after another: Unsloth, which patches it, is imported once.

Reads lines of JSON from standard input: a folder, and what to observe (see tests/probes.py). Runs the stage there and
answers with its error, or null, and with what was found.
"""

import json
import os
import sys
import traceback

from stages import finetune
from stages.command import UserError

from . import probes


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        folder, probe = json.loads(line)
        os.chdir(folder)
        error, found = None, {}
        try:
            with getattr(probes, probe)() as found:
                finetune.main()
        except UserError as raised:
            error = str(raised)
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([error, found]), file=answers)


if __name__ == "__main__":
    main()
