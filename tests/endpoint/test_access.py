"""Who may ask, and how much: the key, browsers, sizes and depth."""

import contextlib
import http.client
import json
import socket
import stat
from pathlib import Path

import pytest

from stages.core.cli import UserError
from stages.endpoint import access, server

FIELD = b"Content-Disposition: form-data; name=a\r\n\r\n1\r\n--b\r\n"


def ask(endpoint, method="GET", path="/v1/models", body=None, **headers):
    """One request, with these headers besides Host; returns status and the error's message."""
    connection = http.client.HTTPConnection(endpoint.root.removeprefix("http://"))
    given = {"Authorization": f"Bearer {endpoint.key}", **{name.replace("_", "-"): h for name, h in headers.items()}}
    connection.request(method, path, body, {name: value for name, value in given.items() if value is not None})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text).get("error", {}).get("message", "")


def test_the_right_key_is_needed_for_everything(shared):
    assert ask(shared)[0] == 200
    for path in ("/v1/models", "/v1/files", "/v1/fine_tuning/jobs", "/", "/docs", "/openapi.json", "/metrics"):
        near = (f"Basic {shared.key}", f"Bearer {shared.key}x", f"Bearer {shared.key[:-1]}")
        for key in (None, "", "Bearer", "Bearer ", "Bearer sk-wrong", "Bearer \xff\xfe", *near):
            assert ask(shared, path=path, Authorization=key)[0] == 401


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "key"
    key, new = access.key_in(path)
    assert new and len(key) > 40 and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert access.key_in(path) == (key, False) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert access.key_in(tmp_path / "other")[0] != key
    path.write_text("short")
    with pytest.raises(UserError, match="holds no key; delete it"):
        access.key_in(path)


def test_the_key_is_printed_at_the_first_start_only(endpoint_of, capsys):
    for first in (True, False):
        with endpoint_of().running() as endpoint:
            assert (endpoint.key in capsys.readouterr().out) is first


def test_no_refusal_and_no_output_repeats_a_key(shared, capsys):
    capsys.readouterr()
    status, message = ask(shared, Authorization="Bearer sk-somebody-elses-secret")
    assert status == 401 and "secret" not in message
    out = capsys.readouterr()
    assert shared.key not in out.out + out.err and "secret" not in out.out + out.err


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8041", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0"])
def test_another_name_for_this_machine_is_refused(shared, host):
    assert ask(shared, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "localhost:1"])
def test_this_machines_own_names_are_served(shared, host):
    assert ask(shared, Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_requests_of_a_page_of_another_site_are_refused(shared, headers):
    assert ask(shared, "POST", "/v1/fine_tuning/jobs", "{}", **headers)[0] == 403
    assert ask(shared, "OPTIONS", "/v1/fine_tuning/jobs", **headers)[0] == 403


@pytest.mark.parametrize("name", ["Host", "Authorization"])
def test_a_repeated_header_is_refused(shared, name):
    host, port = shared.root.removeprefix("http://").split(":")
    first = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {shared.key}\r\nConnection: close\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{first}{name}: x\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 400"


def test_an_announced_body_that_is_too_long_is_not_read(shared):
    host, port = shared.root.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {shared.key}\r\n"
    for length in ("8000001", "9" * 25):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert connection.recv(12) in (b"HTTP/1.1 413", b"HTTP/1.1 400")


def test_a_body_of_unknown_length_is_cut_off(shared):
    sent = []
    pieces = (sent.append(number) or b" " * 1_000_000 for number in range(1000))
    # The connection closes while the client still sends, so it may not read the answer.
    with contextlib.suppress(ConnectionError):
        assert ask(shared, "POST", "/v1/chat/completions", pieces, Transfer_Encoding="chunked")[0] == 413
    assert len(sent) < 100


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"a"',
        b'{"a": NaN}',
        b"\xff\xfe",
        b'{"model": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"metadata":' * 5000 + b"1" + b"}" * 5000,
        b'{"model": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"model": {"a": 1}, "training_file": []}',
        b'{"model": "tiny", "training_file": "\x00"}',
        b'{"model": "tiny", "training_file": "file-1", "seed": 1e400}',
        b'{"model": "tiny", "training_file": "file-1", "hyperparameters": {"learning_rate_multiplier": -0.0}}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_a_body_that_is_no_request_is_refused(shared, path, body):
    assert ask(shared, "POST", path, body, Content_Type="application/json")[0] == 400


@pytest.mark.parametrize(
    "body, kind",
    [
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"--b\r\n\r\n--b--", "multipart/form-data; boundary=b"),
        (b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b"),
        (b"a=1", "application/x-www-form-urlencoded"),
        (b"{}", "application/json"),
        (
            b"--b\r\n" + b"Content-Disposition: form-data; name=a\r\n\r\n1\r\n--b\r\n" * 50,
            "multipart/form-data; boundary=b",
        ),
        (b"", "text/plain"),
    ],
)
def test_an_upload_that_is_no_form_is_refused(shared, body, kind):
    assert ask(shared, "POST", "/v1/files", body, Content_Type=kind)[0] == 400


@pytest.mark.parametrize(
    "name", ["../../../escaped.jsonl", "/tmp/escaped.jsonl", "..\\escaped.jsonl", "key.jsonl", "ä€😀.jsonl"]
)
def test_a_clients_file_name_is_only_told_back(shared, asker, name):
    before = {path.name for path in shared.folder.rglob("*")}
    file = asker.files.create(file=(name, b"{}\n"), purpose="fine-tune")
    assert file.filename == name and asker.files.content(file.id).read() == b"{}\n"
    assert {path.name for path in shared.folder.rglob("*")} - before == {file.id}


@pytest.mark.parametrize(
    "path",
    [
        "files/..%2Fkey/content",
        "files/%2e%2e%2fkey/content",
        "files/../key/content",
        "files/file-1%00/content",
        "files/key/content",
        "fine_tuning/jobs/..",
        "fine_tuning/jobs/%27%20OR%201=1--",
        "models/../../etc/passwd",
        "models/%00",
        "fine_tuning/jobs/x/events?after=%27",
        "no/such/place",
    ],
)
def test_ids_of_a_client_lead_nowhere(shared, path):
    assert ask(shared, path=f"/v1/{path}")[0] in (400, 404)


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=0", "order=up", "what=1"])
def test_a_wrong_query_is_refused(shared, query):
    assert ask(shared, path=f"/v1/files?{query}")[0] == 400


def test_hosts_of_an_exposed_endpoint():
    assert server.hosts(None) == access.LOOPBACK
    assert "192.168.1.20" in server.hosts("192.168.1.20") and "evil" not in server.hosts("192.168.1.20")
    assert server.hosts("0.0.0.0") is None and server.hosts("::") is None


def test_an_exposed_endpoint_says_what_that_means(endpoint_of, capsys):
    with endpoint_of(expose="0.0.0.0").running() as endpoint:
        assert "everybody who can reach 0.0.0.0 and has the key" in capsys.readouterr().out
        assert ask(endpoint, Host="machine.example")[0] == 200 and ask(endpoint, Authorization=None)[0] == 401


@pytest.mark.parametrize("address", ["machine.example", "", "300.1.1.1", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_refused(endpoint_of, address):
    with pytest.raises(UserError, match="--expose|cannot listen"), endpoint_of(expose=address).running():
        pass


def test_a_taken_port_and_a_second_endpoint_are_refused(endpoint_of, endpoint, monkeypatch):
    port = int(endpoint.root.rpartition(":")[2])
    monkeypatch.setattr("stages.core.locks._WAIT_SECONDS", 0)
    with pytest.raises(UserError, match="another endpoint runs in this folder"), endpoint_of().running():
        pass
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd() / "elsewhere"))
    monkeypatch.chdir(Path(Path.cwd(), ".state"))
    with (
        pytest.raises(UserError, match=f"cannot listen at 127.0.0.1, port {port}"),
        server._bound(server.Options(port)),
    ):
        pass
