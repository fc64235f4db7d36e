"""Checks a job's files line by line, as the model will read them, and writes them into the job's folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stages.backends.unsloth.reader import IGNORED, Chat
from stages.core import files
from stages.core.cli import UserError
from stages.dataset import conversations
from stages.dataset.conversations import Conversation

FEWEST = 10
_NAMED = 5
_LONGEST_LINE = 4_000_000
# Without a validation file, the best epoch is chosen by the loss on so many conversations of the training file.
_WATCHED = 50


class InvalidFileError(Exception):
    """A file that cannot be trained on; `param` is its role in the job."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Size:
    """Numbers of training examples and of their tokens."""

    examples: int
    tokens: int


def check(chat: Chat, max_length: int, training: Path, validation: Path | None, train: Path, held_out: Path) -> Size:
    """Check the uploaded files `training` and `validation`, and write the splits `train` and `held_out`.

    Raises:
        InvalidFileError: a line cannot be trained on, or there are too few; the message names the first lines.
    """
    train.parent.mkdir(parents=True, exist_ok=True)
    size = _check(chat, max_length, training, train, "training_file", FEWEST)
    if validation:
        _check(chat, max_length, validation, held_out, "validation_file", 1)
    else:
        with train.open("rb") as lines, held_out.open("wb") as out:
            out.writelines(line for _, line in zip(range(_WATCHED), lines, strict=False))
    return size


def _check(chat: Chat, max_length: int, source: Path, target: Path, param: str, fewest: int) -> Size:
    faults: list[str] = []
    count = examples = tokens = 0
    with files.replacing(target) as temporary, temporary.open("wb") as out:
        for count, line in enumerate(_lines(source), 1):
            try:
                conversation = _read(line)
                lengths = _lengths(chat, conversation, max_length)
            except ValueError as error:
                faults.append(f"line {count}: {error}")
                if len(faults) == _NAMED:
                    break
                continue
            examples, tokens = examples + len(lengths), tokens + sum(lengths)
            out.write(conversations.encode(conversation) + b"\n")
    if faults:
        raise InvalidFileError(param, "; ".join([f"Invalid file format. {faults[0]}", *faults[1:]]))
    if count < fewest:
        raise InvalidFileError(param, f"the file has {count} example(s), but must have at least {fewest}")
    return Size(examples, tokens)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends; the rest of one that is too long is not read into memory."""
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            yield line.rstrip(b"\r\n")


def _read(line: bytes) -> Conversation:
    """One line as a conversation.

    Raises:
        ValueError: it is none that can be learned from, and why.
    """
    if not line.strip():
        raise ValueError("empty; remove it")
    if len(line) >= _LONGEST_LINE:
        raise ValueError(f"longer than {_LONGEST_LINE:,} bytes")
    try:
        conversation = conversations.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    messages = conversation.messages
    if not messages or messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's")
    if any(message.weight is not None and message.role != "assistant" for message in messages):
        raise ValueError("only assistant messages can have a weight")
    return conversation


def _lengths(chat: Chat, conversation: Conversation, max_length: int) -> list[int]:
    """Tokens of each training example that the conversation makes.

    Raises:
        ValueError: the model's template rejects it, it is too long, or it has nothing to learn.
    """
    try:
        made = chat.examples(conversation)
    except UserError as error:
        raise ValueError(str(error)) from None
    # Chat templates are third-party code that can raise anything.
    except Exception as error:
        raise ValueError(f"the model's chat template rejects it: {error or type(error).__name__}") from None
    lengths = [len(one.input_ids) for one in made]
    if max(lengths, default=0) > max_length:
        raise ValueError(f"{max(lengths)} tokens; the endpoint's unsloth.max_length is {max_length}")
    if not any(label != IGNORED for one in made for label in one.labels[1:]):
        raise ValueError("no assistant message has weight 1, so there is nothing to learn")
    return lengths
