import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from stages import download, params
from stages.core.cli import UserError
from stages.core.paths import RAW

CONTENT = b'"{""messages"": []}"\n' * 50
FORMER = b"the former file"


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `answers`: a function of the handler; the last one stays."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = [whole], []
        self.url = f"http://127.0.0.1:{self.server_port}/data.csv"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.server.requests.append(self.path)
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_):
        pass


def answer(status=200, body=b"", length=None, **headers):
    def respond(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def unsized(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(CONTENT)


whole = answer(body=CONTENT)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def former(project):
    RAW.parent.mkdir()
    RAW.write_bytes(FORMER)
    Path("data/local").mkdir()
    return project


def fetch(url, sha256=None, limit=1_000_000):
    download.fetch(params.Source(url=str(url), sha256=sha256, format="messages"), limit, pause=0)


def refused(url, match, **given):
    """The error's text, after a look that the former file is whole and nothing else was left."""
    with pytest.raises(UserError, match=match) as error:
        fetch(url, **given)
    assert RAW.read_bytes() == FORMER
    assert [path.name for path in RAW.parent.iterdir() if path.is_file()] == [RAW.name]
    return str(error.value)


def test_http_with_the_right_checksum(former, server):
    fetch(server.url, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert RAW.read_bytes() == CONTENT


def test_without_a_length_and_with_redirects(former, server):
    server.answers = [answer(302, Location="/other.csv"), unsized]
    fetch(server.url)
    assert RAW.read_bytes() == CONTENT and server.requests == ["/data.csv", "/other.csv"]


def test_a_wrong_checksum(former, server):
    text = refused(server.url, "It is not the file that was pinned", sha256="0" * 64)
    assert hashlib.sha256(CONTENT).hexdigest() in text


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_refusal_is_not_tried_again(former, server, status):
    server.answers = [answer(status)]
    refused(server.url, str(status))
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [answer(503), answer(429), answer(body=CONTENT[:100], length=len(CONTENT))])
def test_a_passing_fault_is_tried_again(former, server, fault, capsys):
    server.answers = [fault, fault, whole]
    fetch(server.url)
    assert RAW.read_bytes() == CONTENT
    assert "trying again (3 of 3)" in capsys.readouterr().out


def test_a_connection_that_is_always_cut(former, server):
    server.answers = [answer(body=CONTENT[:100], length=len(CONTENT))]
    assert "data/raw.csv is as it was" in refused(server.url, "3 times")


def test_no_server_hints_at_the_sample(former):
    refused("http://127.0.0.1:9/data.csv", "data.source=sample")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n  <html lang='en'>", b"\xef\xbb\xbf<HTML>"])
def test_an_html_page(former, server, page):
    server.answers = [answer(body=page)]
    refused(server.url, "HTML page", sha256="0" * 64)


def test_an_empty_file(former, server):
    server.answers = [answer(body=b"")]
    refused(server.url, "is empty")


@pytest.mark.parametrize("respond", [whole, unsized])
def test_more_than_the_limit(former, server, respond):
    server.answers = [respond]
    refused(server.url, "larger than data.max_mb", limit=500)


def test_endless_redirects(former, server):
    server.answers = [answer(302, Location="/data.csv")]
    refused(server.url, "redirects without end")


def test_credentials_of_an_address_are_not_shown(former, server, capsys):
    server.answers = [answer(500)]
    url = server.url.replace("http://", "http://me:secret@") + "?token=secret"
    assert "secret" not in refused(url, "carries a password, key or token") + capsys.readouterr().out


def test_a_local_path_and_a_file_address(former):
    path = Path("data/local/own file.csv")
    path.write_bytes(CONTENT)
    for url in (path, path.absolute().as_uri()):
        RAW.unlink()
        fetch(url)
        assert RAW.read_bytes() == CONTENT


def test_a_path_that_dvc_does_not_watch_is_reported(former, capsys):
    Path("elsewhere.csv").write_bytes(CONTENT)
    fetch("elsewhere.csv")
    assert "does not see its edits" in capsys.readouterr().out


def test_a_missing_path_and_a_folder(former):
    refused("data/local/none.csv", "does not exist")
    refused("data/local", "is a folder")


@pytest.mark.parametrize(
    "url, reason",
    [
        ("data/local/a\0b.csv", "data/local/a\\\\x00b.csv cannot be read"),
        ("data/local/" + "x" * 300, "cannot be read|does not exist"),
        ("file:///etc/hostname%00", "cannot be read"),
        ("/proc/self/mem", "cannot be read|may not be read"),
        ("/dev/zero", "is a device or a pipe"),
        ("http://[::1", "^http://... is not an address; fix data.sources"),
        ("http://me:secret@[x/data.csv", "carries a password, key or token"),
        ("file://[x", "^file://... is not an address"),
        ("data/local/../../\x1b[31m", r"data/local/../../\\x1b\[31m does not exist"),
        ("data/local/x\nerror: fake", r"data/local/x\\nerror: fake does not exist"),
        ("http://127.0.0.1:9/\u202eevil\x07.csv", "u202eevil"),
        ("memory://\x1b31m/none.csv", "does not exist|could not be read"),
    ],
)
def test_hostile_names_are_reported_in_printable_lines(former, url, reason, capsys):
    text = refused(url, reason)
    assert all(line.isprintable() for line in (text + capsys.readouterr().out).splitlines())
    assert "secret" not in text and "\nerror: fake" not in text


def test_a_pipe_does_not_hang(former):
    os.mkfifo("data/local/pipe")
    refused("data/local/pipe", "is a device or a pipe; data.sources.*.url must name a file")


def test_a_link_to_itself_is_reported(former):
    Path("data/local/loop").symlink_to("loop")
    refused("data/local/loop", "data/local/loop cannot be read")


def test_a_name_with_path_tricks_is_read_and_written_nowhere_else(former):
    Path("data/local/..%2f..%2f;rm -rf $HOME.csv").write_bytes(CONTENT)
    before = sorted(path.name for path in Path().rglob("*"))
    fetch("data/local/..%2f..%2f;rm -rf $HOME.csv")
    assert RAW.read_bytes() == CONTENT and sorted(path.name for path in Path().rglob("*")) == before


def test_what_fsspec_serves(former):
    fsspec.filesystem("memory").pipe("/data.csv", CONTENT)
    fetch("memory://data.csv")
    assert RAW.read_bytes() == CONTENT
    RAW.write_bytes(FORMER)
    refused("memory://none.csv", "does not exist")


def test_a_plugin_that_is_not_installed_is_named(former):
    refused("gs://bucket/data.csv", "pip install gcsfs")


def test_an_address_that_nobody_knows(former):
    refused("carrier-pigeon://data.csv", "not an address that fsspec knows")
