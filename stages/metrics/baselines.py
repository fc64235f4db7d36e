"""What costs almost nothing and should be beaten: answers that are looked up, and prompts with examples.

Only the train split is seen.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from stages.dataset.conversations import Conversation
from stages.metrics import scoring

# So many training conversations go before the prompt as examples.
SHOTS = 5
# Embeddings that are compared at once with all training prompts, and training prompts that are searched at most.
_AT_ONCE = 1000
_SEARCHED = 20_000


@dataclass(frozen=True)
class LookUp:
    """Turns of the train split, to be searched by prompt: for each assistant message it and all that is said before."""

    turns: Sequence[Conversation]

    @classmethod
    def of(cls, train: Iterable[Conversation]) -> "LookUp":
        """All turns of the conversations; of very many an even choice, as each is embedded."""
        kept: list[Conversation] = []
        step = 1
        for number, turn in enumerate(_turns(train)):
            if number % step == 0:
                kept.append(turn)
            if len(kept) > _SEARCHED:
                kept, step = kept[::2], 2 * step
        return cls(kept)

    def nearest(self, test: Sequence[Conversation]) -> list[str]:
        """The response to the most similar training prompt, for each conversation."""
        return [self.turns[rows[0]].response for rows in self._most_similar(test, 1)]

    def constant(self, test: Sequence[Conversation]) -> list[str]:
        """The most typical training response for every conversation: the one most similar to all others on average."""
        responses = tuple(turn.response for turn in self.turns)
        vectors = scoring.embedded(responses)
        return [responses[int(np.argmax(vectors @ vectors.mean(axis=0)))]] * len(test)

    def with_examples(self, test: Sequence[Conversation]) -> list[Conversation]:
        """The conversations with the most similar training conversations as turns before them, the nearest last."""
        return [
            _with_turns(conversation, [self.turns[row] for row in reversed(rows)])
            for conversation, rows in zip(test, self._most_similar(test, SHOTS), strict=True)
        ]

    def _most_similar(self, test: Sequence[Conversation], count: int) -> list[list[int]]:
        """The turns whose prompts are most similar to each conversation's, the most similar first."""
        known = scoring.embedded(tuple(asked(turn) for turn in self.turns))
        vectors = scoring.embedded(tuple(asked(one) for one in test))
        found: list[list[int]] = []
        for start in range(0, len(vectors), _AT_ONCE):
            # Equal ones in the order of the file, whatever the machine's rounding.
            order = np.argsort(-np.round(vectors[start : start + _AT_ONCE] @ known.T, 6), axis=1, kind="stable")
            found += order[:, :count].tolist()
        return found


def _turns(train: Iterable[Conversation]) -> Iterator[Conversation]:
    for one in train:
        for place, message in enumerate(one.messages):
            if message.role == "assistant" and message.text and place and message.weight != 0:
                yield msgspec.structs.replace(one, messages=one.messages[: place + 1])


def asked(conversation: Conversation) -> str:
    """What the prompt says last, by which prompts are compared: on the sample it finds as much as the whole prompt."""
    return conversation.prompt[-1].text


def _with_turns(conversation: Conversation, examples: Sequence[Conversation]) -> Conversation:
    system = [message for message in conversation.messages if message.role == "system"][:1]
    rest = [message for message in conversation.messages if message not in system]
    turns = [message for example in examples for message in example.messages if message.role != "system"]
    return msgspec.structs.replace(conversation, messages=(*system, *turns, *rest))
