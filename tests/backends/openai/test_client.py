"""The connection to an endpoint: address, key, and error messages."""

import socket
import ssl

import httpx
import openai
import pytest

from stages import params
from stages.backends.openai.base import client
from stages.core.cli import UserError
from tests.conftest import set_params

REQUEST = httpx.Request("GET", "http://service/v1")
URL = "http://service/v1"


def status(code, kind=openai.APIStatusError, body=None):
    return kind("sdk's message", response=httpx.Response(code, request=REQUEST), body=body)


def connection(*causes):
    error = openai.APIConnectionError(request=REQUEST)
    at = error
    for cause in causes:
        at.__cause__ = cause
        at = cause
    return error


def test_the_address_comes_from_the_parameters_then_the_environment_then_openai(project, monkeypatch):
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
        ("http://a/v1?api-version=preview", True),
        ("http://a/v1?custom_llm_provider=azure&api-version=v1", True),
        ("http://a/v1?api-version=v1&key=v", False),
        ("http://a/v1#me", False),
    ],
)
def test_valid_and_invalid_addresses(project, url, right):
    set_params(openai__base_url=url)
    if right:
        assert client.endpoint(params.load()) == url
    else:
        with pytest.raises(UserError, match=r"openai.base_url \(or OPENAI_BASE_URL\) (is not|must not)"):
            client.endpoint(params.load())


def test_a_client_retries_four_times_with_a_timeout_of_two_minutes(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-1\n")
    made = client.connect(URL)
    assert (made.max_retries, made.timeout, made.api_key, str(made.base_url)) == (4, 120.0, "sk-1", f"{URL}/")


def test_parameters_of_the_address_go_with_every_request(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    made = client.connect("http://service/v1?api-version=preview")
    assert str(made.base_url) == f"{URL}/" and made.default_query == {"api-version": "preview"}
    assert client.below("http://service/v1?api-version=preview", "/models") == f"{URL}/models?api-version=preview"


def test_punctuation_is_not_doubled():
    text = client.describe(status(503, openai.InternalServerError, {"message": "Overloaded."}), URL)
    assert text == f"{URL}: the service failed (503: Overloaded); try again later"


@pytest.mark.parametrize("key", ["", " \n"])
def test_a_blank_key_is_missing(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=f"OPENAI_API_KEY is not set; export the key of {URL}"):
        client.connect(URL)


@pytest.mark.parametrize(
    "code, kind, page",
    [(200, "text/html; charset=utf-8", True), (200, "application/json", False), (502, "text/html", False)],
)
def test_a_web_page_is_rejected_as_a_response(code, kind, page):
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
def test_whether_a_failed_request_may_have_taken_effect(error, arrived):
    assert client.may_have_run(error) == arrived


SERVICE_ERROR = {"message": "the\n service's  message"}


@pytest.mark.parametrize(
    "error, message",
    [
        (openai.APITimeoutError(request=REQUEST), "no response within 120 s"),
        (client._Page(request=REQUEST), "the response is a web page"),
        (connection(httpx.ConnectError(""), socket.gaierror()), "host not found"),
        (connection(httpx.ConnectError(""), ssl.SSLError("self-signed")), "TLS connection failed"),
        (connection(httpx.ConnectError(""), ConnectionRefusedError()), "connection refused"),
        (connection(httpx.ReadError("reset by peer"), OSError("inner")), "connection lost (reset by peer)"),
        (
            status(401, body=SERVICE_ERROR),
            "the key in OPENAI_API_KEY was rejected; set a valid one (401: the service's message)",
        ),
        (status(403, body=SERVICE_ERROR), "the key lacks permission"),
        (status(404, body=SERVICE_ERROR), "404: the service's message"),
        (status(404), "404: sdk's message"),
        (status(404, body={"message": "x" * 400}), f"404: {'x' * 300}"),
        (status(503, openai.InternalServerError), "the service failed (503: sdk's message)"),
        (status(429, openai.RateLimitError, {"code": "insufficient_quota"}), "the account has no credit left"),
        (status(429, openai.RateLimitError, {"message": "Your quota"}), "the account has no credit left"),
        (status(429, openai.RateLimitError, {"message": "100 requests per day"}), "the daily limit"),
        (status(429, openai.RateLimitError, {"message": "Daily limit"}), "the daily limit"),
        (status(429, openai.RateLimitError), "too many requests"),
        (status(422, body={"detail": "Not Found."}), "422: Not Found"),
        (
            status(422, body={"detail": [{"loc": ["body", "seed"], "msg": "Field required", "type": "missing"}]}),
            "422: body.seed: Field required",
        ),
        (status(422, body={"detail": [{"msg": "a"}, {"msg": "b"}, {"msg": "c"}, {"msg": "d"}]}), "422: a; b; c"),
        (status(400, body={"error": "no such model", "status": 400}), "400: no such model"),
        (status(400, body={"error": {"message": {"text": "odd"}}}), '400: {"text": "odd"}'),
        (status(400, body={"title": "Bad", "status": 400}), "400: Bad"),
        (status(400, body={"detail": {}, "x": 1}), '400: {"detail": {}, "x": 1}'),
        (status(404, body="404 page not found\n"), "404: 404 page not found"),
        (status(404, body="  <html><head><title>Not &amp; found</title>"), "404: a web page: Not & found"),
        (status(404, body="<!DOCTYPE html><style>x{}</style><p>Gone <b>away</b>"), "404: a web page: Gone away"),
        (status(404, body="\x1b[31mred\x07"), "404: [31mred"),
        (status(404, body="y" * 100_000), f"404: {'y' * 300}"),
        (status(404, body=[]), "404: sdk's message"),
        (status(403, body={"message": "Stop."}), "the key lacks permission; ask your organisation's administrator, or"),
        (openai.OpenAIError("odd"), "the response does not match OpenAI's API (odd)"),
    ],
)
def test_each_error_is_described_in_one_sentence(error, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    text = client.describe(error, URL)
    assert text.startswith(f"{URL}: {message}") and "\n" not in text and len(text) < 500
    with pytest.raises(UserError) as raised, client.readable_errors(URL):
        raise error
    assert str(raised.value) == text


@pytest.mark.parametrize("key", ["sk-secret", " sk-secret\n"])
def test_a_key_repeated_by_the_service_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    text = client.describe(status(401, body={"message": "Incorrect key sk-secret."}), URL)
    assert "sk-secret" not in text and "Incorrect key •••)" in text


def test_without_a_key_the_message_is_unchanged(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert client.describe(status(404), URL) == f"{URL}: 404: sdk's message"
