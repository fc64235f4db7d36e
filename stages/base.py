"""base: see whether the backend's base model can be had, and record in `models/base` what it is."""

import shutil

from stages import backends, params
from stages.core.cli import notice, run
from stages.core.paths import BASE


def main() -> None:
    knobs = params.load()
    shutil.rmtree(BASE, ignore_errors=True)
    BASE.mkdir(parents=True)
    notice(f"base: {backends.base(knobs).prepare(knobs)}")
    if knobs.export.formats:
        # Before anything is trained or paid.
        backends.export(knobs).check(knobs)


if __name__ == "__main__":
    run(main)
