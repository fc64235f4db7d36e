"""serve: an endpoint on this machine that speaks OpenAI's fine-tuning API and trains with the Unsloth backend.

    python -m stages.commands.serve [--port N] [--model NAME=BASE]... [--expose ADDRESS]

It listens on this machine only, and each request needs the key that it makes at its first start, prints once and keeps
in .state/endpoint/key. What a job leaves open comes from params.yaml as it was when the endpoint started. Files, jobs
and models are in .state/endpoint; stopped or killed, it resumes its jobs at the next start.
"""

import argparse
from collections.abc import Callable

from stages.core import cli
from stages.core.cli import run
from stages.endpoint.server import Options, serve

PORT = 8041


def main() -> None:
    options = _arguments()
    serve(
        Options(
            port=options.port,
            models=options.model,
            expose=options.expose,
            max_upload=options.max_upload * 1_000_000,
            max_disk=options.max_disk * 1_000_000_000,
            max_jobs=options.max_jobs,
        )
    )


def _arguments() -> argparse.Namespace:
    parser = cli.parser(main)
    parser.add_argument(
        "--port", type=_number(0, 65535), default=PORT, metavar="N", help=f"port, {PORT}; 0: any free one"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=BASE",
        help="serve BASE, as unsloth.model names one (with @REVISION if it needs one), also under this name; answers"
        " and jobs still say what it is",
    )
    parser.add_argument(
        "--expose",
        metavar="ADDRESS",
        help="listen at this address instead of 127.0.0.1: everybody who can reach it and has the key can train, chat"
        " and read files here, and nothing is encrypted",
    )
    parser.add_argument("--max-upload", type=_number(1), default=512, metavar="MB", help="largest file, 512 MB")
    parser.add_argument(
        "--max-disk", type=_number(1), default=50, metavar="GB", help="disk for all files and models, 50 GB"
    )
    parser.add_argument("--max-jobs", type=_number(1), default=100, metavar="N", help="jobs that wait or train, 100")
    return parser.parse_args()


def _number(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for argparse: a whole number in this range."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            upto = f" to {most}" if most is not None else ""
            raise argparse.ArgumentTypeError(f"'{text}' is not allowed; expected a whole number from {least}{upto}")
        return int(text)

    return read


if __name__ == "__main__":
    run(main, parses=True)
