"""chat: talk to the tuned model, and, asked to, to the base as well, word by word as they answer.

    python -m stages.commands.chat [--base] [--system TEXT] [--max-new-tokens N]

On a terminal it asks for one question after the other, until Ctrl-D or Ctrl-C; from a pipe it takes one a line. Each
model remembers its own answers.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from stages import backends, params
from stages.backends.protocol import ModelPair
from stages.core import cli
from stages.core.cli import UserError, run
from stages.core.paths import BASE, SPLITS, TUNED
from stages.core.text import harmless
from stages.dataset import conversations
from stages.dataset.conversations import Message

_TUNED, _BASE = "tuned", "base"


def main() -> None:
    options = _arguments()
    knobs = params.load()
    for path in (TUNED, BASE):
        if not path.exists():
            raise UserError(f"{path} is missing; `dvc repro` makes it, and `dvc pull` brings it where it was pushed")
    system = _learned_system(SPLITS["train"]) if options.system is None else options.system
    pair = backends.inference(knobs).pair(knobs)
    with contextlib.suppress(KeyboardInterrupt):
        talk(pair, [_BASE, _TUNED] if options.base else [_TUNED], system, options.max_new_tokens)
    print()


def talk(pair: ModelPair, models: list[str], system: str, max_new_tokens: int) -> None:
    """Answer the questions on standard input until they end; an empty `system` is none."""
    histories = {model: [Message("system", system)] if system else [] for model in models}
    for question in _questions():
        for model, history in histories.items():
            print(f"{model}> ", end="", flush=True)
            history.append(Message("user", question))
            said = pair.say(history, model == _TUNED, max_new_tokens, _show)
            history.append(Message("assistant", said))
            print(flush=True)


def _questions() -> Iterator[str]:
    """The questions on standard input, one a line; blank lines are skipped."""
    if sys.stdin.isatty():
        # Gives input() its line editing and its history.
        import readline  # noqa: F401

        yield from filter(None, _typed())
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        if question := _decoded(line, number).strip():
            print(harmless(f"you> {question}"), flush=True)
            yield question


def _typed() -> Iterator[str]:
    with contextlib.suppress(EOFError):
        while True:
            yield input("you> ").strip()


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input, line {number}: byte {error.start + 1} is not UTF-8; save the questions in UTF-8"
        ) from None


def _learned_system(train: Path) -> str:
    """The system prompt of the training conversations, where they are here and all have the same; else nothing."""
    return conversations.shared_system(conversations.read_jsonl(train)) if train.exists() else ""


def _arguments() -> argparse.Namespace:
    parser = cli.parser(main)
    parser.add_argument("--base", action="store_true", help="let the base model answer each question too")
    parser.add_argument("--system", help="system prompt; without it that of the training data, if they have one")
    parser.add_argument("--max-new-tokens", type=_positive, default=512, metavar="N", help="longest answer, 512 tokens")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not allowed; expected a whole number from 1")
    return int(text)


def _show(text: str) -> None:
    print(harmless(text), end="", flush=True)


if __name__ == "__main__":
    run(main, parses=True)
