"""Run the local service: python -m tests.support.openai_server."""

import argparse
import threading

from tests.support.openai_server.service import OpenAIServer


def main() -> None:
    """Print the server's address and key as shell variables, then serve until interrupted."""
    parser = argparse.ArgumentParser(description="A local stand-in for OpenAI's fine-tuning service.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail", action="append", default=[], metavar='"METHOD PATH before|after HOW"')
    parser.add_argument("--outcome", default="succeeded", choices=("succeeded", "failed", "cancelled", "unknown"))
    args = parser.parse_args()
    server = OpenAIServer(port=args.port)
    server.verbose, server.job_outcome = True, args.outcome
    for text in args.fail:
        method, path, when, how = text.split()
        server.fail(method, path, how, when)
    with server:
        print(f"export OPENAI_BASE_URL={server.url}\nexport OPENAI_API_KEY={server.key}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
