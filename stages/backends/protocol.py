"""The interface of a backend: one protocol per module. Each backend's `__init__.py` lets mypy check its modules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.core.cli import UserError
from stages.core.diagnosis import Diagnosis
from stages.dataset.conversations import Conversation, Message, ModelReader
from stages.params import Params

# Appends one row to the training history.
Log = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class LocalModel:
    """What the model card says about a tuned model on this machine.

    `adapter` is False for a full model; `conversations` counts the conversations of each split used in training.
    """

    adapter: bool
    conversations: Mapping[str, int]


@dataclass(frozen=True)
class Result:
    """A finished training run: reproducible metrics, and facts that vary from run to run.

    `groups` are the rows of reports/train/groups.csv, `weights` those of weights.csv; both are empty if the backend
    does not know them. `local` describes the model in models/tuned and is None for a hosted model. `clean_up` deletes
    the checkpoints; call it once all results are written.
    """

    metrics: dict[str, Any]
    run: dict[str, Any]
    groups: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)
    local: LocalModel | None = None
    clean_up: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Likelihoods:
    """Scores of the reference responses, each of shape (conversations,).

    `nll`: negative log-likelihood of the response in nats; `correct`: number of its tokens that the model ranks first;
    `tokens`: number of its tokens, including the end token.
    """

    nll: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray


class UnavailableError(UserError):
    """A model cannot be asked, or no more."""


class ModelPair(Protocol):
    """The base model and the tuned model."""

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The answers so far, to be kept for when the models cannot be asked; none of models that are in models/."""

    @property
    def varies(self) -> bool:
        """Whether greedy answers may differ when they are repeated, and can be repeated at no price."""

    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """Return the greedy answer to each prompt, and how many were truncated at `max_new_tokens`.

        Raises:
            UnavailableError: the model cannot be asked.
        """

    def price(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> float | None:
        """Estimate the most that `answers` would cost, in US dollars; None if unknown."""

    def likelihoods(self, conversations: Sequence[Conversation], tuned: bool) -> Likelihoods | None:
        """Score each conversation's response given its prompt; None if the backend cannot."""

    def perturbed(self, conversations: Sequence[Conversation], tuned: bool, epsilon: float) -> Likelihoods | None:
        """`likelihoods` with embeddings shifted by an L2 norm of `epsilon` in the worst direction, or None."""

    def say(self, messages: Sequence[Message], tuned: bool, max_new_tokens: int, on_text: Callable[[str], Any]) -> str:
        """Stream the greedy answer to `messages` to `on_text`, then return it whole."""

    def facts(self) -> dict[str, Any]:
        """Usage of the answers so far, such as tokens and price."""


class Base(Protocol):
    """base/: the base model."""

    def prepare(self, knobs: Params) -> str:
        """Check that the base model is available, record it in models/base, and return a one-line summary."""


class Reader(Protocol):
    """reader.py: how the base model tokenizes conversations."""

    def load(self) -> ModelReader:
        """Load the tokenizer of the base model recorded in models/base."""


class Training(Protocol):
    """training/: fine-tuning."""

    # Columns of reports/train/history.csv and validation_history.csv.
    HISTORY: tuple[str, ...]
    VALIDATION_HISTORY: tuple[str, ...]

    def finetune(self, knobs: Params, log: Log) -> Result:
        """Train on the splits and write the tuned model to models/tuned."""


class Inference(Protocol):
    """inference/: answers of the base model and the tuned model."""

    def pair(self, knobs: Params) -> ModelPair:
        """Load both models."""


class Export(Protocol):
    """export/: the tuned model for other programs."""

    def check(self, knobs: Params) -> None:
        """Check that the base model can be written in each of `export.formats`, before anything is trained."""

    def write(self, knobs: Params, folder: Path, write_card: Callable[[Path], Any]) -> list[str]:
        """Write the tuned model to `folder` in each of `export.formats`; return the formats written.

        `write_card` writes the model card into a merged model's folder.
        """


class Doctor(Protocol):
    """doctor.py: what the backend needs from the machine."""

    # Further checks by the name under which `make doctor` lists them.
    ACCESS: Mapping[str, Callable[[Params], Diagnosis]]

    def model(self, knobs: Params) -> Diagnosis:
        """Check that the base model is available."""
