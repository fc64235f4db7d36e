"""What every stage's command line has in common: errors for the user, Ctrl-C, and not outliving DVC."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

TRACEBACK = "TRACEBACK"
_PARENT_CHECK_SECONDS = 1.0


class UserError(Exception):
    """A fault that the user can mend: what is wrong, where, what was expected and what to do next.

    Lines after the first are indented under it when printed.
    """


def notice(text: str) -> None:
    """Print one plain line about a decision that the pipeline made for the user, with its reason."""
    print(text, flush=True)


def quiet_transformers() -> None:
    """Keep transformers' warnings and bars from burying the pipeline's own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main` and turn what it raises into one readable message and an exit status.

    Exit status 1 for any error, 130 for Ctrl-C. `TRACEBACK=1` in the environment prints Python's traceback as well.
    """
    _end_with_dvc()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(_report("stopped by Ctrl-C", status=130))
    except UserError as error:
        sys.exit(_report(str(error), status=1))
    except Exception as error:
        asked = f"set {TRACEBACK}=1 to see where it happened"
        sys.exit(_report(f"unexpected {type(error).__name__}: {error}\n{asked}", status=1))


def _report(message: str, status: int) -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    first, *rest = message.splitlines()
    print("\n".join([f"error: {first}", *(f"  {line}" for line in rest)]), file=sys.stderr, flush=True)
    return status


def _end_with_dvc() -> None:
    """End this process when the `dvc` that started it is gone.

    A killed `dvc` leaves its stage running; the next `dvc repro` would start a second training beside it.
    """
    dvc = next((parent for parent in psutil.Process().parents() if _is_dvc(parent)), None)
    if dvc is not None:
        threading.Thread(target=_exit_after, args=(dvc,), daemon=True).start()


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _exit_after(process: psutil.Process) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(_PARENT_CHECK_SECONDS)
    print("error: stopped, because the dvc that started this stage is gone", file=sys.stderr, flush=True)
    os._exit(1)
