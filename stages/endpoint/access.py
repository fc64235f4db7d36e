"""Who may ask: the key, the addresses by which the service may be called, and how much a request may hold."""

import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.core.cli import UserError
from stages.endpoint.refusals import RefusedError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_JSON = 8_000_000
_FORM = 100_000
_UPLOADS = "/v1/files"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def key_in(path: Path) -> tuple[str, bool]:
    """The key in the file, and whether it was made just now; only its owner can read the file.

    Raises:
        UserError: the file holds no key.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        key = path.read_text(encoding="ascii", errors="replace").strip()
        if len(key) < 32 or not key.isascii():
            raise UserError(f"{path} holds no key; delete it, and start again for a new one") from None
        return key, False
    key = f"sk-local-{secrets.token_urlsafe(32)}"
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{key}\n")
    return key, True


class Guard:
    """Answers what must not reach the application.

    Browsers attach a page's origin to requests to other sites, and a page that rebinds its name to this machine sends
    that name as Host: both are refused, although neither page would know the key. `hosts` None allows any Host.
    """

    def __init__(self, application: Application, key: str, hosts: Collection[str] | None, max_upload: int) -> None:
        self._application, self._key, self._hosts = application, key.encode(), hosts
        self._max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._application(scope, receive, send)
            return
        limited = _Limited(receive, self._limit(scope))
        answered = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            self._check(scope)
            limited.check_announced(_one(scope, b"content-length"))
            await self._application(scope, limited, sending)
        except RefusedError as refusal:
            if answered:
                raise
            await _send_refusal(refusal, send)

    def _limit(self, scope: Scope) -> int:
        upload = scope["method"] == "POST" and scope["path"].rstrip("/") == _UPLOADS
        return self._max_upload + _FORM if upload else MAX_JSON

    def _check(self, scope: Scope) -> None:
        host = _one(scope, b"host")
        if self._hosts is not None and _name(f"//{host}") not in self._hosts:
            raise RefusedError(403, "This Host is not served here; use the address that the endpoint printed.")
        origin = _one(scope, b"origin")
        if origin and origin != f"{scope['scheme']}://{host}":
            raise RefusedError(403, "Requests from pages of other sites are refused.")
        if _one(scope, b"sec-fetch-site") not in ("", "same-origin", "none"):
            raise RefusedError(403, "Requests from pages of other sites are refused.")
        scheme, _, given = _one(scope, b"authorization").partition(" ")
        if not given:
            raise RefusedError(401, "You didn't provide an API key.", None, "invalid_api_key")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            message = "Incorrect API key provided; the endpoint's is in the file that it named at its start."
            raise RefusedError(401, message, None, "invalid_api_key")


class _Limited:
    """A request's body, refused once it exceeds `most` bytes."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._seen = receive, most, 0

    def check_announced(self, length: str) -> None:
        if length and (not length.isascii() or not length.isdigit() or int(length[:20]) > self._most):
            raise self._refusal()

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            raise self._refusal()
        return message

    def _refusal(self) -> RefusedError:
        return RefusedError(413, f"The request exceeds the {self._most:,} bytes that are accepted here.", "file")


def _one(scope: Scope, name: bytes) -> str:
    """The header's value, empty if it is missing.

    Raises:
        RefusedError: it is there twice.
    """
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise RefusedError(400, f"The header {name.decode()} is repeated.")
    return values[0].decode("latin-1") if values else ""


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _send_refusal(refusal: RefusedError, send: Send) -> None:
    body = json.dumps(refusal.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of a body that is too long is not read.
    headers += [(b"connection", b"close")] if refusal.status == 413 else []
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
