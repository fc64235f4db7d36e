"""HTTP with faults: responses that are late, truncated, rejected or not JSON."""

import io
import json
import re
import socket
import struct
import sys
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from stages.endpoint.contract import nested
from tests.support.openai_server.exchange import Answer, Fault, Json, Request


def chunks(head: Json, text: str, reason: str, usage: Json | None) -> list[Json]:
    """A completion as chunks of a stream."""
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in re.findall(r"\s*\S+", text)] + [{}]
    ends = [None] * (len(deltas) - 1) + [reason]
    choices = [{"index": 0, "delta": delta, "finish_reason": end} for delta, end in zip(deltas, ends, strict=True)]
    last = [{"choices": [], "usage": usage}] if usage else []
    return [head | part for part in [{"choices": [choice]} for choice in choices] + last]


def read_body(request: Request) -> None:
    """Parse a JSON or multipart body; an empty body is None."""
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    if not request.raw:
        return
    if kind == "application/json":
        request.body = json.loads(request.raw)
    elif kind == "multipart/form-data":
        parser = FormDataParser(silent=False)
        _, form, files = parser.parse(io.BytesIO(request.raw), kind, len(request.raw), options)
        pairs = [(name, int(value) if value.isdigit() else value) for name, value in form.items(multi=True)]
        request.body = nested(pairs) | {name: "" for name in files}
        if "file" in files:
            request.upload = (files["file"].filename, files["file"].read())
    else:
        raise ValueError(f"unexpected content type {kind!r}")


def refusal(
    status: int, message: str, param: str | None = None, code: str | None = None, form: str = "openai"
) -> Answer:
    """An error response in the service's format."""
    if form == "fastapi":
        detail: Any = [{"loc": ["body", param], "msg": message, "type": "value_error"}] if param else message
        return Answer(status, json.dumps({"detail": detail}).encode())
    if form == "text":
        return Answer(status, message.encode(), "text/plain")
    if form == "html":
        page = f"<!DOCTYPE html><html><head><title>{message}</title></head><body><h1>nginx</h1></body></html>"
        return Answer(status, page.encode(), "text/html")
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = code if code == "insufficient_quota" else "requests"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status, json.dumps({"error": error}).encode())


def spoiled(fault: Fault) -> Answer:
    """The response of a fault that does not need the real response."""
    if fault.how == "garbage":
        return Answer(200, b"<html><body>Just a moment...</body></html>", "text/html")
    details = fault.details
    message = details.get("message", "A failure for a test.")
    answer = refusal(details.get("status", 500), message, None, details.get("code"))
    answer.headers = {name: str(value) for name, value in details.get("headers", {}).items()}
    return answer


class HTTPServer(ThreadingHTTPServer):
    """An HTTP server that ignores disconnecting clients."""

    service: Any
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: HTTPServer

    def setup(self) -> None:
        super().setup()
        self.server.service.connections.add(self.connection)

    def finish(self) -> None:
        self.server.service.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Log nothing: `serve` prints its own lines if verbose."""

    def serve(self) -> None:
        """Answer one request, or fail as configured."""
        service = self.server.service
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = url.path.removeprefix("/v1") if url.path.startswith("/v1/") else f"/..{url.path}"
        service.requests.append((self.command, path))
        fault = service.fault(self.command, path)
        how = fault.how if fault else None
        answer = Answer(200, b"")
        if fault is None or fault.when == "after" or how in ("slow", "truncate"):
            answer = service.answer(Request(self.command, path, url.query, self.headers, raw))
        if fault and how in ("status", "garbage"):
            answer = spoiled(fault)
        if service.verbose:
            print(self.command, self.path, how or answer.status, file=sys.stderr, flush=True)
        self._send(answer, how, fault.details if fault else {})

    do_GET = do_POST = do_DELETE = serve  # noqa: N815

    def _send(self, answer: Answer, how: str | None, details: Json) -> None:
        """Send the response, as modified by the fault."""
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}", f"Content-Type: {answer.content_type}"]
        lines += [f"Content-Length: {len(answer.body)}", "x-request-id: req_test"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        head = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
        if how == "reset":
            self._reset()
        elif how == "hang":
            self.server.service.stopped.wait(details.get("seconds", 30))
        elif how == "slow":
            self._send_slowly(head, answer.body, details.get("seconds", 1))
        elif how == "truncate":
            self.wfile.write(head + answer.body[: len(answer.body) // 2])
        else:
            self.wfile.write(head + answer.body)
        self.close_connection = self.close_connection or how in ("reset", "hang", "truncate")

    def _reset(self) -> None:
        """Reset the connection, by closing the socket without a shutdown."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def _send_slowly(self, head: bytes, body: bytes, seconds: float) -> None:
        """Send the body byte by byte over `seconds`, unless the server is stopped."""
        self.wfile.write(head)
        for place in range(len(body)):
            self.server.service.stopped.wait(seconds / len(body))
            self.wfile.write(body[place : place + 1])
