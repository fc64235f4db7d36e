"""What is handed from the API to the models and back."""

from dataclasses import dataclass
from pathlib import Path

from stages.dataset.conversations import Conversation


@dataclass(frozen=True)
class Served:
    """A model: the folder of its base as prepared, and of a job if it is tuned; `said` is what it really is."""

    base: Path
    job: Path | None
    said: str


@dataclass(frozen=True)
class Asked:
    """A prompt and how to answer it. `temperature` 0 is greedy; `most` None leaves the length to the endpoint."""

    conversation: Conversation
    most: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None


@dataclass(frozen=True)
class Answer:
    """An answer, why it ended (`stop` or `length`), and the tokens of prompt and answer."""

    text: str
    reason: str
    prompt_tokens: int
    tokens: int
