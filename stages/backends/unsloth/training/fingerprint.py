"""One digest of everything that determines the result of training: equal digests mean equal weights."""

import ast
import hashlib
import json
from importlib.metadata import version as installed
from pathlib import Path

from stages import params
from stages.backends.unsloth.training.run import VERSIONS
from stages.core import files
from stages.core.paths import SPLITS
from stages.dataset import conversations
from stages.params import Params

_BACKEND = Path(__file__).parents[1]
_CODE = (
    *(_BACKEND / name for name in ("training", "base", "common", "reader.py")),
    Path(conversations.__file__),
)


def fingerprint(knobs: Params, base: Path) -> str:
    """Digest of training parameters, splits, base model, code, library versions and device."""
    from stages.backends.unsloth.common import device

    determining = [
        params.select(knobs, params.read_by("finetune", "unsloth", decides=("result", "cost"))),
        [files.sha256(SPLITS[name]) for name in ("train", "validation")],
        files.sha256(base),
        [_syntax_tree(path) for place in _CODE for path in _modules(place)],
        [installed(name) for name in VERSIONS],
        device.name(),
    ]
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:16]


def _modules(place: Path) -> list[Path]:
    return sorted(place.glob("*.py")) if place.is_dir() else [place]


def _syntax_tree(path: Path) -> str:
    """The module's syntax tree: editing a comment must not invalidate checkpoints."""
    return ast.dump(ast.parse(path.read_text(encoding="utf-8")))
