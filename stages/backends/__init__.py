"""Who trains and answers: one package for each value of `backend`, all with the functions of `Backend`."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from stages.conversations import Conversation, Message
from stages.params import Params

# Takes one row of a table of history at a time.
Log = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Result:
    """A finished training: metrics that repeat, and facts that vary from run to run.

    `groups` are the rows of reports/train/groups.csv and `weights` those of weights.csv, where the backend can tell.
    `clean_up` removes what a killed training would go on from; call it when all results are written.
    """

    metrics: dict[str, Any]
    run: dict[str, Any]
    groups: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)
    clean_up: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Likelihoods:
    """What the model gives the references, each of shape (conversations,).

    `nll`: negative log-likelihood of the response in nats; `correct`: how many of its tokens the model ranks first;
    `tokens`: how many there are, the end token included.
    """

    nll: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray


class Reader(Protocol):
    """What the base model makes of a conversation."""

    def counts(self, conversations: Sequence[Conversation]) -> Sequence[int | str]:
        """Lengths of whole conversations in tokens, 0 for one without messages; where it can read none, the reason."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Lengths of plain texts in tokens, without what a template adds."""

    @property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer turns into one token with a meaning of its own, such as the end token."""

    @property
    def context(self) -> int:
        """How many tokens the model can read."""


class Pair(Protocol):
    """The base model and the tuned one."""

    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """The most likely answer to each prompt, and how many were cut because they reached `max_new_tokens`."""

    def likelihoods(self, conversations: Sequence[Conversation], tuned: bool) -> Likelihoods | None:
        """Scores of each conversation's response, given its prompt; None where the backend cannot tell."""

    def perturbed(self, conversations: Sequence[Conversation], tuned: bool, epsilon: float) -> Likelihoods | None:
        """`likelihoods` on embeddings moved by an L2 norm of `epsilon` in the worst direction, or None."""

    def say(self, messages: Sequence[Message], tuned: bool, max_new_tokens: int, on_text: Callable[[str], Any]) -> str:
        """The most likely answer to `messages`, handed to `on_text` piece by piece as it comes, and then whole."""

    def facts(self) -> dict[str, Any]:
        """What the answers took, such as tokens and their price."""


class Backend(Protocol):
    """The functions of each package here."""

    # Columns of reports/train/history.csv and validation_history.csv.
    HISTORY: tuple[str, ...]
    VALIDATION_HISTORY: tuple[str, ...]

    def prepare(self, knobs: Params) -> str:
        """Check that the base model can be had, record in models/base what it is, and say so in a line."""

    def reader(self) -> Reader:
        """The base model's way to read, from models/base."""

    def finetune(self, knobs: Params, log: Log) -> Result:
        """Train on the splits and leave the tuned model in models/tuned."""

    def pair(self, knobs: Params) -> Pair:
        """Base and tuned model, ready to answer."""


def chosen(knobs: Params) -> Backend:
    """The backend that the parameters name."""
    return cast(Backend, importlib.import_module(f"stages.backends.{knobs.backend}"))
