"""What only a GPU can show, in at most eight minutes: the tests marked `gpu`, then the benchmark.

    make gpu-check

It needs no network: tokenizers, models and data are made on the spot. Its output ends with a table for docs/gpu.md.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = "tests/backends/unsloth/test_on_a_gpu.py"
SECONDS = 470
# At most so many of these for the tests; the benchmark gets what they leave.
FOR_TESTS = 200


def main() -> None:
    begin = time.monotonic()
    root = Path(__file__).parents[1]
    try:
        from stages.backends.unsloth.common import device

        kind = device.kind()
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing; docs/gpu.md says how to install packages without a network")
    if kind == "cpu":
        sys.exit("error: no GPU that torch can use; `make doctor` says why")
    environment = {
        **os.environ,
        "GPU_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(root),
    }
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--tb=short", "--durations=0", TESTS]
    passed = _within(tests, FOR_TESTS, environment, root)
    left = SECONDS - (time.monotonic() - begin)
    # It watches its own time; the limit is for a process that hangs.
    measured = _within([sys.executable, "-m", "tests.gpu_benchmark", f"{left - 15:.0f}"], left, environment, root)
    print(f"gpu-check: tests {passed}, benchmark {measured}, {time.monotonic() - begin:.0f} s")
    sys.exit((passed, measured) != ("passed", "passed"))


def _within(command: list[str], seconds: float, environment: dict[str, str], root: Path) -> str:
    """Run a command, and end it with all that it started after so many seconds: how it went."""
    print(f"gpu-check: {' '.join(command[1:])}, at most {seconds:.0f} s", flush=True)
    with subprocess.Popen(command, env=environment, cwd=root, start_new_session=True) as started:
        try:
            return "failed" if started.wait(seconds) else "passed"
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
