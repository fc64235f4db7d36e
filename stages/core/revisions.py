"""What a commit or the workspace holds: files in Git, and DVC's outs where they still lie in the cache.

Nothing is fetched. An experiment of DVC is a commit too, found by its name.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import artifacts, yaml_text
from stages.core.artifacts import intact
from stages.core.cli import UserError

# Branches that a change is made for, in the order in which they are looked for: what is shared before what is here.
_TRUNKS = ("origin/HEAD", "origin/main", "origin/master", "main", "master")


@dataclass(frozen=True)
class Revision:
    """A commit, or the workspace where `commit` is None; `name` is what people call it."""

    name: str
    commit: str | None

    def content(self, path: Path) -> bytes | None:
        """A file's bytes; None where there is no commit, or no such file in it.

        Raises:
            UserError: it is larger than any that a stage writes.
        """
        with intact(f"{path} of {self.name}"):
            if self.commit is None:
                return artifacts.content(path) if path.is_file() else None
            # "./" makes the path relative to this folder, which need not be Git's top folder.
            place = f"{self.commit}:./{path.as_posix()}"
            size = _git("cat-file", "-s", place)
            if size is not None and int(size) > artifacts.LIMIT:
                raise ValueError(f"it has more than {artifacts.LIMIT:,} bytes")
            return _git("show", place)

    def text(self, path: Path) -> str | None:
        """`content` as text.

        Raises:
            UserError: it is not text in UTF-8, or too large.
        """
        content = self.content(path)
        with intact(f"{path} of {self.name}"):
            return None if content is None else content.decode()

    def checksums(self) -> dict[str, str]:
        """MD5 of each out of the run that dvc.lock records, by its path.

        Raises:
            UserError: it is not what DVC writes.
        """
        with intact(f"dvc.lock of {self.name}", "take one side of a merge whole, then `dvc repro`"):
            lock = yaml_text.parse(self.text(Path("dvc.lock")) or "{}")
            stages: dict[str, Any] = lock.get("stages", {})
            return {out["path"]: _md5(out["md5"]) for stage in stages.values() for out in stage.get("outs", [])}


def _md5(text: str) -> str:
    # DVC makes a path of it, in its cache.
    if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", text):
        raise ValueError("an md5 has 32 hexadecimal digits")
    return text


WORKSPACE = Revision("workspace", None)
HEAD = Revision("HEAD", "HEAD")


def resolve(name: str) -> Revision:
    """The commit, branch, tag or experiment of this name; `workspace` is the workspace.

    Raises:
        UserError: there is none, or several experiments have this name.
    """
    if name == WORKSPACE.name:
        return WORKSPACE
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev

    _require_history()
    with Repo() as repo:
        try:
            return Revision(name, resolve_rev(repo.scm, name))
        except RevError as error:
            raise UserError(
                f"{error}; `git log --all` lists commits, `dvc exp list --all-commits` experiments"
            ) from None


def branching_point() -> Revision:
    """Where the work here left the main branch; without such a branch the last commit, where the work differs from it.

    Raises:
        UserError: there is nothing to compare with: no commit, a history that is cut off, or neither a main branch nor
            a difference from the last commit.
    """
    _require_history()
    trunk = next((one for one in _TRUNKS if _git("rev-parse", "--verify", f"{one}^{{commit}}") is not None), None)
    if trunk is None:
        return _last_commit()
    found = _git("merge-base", "HEAD", trunk)
    if found is None:
        raise UserError(
            f"{trunk} and the work here have no commit in common: the history is cut off here; `git fetch --unshallow`,"
            " or name a revision"
        )
    commit = found.decode().strip()
    return Revision(f"{_spoken(trunk)} ({commit[:7]})", commit)


def _spoken(trunk: str) -> str:
    """The name of the branch that origin/HEAD points to."""
    name = _git("rev-parse", "--abbrev-ref", trunk)
    return trunk if name is None else name.decode().strip()


def _last_commit() -> Revision:
    # Compared with itself, a finished branch would pass any gate.
    if _git("diff", "--quiet", "HEAD") is not None:
        raise UserError(
            f"none of {', '.join(_TRUNKS)} is here, and nothing differs from the last commit, so there is nothing to"
            " compare with; name a revision or an experiment"
        )
    return HEAD


def _require_history() -> None:
    if _git("rev-parse", "--verify", "HEAD") is None:
        raise UserError("there is no commit here, so nothing to compare with; commit a finished run first")


def _git(*arguments: str) -> bytes | None:
    """What git prints, or None if it fails.

    Raises:
        UserError: git refuses to look at a repository that belongs to another user.
    """
    done = subprocess.run(["git", *arguments], capture_output=True)
    if b"dubious ownership" in done.stderr:
        raise UserError(
            f"git does not read this repository, because its folder belongs to another user\nif you trust it, run: git"
            f" config --global --add safe.directory {shlex.quote(str(Path.cwd()))}"
        )
    return done.stdout if done.returncode == 0 else None


def cached(checksum: str) -> Path | None:
    """Where DVC's cache holds a file; None where it does not."""
    from dvc.repo import Repo

    with Repo() as repo:
        path = Path(repo.cache.local.oid_to_path(checksum))
    return path if path.exists() else None
