"""What the last commit holds: files in Git, and DVC's outs where they still lie in the cache. Nothing is fetched."""

import subprocess
from pathlib import Path
from typing import Any

import yaml


def text(path: Path) -> str | None:
    """A file's text in the last commit; None where there is no commit, or no such file in it."""
    # "./" makes the path relative to this folder, which need not be Git's top folder.
    done = subprocess.run(["git", "show", f"HEAD:./{path.as_posix()}"], capture_output=True)
    return done.stdout.decode() if done.returncode == 0 else None


def checksums() -> dict[str, str]:
    """MD5 of each out of the last committed run, by its path."""
    lock = yaml.safe_load(text(Path("dvc.lock")) or "{}")
    stages: dict[str, Any] = lock.get("stages", {})
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}


def cached(checksum: str) -> Path | None:
    """Where DVC's cache holds a file; None where it does not."""
    from dvc.repo import Repo

    with Repo() as repo:
        path = Path(repo.cache.local.oid_to_path(checksum))
    return path if path.exists() else None
