"""What decides the result of a training here, as one digest: equal digest, equal weights."""

import hashlib
import json
from importlib.metadata import version as installed
from pathlib import Path

from stages import files
from stages.backends.unsloth.training import VERSIONS
from stages.params import Params
from stages.paths import SPLITS

# Sections that say how data comes in, what another backend does, or what is measured afterwards.
_ELSEWHERE = {"data", "gate", "split", "openai", "evaluate", "checkpoint", "export", "review"}
_STAGES = Path(__file__).parents[2]
_CODE = (Path(__file__).parent, _STAGES / "training", _STAGES / "conversations.py")


def fingerprint(knobs: Params, base: Path) -> str:
    """Digest of the knobs of training, the splits, the base's record, the code, the libraries and the device."""
    import torch

    decides = {
        "knobs": knobs.model_dump(exclude=_ELSEWHERE),
        "splits": [files.sha256(SPLITS[name]) for name in ("train", "validation")],
        "base": files.sha256(base),
        "code": [files.sha256(path) for place in _CODE for path in _modules(place)],
        "versions": [installed(name) for name in VERSIONS],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _modules(place: Path) -> list[Path]:
    return sorted(place.glob("*.py")) if place.is_dir() else [place]
