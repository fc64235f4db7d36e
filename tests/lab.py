"""The finetune stage in a process of its own, for one run after another: Unsloth, which patches it, is imported once.

Reads folders, one a line, from standard input; runs the stage in each, and answers with its error as JSON, or null.
"""

import json
import os
import sys
import traceback

from stages import finetune
from stages.command import UserError


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        os.chdir(line.strip())
        error = None
        try:
            finetune.main()
        except UserError as raised:
            error = str(raised)
        except Exception:
            error = traceback.format_exc()
        print(json.dumps(error), file=answers)


if __name__ == "__main__":
    main()
