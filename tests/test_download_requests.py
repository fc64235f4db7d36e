"""What a download asks for, of whom, and when it asks again."""

import base64
import gzip
import hashlib
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace as Some

import fsspec
import httpx
import pytest

from stages import download, params
from stages.core.cli import UserError
from stages.core.paths import RAW
from tests.test_download import CONTENT, Server, answer, whole


class Noting(Server):
    """A server that notes the headers of each request."""

    def __init__(self):
        super().__init__()
        self.headers = []
        handle, headers = self.RequestHandlerClass, self.headers

        class Handler(handle):
            def do_GET(self):  # noqa: N802
                headers.append(dict(self.headers))
                super().do_GET()

        self.RequestHandlerClass = Handler


def running():
    server = Noting()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def server(project):
    with running() as server:
        yield server
        server.shutdown()


def fetch(url, sha256=None, limit=1_000_000, pause=0):
    download.fetch(params.Source(url=str(url), sha256=sha256, format="messages"), limit, pause)


def test_the_bytes_themselves_are_asked_for_and_not_a_compressed_form(server):
    def packed_if_allowed(handler):
        coded = "gzip" in handler.headers.get("Accept-Encoding", "")
        answer(body=gzip.compress(CONTENT) if coded else CONTENT, **({"Content-Encoding": "gzip"} if coded else {}))(
            handler
        )

    server.answers = [packed_if_allowed]
    fetch(server.url, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert server.headers[0]["Accept-Encoding"] == "identity" and RAW.read_bytes() == CONTENT


def test_credentials_go_to_the_server_that_they_are_for_and_to_no_other(server, monkeypatch):
    Path("logins").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", "logins")
    with running() as other:
        server.answers = [answer(302, Location=other.url.replace("127.0.0.1", "localhost"))]
        fetch(server.url)
        other.shutdown()
        assert server.headers[0]["Authorization"] == f"Basic {base64.b64encode(b'me:secret').decode()}"
        assert "Authorization" not in other.headers[0]


def test_an_address_with_credentials_is_refused_before_anything_is_asked(server):
    for url in (server.url.replace("http://", "http://me:secret@"), f"{server.url}?token=secret"):
        with pytest.raises(UserError, match="carries a password, key or token.*~/.netrc") as error:
            fetch(url)
        assert "secret" not in str(error.value)
    assert not server.headers


def test_a_transfer_that_is_too_slow_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "_PATIENCE_SECONDS", 0.05)

    def dripping(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"a")
            handler.wfile.flush()
            time.sleep(0.01)

    server.answers = [dripping]
    with pytest.raises(UserError, match="fewer than 1,000 bytes come each second, 3 times"):
        fetch(server.url)


@pytest.mark.parametrize("chain", ["simplecache", "filecache", "blockcache"])
def test_a_copy_on_the_way_that_no_limit_holds_for_is_refused(server, chain):
    with pytest.raises(UserError, match=f"remove '{chain}::' from data.sources"):
        fetch(f"{chain}::{server.url}")
    assert not server.headers


@pytest.mark.parametrize("address", ["local://{}", "file://{}", "zip://a.csv::local://{}"])
def test_a_pipe_hangs_by_no_address(project, address):
    os.mkfifo("pipe")
    with pytest.raises(UserError, match="pipe.* is a .*device or a pipe"):
        fetch(address.format(Path("pipe").absolute()))


def test_a_reason_of_the_server_is_shown_as_text(server):
    server.answers = [lambda handler: handler.wfile.write(b"HTTP/1.1 418 \x1b[31mred\r\nContent-Length: 0\r\n\r\n")]
    with pytest.raises(UserError) as error:
        fetch(server.url)
    assert str(error.value).isprintable() and "418" in str(error.value)


def test_an_address_that_a_redirect_names_is_not_shown(server, capsys):
    server.answers = [answer(302, Location="http://me:hidden@127.0.0.1:9/x?token=hidden")]
    with pytest.raises(UserError) as error:
        fetch(server.url)
    assert "hidden" not in str(error.value) + capsys.readouterr().out


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_tried_three_times_with_pauses_that_double(server, monkeypatch, code):
    pauses = []
    monkeypatch.setattr(download, "time", Some(sleep=pauses.append, monotonic=time.monotonic))
    server.answers = [answer(code)]
    with pytest.raises(UserError, match=f"the server answered {code}.*, 3 times"):
        fetch(server.url, pause=1.5)
    assert pauses == [1.5, 3.0] and len(server.requests) == 3
    server.answers = [answer(code), whole]
    download.fetch(params.Source(url=server.url, sha256=None, format="messages"), 10**6)
    assert pauses == [1.5, 3.0, 1.0] and RAW.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [206, 400, 401, 403, 404, 405, 501])
def test_another_status_than_200_ends_the_download_at_once(server, code):
    server.answers = [answer(code, body=CONTENT)]
    with pytest.raises(
        UserError, match=f"answered {code}.*{'access is denied' if code in (401, 403) else 'in a browser'}"
    ):
        fetch(server.url)
    assert len(server.requests) == 1 and not RAW.exists()


def test_a_server_that_does_not_answer_in_time_is_asked_three_times(server, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", httpx.Timeout(0.05))
    done = threading.Event()
    server.answers = [lambda handler: done.wait(5)]
    with pytest.raises(UserError, match="did not answer in time, 3 times"):
        fetch(server.url)
    done.set()


@pytest.mark.parametrize("sized", [True, False])
def test_the_limit_is_the_largest_size_that_is_taken(server, sized):
    def unsized(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.answers = [whole if sized else unsized]
    fetch(server.url, limit=len(CONTENT))
    with pytest.raises(UserError, match=r"is larger than data.max_mb allows \(0.001049 MB\)"):
        fetch(server.url, limit=len(CONTENT) - 1)
    assert RAW.read_bytes() == CONTENT


def test_a_file_that_is_announced_as_too_large_is_not_begun(server):
    server.answers = [answer(body=b"x", length=10**9)]
    with pytest.raises(UserError, match="larger than data.max_mb"):
        fetch(server.url, limit=1000)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "place", ["data/sample.csv", "data/local/a.csv", "data/local/deep/a.csv", "data/a.csv", "b.csv"]
)
def test_places_that_dvc_does_not_watch_are_named(project, capsys, place):
    path = project / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    fetch(place)
    watched = place == "data/sample.csv" or place.startswith("data/local/")
    assert ("does not see its edits" in capsys.readouterr().out) == (not watched)


def test_a_pinned_file_is_compared_and_an_unpinned_one_is_reported_with_its_checksum(project, capsys):
    (project / "a.csv").write_bytes(CONTENT)
    right = hashlib.sha256(CONTENT).hexdigest()
    fetch("a.csv", sha256=right)
    out = capsys.readouterr().out
    assert "any content is accepted" not in out and "downloaded a.csv: 1,050 bytes in data/raw.csv" in out
    fetch("a.csv")
    assert f"any content is accepted; this one has {right}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"has sha256 {right}; expected {'0' * 64}"):
        fetch("a.csv", sha256="0" * 64)


@pytest.mark.parametrize(
    "content, fault",
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"<HTML>", "HTML"),
        (b"<head>", "HTML"),
        (b"<?xml version", "HTML"),
        (b"\xef\xbb\xbf \n<html>", "HTML"),
        (b"<p>,a", None),
        (b"a<html>", None),
        (b"\xef\xbb\xbfa,b", None),
    ],
)
def test_pages_and_empty_files_are_refused_and_nothing_else(project, content, fault):
    (project / "a.csv").write_bytes(content)
    if fault:
        with pytest.raises(UserError, match=f"is (an )?{fault}"):
            fetch("a.csv")
    else:
        fetch("a.csv")
        assert RAW.read_bytes() == content


@pytest.mark.parametrize(
    "url, shown",
    [
        ("http://me:pw@host:1/a.csv?k=v#f", "http://host:1/a.csv"),
        ("s3://me@bucket/a", "s3://bucket/a"),
        ("http://a@b@host/x", "http://host/x"),
        ("data/a?b#c@d.csv", "data/a?b#c@d.csv"),
        ("http://[x", "http://..."),
        ("data/\x1b.csv", "data/\\x1b.csv"),
    ],
)
def test_an_address_is_shown_without_credentials(url, shown):
    assert download.shown(url) == shown


def test_what_a_plug_in_raises_is_reported_by_its_kind_alone(project, monkeypatch):
    def fail(*_):
        raise RuntimeError("token=secret")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(UserError, match=r"memory://a.csv could not be read \(RuntimeError\); check") as error:
        fetch("memory://me@a.csv?x=secret")
    assert "secret" not in str(error.value)


def test_a_plug_in_that_gives_less_than_it_announced_is_tried_again(project, monkeypatch):
    opened = []

    class File:
        size = 2000

        def __enter__(self):
            opened.append(self)
            self.parts = [CONTENT, b""]
            return self

        def __exit__(self, *_):
            return False

        def read(self, size):
            return self.parts.pop(0)

    monkeypatch.setattr(fsspec, "open", lambda url, mode: File())
    with pytest.raises(UserError, match="the transfer ended after 1,050 of 2,000 bytes, 3 times"):
        fetch("memory://a.csv")
    assert len(opened) == 3
