"""The connection to an endpoint: its address, the key, and what a failure means."""

import socket
import ssl

import httpx
import openai
import pytest

from stages import params
from stages.backends.openai import client
from stages.command import UserError

from .conftest import set_params

REQUEST = httpx.Request("GET", "http://service/v1")
URL = "http://service/v1"


def status(code, kind=openai.APIStatusError, body=None):
    return kind("sdk's words", response=httpx.Response(code, request=REQUEST), body=body)


def connection(*causes):
    error = openai.APIConnectionError(request=REQUEST)
    at = error
    for cause in causes:
        at.__cause__ = cause
        at = cause
    return error


def test_the_address_is_that_of_the_file_then_of_the_environment_then_openai_s(project, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert client.endpoint(params.load()) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://environment/v1/")
    assert client.endpoint(params.load()) == "http://environment/v1"
    set_params(openai__base_url="http://file:8080/v1")
    assert client.endpoint(params.load()) == "http://file:8080/v1"


@pytest.mark.parametrize(
    "url, right",
    [
        ("https://a.example/v1", True),
        ("http://127.0.0.1:1/v1", True),
        ("http://münchen.example", True),
        ("ftp://a/v1", False),
        ("a.example/v1", False),
        ("http:///v1", False),
        ("http://a:port/v1", False),
        ("http://a..b/v1", False),
        ("http://a b/v1", False),
        ("http://" + "a" * 64 + ".example", False),
        ("http://me@a/v1", False),
        ("http://a/v1?k=v", False),
    ],
)
def test_what_may_be_an_address(project, url, right):
    set_params(openai__base_url=url)
    if right:
        assert client.endpoint(params.load()) == url
    else:
        with pytest.raises(UserError, match=r"openai.base_url \(or OPENAI_BASE_URL\) must"):
            client.endpoint(params.load())


def test_a_client_repeats_requests_four_times_and_waits_two_minutes(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-1\n")
    made = client.connect(URL)
    assert (made.max_retries, made.timeout, made.api_key, str(made.base_url)) == (4, 120.0, "sk-1", f"{URL}/")


@pytest.mark.parametrize("key", ["", " \n"])
def test_a_key_of_nothing_is_none(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=f"OPENAI_API_KEY is not set; export the key of {URL}"):
        client.connect(URL)


@pytest.mark.parametrize(
    "code, kind, page",
    [(200, "text/html; charset=utf-8", True), (200, "application/json", False), (502, "text/html", False)],
)
def test_a_web_page_is_no_answer(code, kind, page):
    response = httpx.Response(code, headers={"content-type": kind}, request=REQUEST)
    if page:
        with pytest.raises(client._Page):
            client._refuse_pages(response)
    else:
        client._refuse_pages(response)


@pytest.mark.parametrize(
    "error, arrived",
    [
        *((status(code), True) for code in (408, 409, 500, 503, 599)),
        *((status(code), False) for code in (400, 401, 403, 404, 422, 429, 499)),
        (connection(), True),
        (connection(httpx.ReadTimeout("")), True),
        (connection(httpx.RemoteProtocolError("")), True),
        (connection(httpx.ConnectError("")), False),
        (connection(httpx.ConnectTimeout("")), False),
        (openai.OpenAIError(), True),
    ],
)
def test_whether_a_failed_request_may_have_been_carried_out(error, arrived):
    assert client.reached(error) == arrived


SAID = {"message": "the\n service's  words"}


@pytest.mark.parametrize(
    "error, words",
    [
        (openai.APITimeoutError(request=REQUEST), "no answer within 120 s"),
        (client._Page(request=REQUEST), "a web page came"),
        (connection(httpx.ConnectError(""), socket.gaierror()), "no such host"),
        (connection(httpx.ConnectError(""), ssl.SSLError("self-signed")), "no trusted TLS connection"),
        (connection(httpx.ConnectError(""), ConnectionRefusedError()), "connection refused"),
        (connection(httpx.ReadError("reset by peer"), OSError("inner")), "the connection broke (reset by peer)"),
        (
            status(401, body=SAID),
            "the key in OPENAI_API_KEY is not accepted; set the right one (401: the service's words)",
        ),
        (status(403, body=SAID), "the key's owner may not do this"),
        (status(404, body=SAID), "404: the service's words"),
        (status(404), "404: sdk's words"),
        (status(404, body={"message": "x" * 400}), f"404: {'x' * 300}"),
        (status(503, openai.InternalServerError), "the service failed (503: sdk's words)"),
        (status(429, openai.RateLimitError, {"code": "insufficient_quota"}), "the account has no credit left"),
        (status(429, openai.RateLimitError, {"message": "Your quota"}), "the account has no credit left"),
        (status(429, openai.RateLimitError, {"message": "100 requests per day"}), "the daily limit"),
        (status(429, openai.RateLimitError, {"message": "Daily limit"}), "the daily limit"),
        (status(429, openai.RateLimitError), "too many requests"),
        (openai.OpenAIError("odd"), "the answer is not what OpenAI's API gives (odd)"),
    ],
)
def test_what_a_failure_means_in_one_sentence(error, words, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    text = client.describe(error, URL)
    assert text.startswith(f"{URL}: {words}") and "\n" not in text and len(text) < 500
    with pytest.raises(UserError) as told, client.in_words(URL):
        raise error
    assert str(told.value) == text


@pytest.mark.parametrize("key", ["sk-secret", " sk-secret\n"])
def test_a_key_that_the_service_repeats_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    text = client.describe(status(401, body={"message": "Incorrect key sk-secret."}), URL)
    assert "sk-secret" not in text and "Incorrect key •••." in text


def test_without_a_key_the_words_are_left_as_they_are(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert client.describe(status(404), URL) == f"{URL}: 404: sdk's words"
