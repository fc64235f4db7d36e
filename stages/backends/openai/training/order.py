"""What is asked of the service, and the fingerprint by which its job is found again."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core import files
from stages.core.paths import SPLITS
from stages.params import Params

# The key of a job's metadata that names its training.
FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Order:
    """A request to the service: everything that determines the result."""

    endpoint: str
    model: str
    method: dict[str, Any]  # the request's field `method`, or {"hyperparameters": ...} for the top level
    seed: int
    suffix: str | None
    attempt: int
    contents: dict[str, str]  # sha256 of each uploaded split
    extra_body: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, endpoint: str, knobs: Params) -> "Order":
        """Build the order from the parameters and the splits."""
        extra = dict(knobs.openai.extra_body)
        chosen = {
            "n_epochs": knobs.whole_epochs,
            "batch_size": knobs.batch_size,
            "learning_rate_multiplier": knobs.openai.learning_rate_multiplier,
        } | (extra.pop("hyperparameters", None) or {})
        # null takes one of them out, for services that do not know it.
        hyperparameters = {"hyperparameters": {name: value for name, value in chosen.items() if value is not None}}
        top_level = knobs.openai.hyperparameters == "top_level"
        return cls(
            endpoint,
            knobs.openai.model,
            hyperparameters if top_level else {"type": "supervised", "supervised": hyperparameters},
            knobs.seed,
            knobs.openai.suffix,
            knobs.openai.attempt,
            {split: files.sha256(SPLITS[split]) for split in ("train", "validation")},
            extra,
        )

    @property
    def fingerprint(self) -> str:
        """Identifies the order; 64 hexadecimal digits."""
        # Jobs that were paid before there was an extra body must be found.
        decides = {name: value for name, value in vars(self).items() if name != "extra_body" or value}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """Hyperparameters and extra body as arguments of the SDK's request for a job."""
        method = {"method": self.method} if "type" in self.method else self.method
        return method | ({"extra_body": self.extra_body} if self.extra_body else {})

    def file_name(self, split: str) -> str:
        """The name under which a split is uploaded; identifies order and content."""
        return f"{split}-{self.fingerprint[:16]}-{self.contents[split][:16]}.jsonl"

    @property
    def state(self) -> Path:
        """The state file, which records the order's files and job."""
        return files.state_dir("openai") / f"{self.fingerprint}.json"

    def saved(self) -> dict[str, Any]:
        """Contents of the state file: the `job`, or the time when one was `asked` for whose outcome is unknown."""
        return dict(json.loads(self.state.read_text(encoding="utf-8"))) if self.state.exists() else {}
