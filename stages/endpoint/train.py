"""One job's training in a process of its own, started in the job's folder: python -m stages.endpoint.train

Reads the parameters from plan.json, trains with the backend as the finetune stage does, and writes result.json last.
Standard output carries a line of JSON for each row of the history, and one for an error. The process ends when its
standard input does, so it never outlives the service.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from stages import backends
from stages.core import files
from stages.core.cli import UserError
from stages.endpoint.jobs import PLAN, RESULT
from stages.params import Params


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # What libraries print belongs into the log.
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    sys.exit(train(channel))


def train(channel: TextIO) -> int:
    """Train in the current folder; return the exit status."""

    def say(**line: Any) -> None:
        print(json.dumps(line), file=channel, flush=True)

    try:
        knobs = Params.model_validate_json(Path(PLAN).read_text(encoding="utf-8"))
        result = backends.training(knobs).finetune(knobs, lambda row: say(row=row))
        files.write_json(Path(RESULT), {"metrics": result.metrics, "run": result.run})
        result.clean_up()
    except UserError as error:
        say(error=str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        say(error=f"unexpected {type(error).__name__}; the traceback is in the endpoint's log of the job")
        return 1
    return 0


def _end_with(stream: TextIO) -> None:
    try:
        stream.read()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
