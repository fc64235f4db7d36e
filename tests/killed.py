"""The finetune stage in this folder, killed (kill -9) by itself the Nth time that it gets to a certain place.

python -m tests.killed stages.training.checkpoints.seal 2
"""

import importlib
import os
import sys
from typing import Any

from stages import finetune
from stages.backends.unsloth import trainable


def main() -> None:
    place, times = sys.argv[1], int(sys.argv[2])
    trainable.start()
    *path, name = place.split(".")
    # The last part but one may be a class.
    owner: Any = None
    for part in range(len(path), 0, -1):
        try:
            owner = importlib.import_module(".".join(path[:part]))
        except ModuleNotFoundError:
            continue
        for rest in path[part:]:
            owner = getattr(owner, rest)
        break
    real = getattr(owner, name)

    def deadly(*given: Any, **named: Any) -> Any:
        nonlocal times
        times -= 1
        if not times:
            os.kill(os.getpid(), 9)
        return real(*given, **named)

    setattr(owner, name, deadly)
    finetune.main()


if __name__ == "__main__":
    main()
