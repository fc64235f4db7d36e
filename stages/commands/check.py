"""check: whether dvc.lock and the reports in Git belong to the code, the parameters and the data beside them.

    python -m stages.commands.check

Nothing is run, pulled or asked of a network, and no cache is needed: what only DVC's cache holds is taken at the word
of dvc.lock, and everything that Git holds is compared with it. A stale stage is named with what changed in it.

Only what dvc.yaml declares is seen. It leaves out how files are written, found and reported on the terminal
(stages/core/files.py, paths.py, cli.py), and how params.yaml is read (stages/params): an edit there would run every
stage again. `make doctor` says whether the packages are installed as constraints.txt pins them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages import params
from stages.core import artifacts, yaml_text
from stages.core.cli import UserError, notice, run
from stages.core.flatten import flat, plain, without_credentials
from stages.core.templates import clip

# Longest value that is shown of a parameter.
_LIMIT = 60


def main() -> None:
    params.load()
    try:
        _refuse_endless()
        with Repo() as repo:
            stale = stale_stages(repo)
            count = len(repo.index.stages)
    except (DvcException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"DVC cannot read dvc.yaml or dvc.lock: {' '.join(str(error).split())}") from None
    if stale:
        how_many = f"{len(stale)} of {count} stages {'is' if len(stale) == 1 else 'are'} stale"
        what = f"{how_many}: dvc.lock and the reports were made from other inputs; run `dvc repro`, then commit both"
        raise UserError("\n".join([what, *(f"{name}: {why}" for name, reasons in stale.items() for why in reasons)]))
    notice(f"dvc.lock and the reports match the code, parameters and data here: {count} stages")


def _refuse_endless() -> None:
    """Read first, with bounds, what DVC reads without.

    Raises:
        ValueError, yaml.YAMLError: a file is no YAML within bounds.
    """
    for path in (Path("dvc.yaml"), Path("dvc.lock")):
        if path.exists():
            yaml_text.parse(artifacts.content(path).decode())


def stale_stages(repo: Repo) -> dict[str, list[str]]:
    """What changed in each stale stage since the run that dvc.lock records, in dvc.yaml's order.

    Raises:
        DvcException: dvc.yaml or dvc.lock is not what DVC writes and reads.
    """
    made = {out.fs_path: out for stage in repo.index.stages for out in stage.outs}
    found = {stage.name: list(_reasons(stage, made)) for stage in repo.index.stages}
    return {name: reasons for name, reasons in found.items() if reasons}


def _reasons(stage: Any, made: dict[str, Any]) -> Iterator[str]:
    if not any(one.hash_info for one in [*stage.deps, *stage.outs]):
        yield "dvc.lock has no run of it"
        return
    if stage.cmd_changed:
        yield "its command changed"
    for dep in stage.deps:
        yield from _parameters(dep) if dep in stage.params else _dependency(dep, made.get(dep.fs_path))
    for out in stage.outs:
        yield from _out(out)


def _parameters(dep: Any) -> Iterator[str]:
    """Each parameter that differs, with both values."""
    recorded, actual = dep.hash_info.value or {}, dep.read_params()
    for name in dep.params or dict.fromkeys([*actual, *recorded]):
        then, now = ({name: values[name]} if name in values else {} for values in (recorded, actual))
        if then != now:
            before, after = (without_credentials(flat(values, plain)) for values in (then, now))
            differing = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
            # Values that are empty, or hidden in an address, look alike.
            yield from (f"{key} {_shown(before, key)} → {_shown(after, key)}" for key in differing or [name])


def _shown(values: dict[str, str], key: str) -> str:
    return clip(values.get(key, "absent"), _LIMIT)


def _dependency(dep: Any, made: Any) -> Iterator[str]:
    """What is wrong with a file or folder; `made` is the out of another stage that it is, or None."""
    if not dep.hash_info:
        yield f"{dep} is a new dependency"
    elif made is not None:
        if made.hash_info != dep.hash_info:
            yield f"{dep} was made again since"
    elif not dep.exists:
        yield f"{dep} is missing"
    elif dep.changed_checksum():
        yield f"{dep} changed"


def _out(out: Any) -> Iterator[str]:
    if not out.hash_info:
        yield f"{out} is a new out"
    elif out.exists:
        if out.changed_checksum():
            yield f"{out} is not what the run wrote"
    elif not out.use_cache:
        # Git holds it, so a clone has it; what the cache holds need not be here.
        yield f"{out} is missing"


if __name__ == "__main__":
    run(main)
