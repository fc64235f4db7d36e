"""What every stage's command line has in common: errors for the user, -v, Ctrl-C, and not outliving DVC."""

import argparse
import contextlib
import functools
import io
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import psutil

from stages.core import files
from stages.core.text import harmless

_VERBOSE = {"-v", "-vv", "--verbose"}
_PARENT_CHECK_SECONDS = 1.0
_TRACEBACKS_KEPT = 10
# Names of environment variables that hold secrets. A shorter value would be found in any text.
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_SHORTEST_SECRET = 6
# Where notices go while libraries' banners are dropped; None is the usual place.
_own_stdout: TextIO | None = None


class UserError(Exception):
    """An error that the user can fix: what is wrong, where, what was expected and what to do next.

    Lines after the first are indented under it when printed.
    """


def notice(text: str) -> None:
    """Print one plain line about a decision that the pipeline made for the user, with its reason."""
    print(harmless(text), file=_own_stdout, flush=True)


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


def run(main: Callable[[], None], parses: bool = False) -> None:
    """Run a command's `main` and turn what it raises into one readable message and an exit status.

    Exit status 1 for any error, 2 for wrong arguments, 130 for Ctrl-C. Every command takes -v, which prints Python's
    traceback as well, and --help. `parses` says that `main` reads the other arguments itself, with `parser`; else there
    are none.
    """
    _end_with_dvc()
    _show_any_text()
    if not verbose():
        warnings.simplefilter("ignore")
        # It looks for a package of kernels that nothing here needs, and says so as soon as it is imported.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in _VERBOSE]
    try:
        _refuse_without_docstrings()
        if not parses:
            parser(main).parse_args()
        main()
    except KeyboardInterrupt:
        sys.exit(_report("stopped by Ctrl-C", status=130))
    except UserError as error:
        sys.exit(_report(str(error), status=1))
    except Exception as error:
        sys.exit(_report(f"unexpected {type(error).__name__}: {error}\n{_kept_traceback()}", status=1))


def parser(main: Callable[[], None]) -> argparse.ArgumentParser:
    """The parser of a command's arguments; its help begins with the docstring of the module that has `main`."""
    module = main.__globals__
    spec = module.get("__spec__")
    found = argparse.ArgumentParser(
        prog=f"python -m {spec.name}" if spec else None,
        description=module["__doc__"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("-v", "--verbose", action="store_true", help="show the output of libraries, and tracebacks")
    return found


def _show_any_text() -> None:
    """Print signs that the terminal's or pipe's encoding lacks as escapes; Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse_without_docstrings() -> None:
    if sys.flags.optimize > 1:
        raise UserError(
            "Python runs without docstrings, which Transformers and Great Expectations need; unset PYTHONOPTIMIZE, or"
            " start Python without -OO"
        )


def _kept_traceback() -> str:
    """Write the traceback of the current error to a file, and name it: nobody should repeat hours to see it."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        folder = files.state_dir("errors")
        for old in sorted(folder.glob("*.txt"))[: 1 - _TRACEBACKS_KEPT]:
            old.unlink(missing_ok=True)
        files.write_text(folder / name, f"{' '.join(sys.argv)}\n{_without_secrets(traceback.format_exc())}")
    except OSError:
        return "run again with -v to see where it happened"
    return f"this is a bug; the traceback is in {os.path.relpath(folder / name)}"


def _without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "•••")
    return text


def _report(message: str, status: int) -> int:
    if verbose():
        traceback.print_exc()
    first, *rest = harmless(message).split("\n")
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
