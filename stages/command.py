"""What every stage's command line has in common: errors for the user, -v, Ctrl-C, and not outliving DVC."""

import contextlib
import functools
import io
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import psutil

_VERBOSE = {"-v", "-vv", "--verbose"}
_PARENT_CHECK_SECONDS = 1.0
# Where notices go while libraries' banners are dropped; None is the usual place.
_own_stdout: TextIO | None = None


class UserError(Exception):
    """A fault that the user can mend: what is wrong, where, what was expected and what to do next.

    Lines after the first are indented under it when printed.
    """


def printable(text: str) -> str:
    """Text that came from outside, in one line: a terminal would obey control characters, line breaks fake messages."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def notice(text: str) -> None:
    """Print one plain line about a decision that the pipeline made for the user, with its reason."""
    print(text, file=_own_stdout, flush=True)


@functools.cache
def verbose() -> bool:
    """Whether -v was given, to this command or to the `dvc` that runs it: all of the libraries' output, tracebacks."""
    dvc = _dvc()
    return not _VERBOSE.isdisjoint([*sys.argv[1:], *(dvc.cmdline() if dvc else [])])


def quiet_libraries() -> None:
    """Keep the libraries' warnings and bars from burying the pipeline's own lines, unless -v asks for them."""
    from transformers.utils import logging as transformers_logging

    if not verbose():
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def without_banners() -> Iterator[None]:
    """Drop what libraries print while the block runs, unless -v asks for it; notices come through."""
    global _own_stdout
    if verbose() or _own_stdout:
        yield
        return
    _own_stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _own_stdout = None


def run(main: Callable[[], None]) -> None:
    """Run a command's `main` and turn what it raises into one readable message and an exit status.

    Exit status 1 for any error, 130 for Ctrl-C. `-v` prints Python's traceback as well.
    """
    _end_with_dvc()
    if not verbose():
        warnings.simplefilter("ignore")
        # It looks for a package of kernels that nothing here needs, and says so as soon as it is imported.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Every command takes -v, so that none has to say so.
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in _VERBOSE]
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(_report("stopped by Ctrl-C", status=130))
    except UserError as error:
        sys.exit(_report(str(error), status=1))
    except Exception as error:
        asked = "add -v to see where it happened"
        sys.exit(_report(f"unexpected {type(error).__name__}: {error}\n{asked}", status=1))


def _report(message: str, status: int) -> int:
    if verbose():
        traceback.print_exc()
    first, *rest = message.splitlines()
    print("\n".join([f"error: {first}", *(f"  {line}" for line in rest)]), file=sys.stderr, flush=True)
    return status


def _end_with_dvc() -> None:
    """End this process when the `dvc` that started it is gone.

    A killed `dvc` leaves its stage running; the next `dvc repro` would start a second training beside it.
    """
    if dvc := _dvc():
        threading.Thread(target=_exit_after, args=(dvc,), daemon=True).start()


@functools.cache
def _dvc() -> psutil.Process | None:
    """The `dvc` that started this process, or None."""
    return next((parent for parent in psutil.Process().parents() if _is_dvc(parent)), None)


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
