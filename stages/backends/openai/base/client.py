"""The connection to an OpenAI-compatible endpoint: address, key, readable errors."""

import html
import ipaddress
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from stages.core.cli import UserError
from stages.params import Params

_KEY = "OPENAI_API_KEY"
_URL = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
# OpenAI's own hosts: the API and its regional ones, such as eu.api.openai.com.
_OPENAI_HOST = re.compile(r"(\w+\.)?api\.openai\.com")
# What an address may carry behind `?`; anything else may be a credential, and addresses are written to files.
_QUERY = ("api-version", "custom_llm_provider")
_SECONDS = 120.0
_RETRIES = 4
# Longest message of a service that is repeated, and longest body that is searched for one, in characters.
_MESSAGE, _BODY = 300, 20_000
# Where other services put the message: OpenAI and most others; FastAPI; RFC 9457; others.
_MESSAGE_KEYS = ("message", "detail", "title", "error", "error_description", "reason", "msg")
# For other statuses, such as 404, the service's own message is the most helpful.
_MEANINGS = {
    401: f"the key in {_KEY} was rejected; set a valid one",
    403: "the key lacks permission; ask your organisation's administrator, or use another model or endpoint",
}


def endpoint(knobs: Params) -> str:
    """Return the address of the service: `openai.base_url`, else OPENAI_BASE_URL, else OpenAI's.

    Raises:
        UserError: it is not an http(s) address, or contains credentials, which would be written to files.
    """
    url = (knobs.openai.base_url or os.environ.get(_URL) or _OPENAI).rstrip("/")
    if not _is_address(url):
        raise UserError("openai.base_url (or OPENAI_BASE_URL) is not an address such as https://api.openai.com/v1")
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.fragment:
        raise UserError(f"openai.base_url (or OPENAI_BASE_URL) must not contain credentials; put the key in {_KEY}")
    if not all(name in _QUERY for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise UserError(
            f"openai.base_url (or OPENAI_BASE_URL) must not have parameters but {', '.join(_QUERY)}, because others may"
            f" be credentials, which would be written to files; put the key in {_KEY}"
        )
    return url


def is_openai(url: str) -> bool:
    """Whether this is OpenAI's own service, whose prices and shut-down dates are known here."""
    return bool(_OPENAI_HOST.fullmatch(urlsplit(url).hostname or ""))


def is_here(url: str) -> bool:
    """Whether the service runs on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Both raise if invalid: a port with letters, a host name with an empty or overlong label.
        host, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(host) and not any(one.isspace() for one in url)


def connect(url: str) -> openai.OpenAI:
    """Create a client that retries failed requests; requests that create a job must not be retried, see jobs.py.

    Raises:
        UserError: the key is missing from the environment or contains invalid characters.
    """
    key = os.environ.get(_KEY, "").strip()
    if not key:
        raise UserError(f"{_KEY} is not set; export the key of {url} (it is never written anywhere)")
    # The HTTP library would reject such a header with an error that shows the key.
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{_KEY} contains a line break, a curly quote or another invalid character; copy it again")
    http = openai.DefaultHttpxClient(event_hooks={"response": [_refuse_pages, _wrap_arrays]})
    parts = urlsplit(url)
    return openai.OpenAI(
        base_url=urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")),
        default_query=dict(parse_qsl(parts.query)),
        api_key=key,
        timeout=_SECONDS,
        max_retries=_RETRIES,
        http_client=http,
    )


class _Page(openai.APIConnectionError):
    """The response is a web page, not JSON."""


def _refuse_pages(response: Any) -> None:
    # The SDK would return the page's text as if it were a job.
    if response.is_success and "html" in response.headers.get("content-type", ""):
        raise _Page(request=response.request)


def _wrap_arrays(response: Any) -> None:
    """Turn a bare array into the list object of OpenAI's API; the SDK would fail at it with an AttributeError."""
    listing = response.request.method == "GET" and "json" in response.headers.get("content-type", "")
    if listing and response.is_success and (content := response.read().strip())[:1] == b"[":
        response._content = b'{"object": "list", "has_more": false, "data": ' + content + b"}"


def below(url: str, path: str) -> str:
    """The address of something at the service."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path}{path}").geturl()


@contextmanager
def readable_errors(url: str) -> Iterator[None]:
    """Turn the SDK's errors into a UserError that names the endpoint and the cause.

    Raises:
        UserError: the block raised an error of the SDK.
    """
    try:
        yield
    except openai.OpenAIError as error:
        raise UserError(describe(error, url)) from error


def describe(error: openai.OpenAIError, url: str) -> str:
    """Describe the error in one sentence, with the key removed, which some endpoints repeat."""
    text = f"{url}: {_cause(error)}"
    key = os.environ.get(_KEY, "").strip()
    return text.replace(key, "•••") if key else text


def _cause(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return f"no response within {_SECONDS:g} s; try again, or check the service's status page"
    if isinstance(error, _Page):
        return "the response is a web page, not JSON; check the address and any proxies"
    if isinstance(error, openai.APIConnectionError):
        return _connection(error)
    if isinstance(error, openai.RateLimitError):
        return f"{_limit(error)} (429: {message(error)})"
    if isinstance(error, openai.InternalServerError):
        return f"the service failed ({error.status_code}: {message(error)}); try again later"
    if isinstance(error, openai.APIStatusError):
        meaning = _MEANINGS.get(error.status_code)
        response = f"{error.status_code}: {message(error)}"
        return f"{meaning} ({response})" if meaning else response
    return f"the response does not match OpenAI's API ({message(error)}); check the address"


def _limit(error: openai.RateLimitError) -> str:
    said = f"{error.code} {message(error)}".lower()
    if "quota" in said:
        return "the account has no credit left; add credit, or raise its limit"
    if "per day" in said or "daily" in said:
        return "the daily limit is reached; run again tomorrow, and completed requests are not repeated"
    return "too many requests; lower evaluate.batch_size or run again in a minute"


def _connection(error: openai.APIConnectionError) -> str:
    causes, cause = [], error.__cause__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, socket.gaierror) for one in causes):
        return "host not found (DNS); check the address and the network"
    if any(isinstance(one, ssl.SSLError) for one in causes):
        return f"TLS connection failed ({causes[-1]}); check the address, the clock and the certificates"
    if any(isinstance(one, ConnectionRefusedError) for one in causes):
        return "connection refused; check that the service is running at this address"
    return f"connection lost ({causes[0] if causes else error}); check the network and run again"


def message(error: openai.OpenAIError) -> str:
    """The endpoint's own message in one line, whether it is OpenAI's, FastAPI's, plain text or a page."""
    found = _said(getattr(error, "body", None)) or str(error)
    # What follows it here has punctuation of its own.
    return one_line(found).rstrip(" .,;:")


def one_line(text: str, limit: int = _MESSAGE) -> str:
    """The first `limit` characters of a service's text, in one line and without what a terminal would obey."""
    return "".join(sign for sign in " ".join(text.split()) if sign.isprintable())[:limit]


def _said(body: Any) -> str:
    """The message in an error's body; empty if there is none."""
    if isinstance(body, str):
        return _text_of_page(body[:_BODY])
    if isinstance(body, list):
        return "; ".join(filter(None, (_said(one) for one in body[:3])))
    if not isinstance(body, dict):
        return ""
    said = next((found for key in _MESSAGE_KEYS if (found := _said(body.get(key)))), "")
    if said and isinstance(place := body.get("loc"), list):
        # FastAPI names the field: {"loc": ["body", "seed"], "msg": "Field required"}.
        return f"{'.'.join(map(str, place[:5]))}: {said}"
    return said or (json.dumps(body, ensure_ascii=False)[:_MESSAGE] if body else "")


def _text_of_page(text: str) -> str:
    """What a web page says; other text as it is."""
    if not re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return text
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    shown = title[1] if title else re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.I | re.S)
    return f"a web page: {html.unescape(shown).strip()}"


def not_offered(error: openai.OpenAIError) -> bool:
    """Whether the service says that it has no such endpoint, so that asking again would bring nothing."""
    return isinstance(error, openai.APIStatusError) and error.status_code in (404, 405, 410, 501)


def may_have_run(error: openai.OpenAIError) -> bool:
    """Whether a failed request may have taken effect: not if it was rejected or never arrived."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409)
    cause = error.__cause__
    return not (isinstance(error, openai.APIConnectionError) and "Connect" in type(cause).__name__)
