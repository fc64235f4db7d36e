"""The connection to an OpenAI-compatible endpoint: its address, the key from the environment, its errors in words."""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import openai

from stages.command import UserError
from stages.params import Params

_KEY = "OPENAI_API_KEY"
_URL = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
_SECONDS = 120.0
_RETRIES = 4
# What a status means. A 404 and others say it best themselves.
_MEANINGS = {
    401: f"the key in {_KEY} is not accepted; set the right one",
    403: "the key's owner may not do this; ask the organisation's administrator, or take another model or endpoint",
}


def endpoint(knobs: Params) -> str:
    """The address that requests go to: `openai.base_url`, else OPENAI_BASE_URL, else OpenAI's own.

    Raises:
        UserError: it is no http(s) address, or has credentials in it, which would end in files.
    """
    url = (knobs.openai.base_url or os.environ.get(_URL) or _OPENAI).rstrip("/")
    if not _is_address(url):
        raise UserError("openai.base_url (or OPENAI_BASE_URL) must be an address such as https://api.openai.com/v1")
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise UserError(f"openai.base_url (or OPENAI_BASE_URL) must not hold credentials; put the key in {_KEY}")
    return url


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Each raises where it is none: a port of letters, a host name with an empty or too long part.
        host, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(host) and not any(one.isspace() for one in url)


def connect(url: str) -> openai.OpenAI:
    """A client whose reading requests are repeated when they fail. One that creates a job must not be: see jobs.py.

    Raises:
        UserError: there is no key in the environment, or it has characters that no key has.
    """
    key = os.environ.get(_KEY, "").strip()
    if not key:
        raise UserError(f"{_KEY} is not set; export the key of {url} (it is never written anywhere)")
    # Libraries below would refuse such a header by showing it.
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{_KEY} holds a line break, a curly quote or another character that no key has; copy it anew")
    http = openai.DefaultHttpxClient(event_hooks={"response": [_refuse_pages]})
    return openai.OpenAI(base_url=url, api_key=key, timeout=_SECONDS, max_retries=_RETRIES, http_client=http)


class _Page(openai.APIConnectionError):
    """A web page came where the API's answer should have."""


def _refuse_pages(response: Any) -> None:
    # The SDK would hand the page's text on as if it were a job.
    if response.is_success and "html" in response.headers.get("content-type", ""):
        raise _Page(request=response.request)


@contextmanager
def in_words(url: str) -> Iterator[None]:
    """Turn what the SDK raises into one sentence with the endpoint and the cause.

    Raises:
        UserError: the block raised an error of the SDK.
    """
    try:
        yield
    except openai.OpenAIError as error:
        raise UserError(describe(error, url)) from error


def describe(error: openai.OpenAIError, url: str) -> str:
    """One sentence on what went wrong, without the key, which some endpoints repeat in their answers."""
    text = f"{url}: {_cause(error)}"
    key = os.environ.get(_KEY, "").strip()
    return text.replace(key, "•••") if key else text


def _cause(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {_SECONDS:g} s; try again, or look at the service's status page"
    if isinstance(error, _Page):
        return "a web page came in place of the API's answer; check the address, and proxies on the way"
    if isinstance(error, openai.APIConnectionError):
        return _connection(error)
    if isinstance(error, openai.RateLimitError):
        return f"{_limit(error)} (429: {_said(error)})"
    if isinstance(error, openai.InternalServerError):
        return f"the service failed ({error.status_code}: {_said(error)}); try again later"
    if isinstance(error, openai.APIStatusError):
        meaning = _MEANINGS.get(error.status_code)
        return f"{meaning} ({error.status_code}: {_said(error)})" if meaning else f"{error.status_code}: {_said(error)}"
    return f"the answer is not what OpenAI's API gives ({_said(error)}); is this the right address?"


def _limit(error: openai.RateLimitError) -> str:
    said = f"{error.code} {_said(error)}".lower()
    if "insufficient_quota" in said or "quota" in said:
        return "the account has no credit left; add some, or raise its limit"
    if "per day" in said or "daily" in said:
        return "the daily limit is reached; run again tomorrow, and what is done is not done twice"
    return "too many requests; lower evaluate.batch_size or run again in a minute"


def _connection(error: openai.APIConnectionError) -> str:
    causes, cause = [], error.__cause__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, socket.gaierror) for one in causes):
        return "no such host (DNS); check the address and the network"
    if any(isinstance(one, ssl.SSLError) for one in causes):
        return f"no trusted TLS connection ({causes[-1]}); check the address, the clock and the certificates"
    if any(isinstance(one, ConnectionRefusedError) for one in causes):
        return "connection refused; is the service running at this address?"
    return f"the connection broke ({causes[0] if causes else error}); check the network and run again"


def _said(error: openai.OpenAIError) -> str:
    """The endpoint's own message, on one line."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or error).split())[:300]


def reached(error: openai.OpenAIError) -> bool:
    """Whether a request may have been carried out although it failed: not if it was refused, or never arrived."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409)
    cause = error.__cause__
    return not (isinstance(error, openai.APIConnectionError) and "Connect" in type(cause).__name__)
