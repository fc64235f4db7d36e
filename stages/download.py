"""download: bring the chosen source to `data/raw.csv`, checked, or leave the former file as it was.

A path, http(s), or any address for which fsspec has a plug-in (s3://, gs://, ...). The file is written beside its place
and renamed into it only when it is whole and its checksum is right.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from netrc import NetrcParseError
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
import httpx
from fsspec.registry import known_implementations
from tqdm import tqdm

from stages import params
from stages.core import files
from stages.core.cli import UserError, notice, run
from stages.core.flatten import CREDENTIALS, address, has_credentials
from stages.core.paths import RAW
from stages.core.text import printable

# What dvc.yaml watches: an edit of a file in these places re-runs the pipeline.
WATCHED = (Path("data/sample.csv"), Path("data/local"))
_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 1.0
_TIMEOUT = httpx.Timeout(30, connect=10)
# A transfer that is slower than this after so long is given up.
_PATIENCE_SECONDS, _LEAST_BYTES_PER_SECOND = 60, 1000
_CHUNK = 1 << 20
_HEAD = 1024
_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_WORTH_ANOTHER_TRY = {408, 429, 500, 502, 503, 504}


class TransferError(Exception):
    """A transfer failed that may succeed if repeated; the message says what went wrong."""


def main() -> None:
    data = params.load().data
    fetch(data.chosen, data.max_bytes)


def fetch(source: params.Source, limit: int, pause: float = _FIRST_PAUSE_SECONDS) -> None:
    """Copy the source to `data/raw.csv`.

    `pause` is the time in seconds before the second attempt; it doubles before each further one.

    Raises:
        UserError: the source cannot be had, is too large, is no data, or is not what its sha256 says.
    """
    name = shown(source.url)
    if has_credentials(source.url):
        raise UserError(f"{source.key('url')}: {CREDENTIALS}")
    with files.replacing(RAW) as path:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _transfer(source, path, limit)
                break
            except TransferError as error:
                if attempt == _ATTEMPTS:
                    raise UserError(_lost(name, str(error))) from None
                notice(f"{name}: {error}; trying again ({attempt + 1} of {_ATTEMPTS})")
                time.sleep(pause * 2 ** (attempt - 1))
        _check(path, source, name)
    notice(f"downloaded {name}: {RAW.stat().st_size:,} bytes in {RAW}")


def shown(url: str) -> str:
    """The address without credentials, and fit for a terminal."""
    return printable(address(url))


def _transfer(source: params.Source, path: Path, limit: int) -> None:
    url, key = source.url, source.key("url")
    try:
        scheme = urlsplit(url).scheme if "://" in url else ""
    except ValueError:
        raise UserError(f"{shown(url)} is not an address; fix {key}") from None
    if scheme in ("http", "https"):
        _copy(_http(url, key), path, shown(url), limit)
    elif scheme in ("", "file", "local"):
        _copy(_local(Path(url2pathname(urlsplit(url).path) if scheme else url), key), path, shown(url), limit)
    else:
        _copy(_fsspec(url, scheme, key), path, shown(url), limit)


Transfer = Any  # a context manager that gives (size in bytes or None, iterator over chunks of bytes)


def _copy(transfer: Transfer, path: Path, name: str, limit: int) -> None:
    """Write what arrives to `path`, with a progress bar on a terminal; stop as soon as it is too much."""
    with transfer as (size, chunks), path.open("wb") as out:
        _within(size or 0, limit, name)
        # disable=None: no bar where nobody watches.
        with tqdm(total=size, desc="download", unit="B", unit_scale=True, disable=None, leave=False) as bar:
            begin = time.monotonic()
            for chunk in chunks:
                out.write(chunk)
                if time.monotonic() - begin > _PATIENCE_SECONDS + out.tell() / _LEAST_BYTES_PER_SECOND:
                    raise TransferError(f"fewer than {_LEAST_BYTES_PER_SECOND:,} bytes come each second")
                bar.update(len(chunk))
                _within(out.tell(), limit, name)
        if size is not None and out.tell() != size:
            raise TransferError(f"the transfer ended after {out.tell():,} of {size:,} bytes")


def _within(size: int, limit: int, name: str) -> None:
    if size > limit:
        raise UserError(f"{name} is larger than data.max_mb allows ({limit / 1e6:g} MB); raise it if the file is right")


@contextmanager
def _local(path: Path, key: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    name = printable(str(path))
    try:
        if not any(path.resolve().is_relative_to(place.resolve()) for place in WATCHED):
            notice(
                f"{name} is outside data/local: `dvc repro` does not see its edits; pin its sha256, or move it there"
            )
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise UserError(f"{name} is {kind}; {key} must name a file")
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; fix {key}, or put the file there") from None
    except PermissionError:
        raise UserError(f"{name} may not be read; check its permissions") from None
    except (OSError, ValueError, RuntimeError) as error:
        # A name may hold a NUL, be too long, or be a link to itself.
        raise _unreadable(name, error, key) from None
    with file:
        yield path.stat().st_size, _blocks(file, name, key)


def _blocks(file: BinaryIO, name: str, key: str) -> Iterator[bytes]:
    try:
        yield from iter(lambda: file.read(_CHUNK), b"")
    except OSError as error:
        raise _unreadable(name, error, key) from None


def _unreadable(name: str, error: Exception, key: str) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"{name} cannot be read ({reason}); fix {key}")


@contextmanager
def _http(url: str, key: str) -> Iterator[tuple[int | None, Iterator[bytes]]]:
    name = shown(url)
    try:
        # identity: the length then counts the very bytes that are written.
        headers = {"Accept-Encoding": "identity"}
        options: dict[str, Any] = {"headers": headers, "follow_redirects": True, "timeout": _TIMEOUT, "auth": _login()}
        with httpx.stream("GET", url, **options) as response:
            _accept(response, name, key)
            length = response.headers.get("Content-Length")
            # Each piece as it comes, so that it is noticed if they come slowly.
            yield int(length) if length and length.isdigit() else None, response.iter_raw()
    except httpx.TimeoutException:
        raise TransferError("the server did not answer in time") from None
    except httpx.ConnectError as error:
        raise TransferError(f"no connection ({error})") from None
    except httpx.TooManyRedirects:
        raise UserError(f"{name} redirects without end; fix {key}") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
        raise UserError(f"{name} is not a valid address ({error}); fix {key}") from None
    except httpx.TransportError as error:
        raise TransferError(f"the connection broke ({error})") from None


def _login() -> httpx.Auth | None:
    """User and password by host from ~/.netrc, or the file that NETRC names; None where there is none."""
    try:
        return httpx.NetRCAuth(os.environ.get("NETRC"))
    except (OSError, NetrcParseError):
        return None


def _accept(response: httpx.Response, name: str, key: str) -> None:
    status = printable(f"{response.status_code} {response.reason_phrase}".strip())
    if response.status_code in _WORTH_ANOTHER_TRY:
        raise TransferError(f"the server answered {status}")
    if response.status_code in (401, 403):
        raise UserError(f"{name} answered {status}: access is denied; check your credentials")
    if response.status_code != 200:
        raise UserError(f"{name} answered {status}; check {key} in a browser")


@contextmanager
def _fsspec(url: str, scheme: str, key: str) -> Iterator[tuple[int | None, Iterator[bytes]]]:
    _has_plugin(scheme)
    _refuse_endless(url, key)
    try:
        with fsspec.open(url, "rb") as file:
            yield getattr(file, "size", None), iter(lambda: file.read(_CHUNK), b"")
    except (UserError, TransferError):
        raise
    except FileNotFoundError:
        raise UserError(f"{shown(url)} does not exist; fix {key}") from None
    except Exception as error:
        # Each plug-in raises its own kinds; the text of some holds the whole address, so only the kind is shown.
        raise UserError(
            f"{shown(url)} could not be read ({type(error).__name__}); check address, network and credentials"
        ) from None


def _refuse_endless(url: str, key: str) -> None:
    """Refuse links of a chain that take more than is asked of them, or wait for ever.

    Raises:
        UserError: one copies the whole file before its size is known, or is no file on this machine.
    """
    for part in re.split(r"::", url):
        scheme, is_address, path = part.partition("://")
        if known_implementations.get(scheme, {}).get("class", "").startswith("fsspec.implementations.cached."):
            raise UserError(f"{shown(url)}: remove '{scheme}::' from {key}; {RAW} is a copy already")
        here = scheme in ("file", "local") and is_address
        if here and Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{shown(url)} is a folder, a device or a pipe; {key} must name a file")


def _has_plugin(scheme: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise UserError(
            f"'{scheme}://' is not an address that fsspec knows; use a path, https://, s3://, gs://"
        ) from None
    except ImportError:
        package = known_implementations[scheme]["class"].partition(".")[0]
        raise UserError(f"{scheme}:// needs a plug-in: run `.venv/bin/pip install {package}`, then again") from None


def _check(path: Path, source: params.Source, name: str) -> None:
    """Refuse what is not the data that was asked for."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        raise UserError(f"{name} is empty; expected conversations as CSV, JSON, JSON Lines or Parquet")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_HTML):
        raise UserError(f"{name} is an HTML page, not data; link to the raw file, not to a page that shows it")
    got = files.sha256(path)
    if source.sha256 is None:
        notice(f"{name}: {source.key('sha256')} is null, so any content is accepted; this one has {got}")
    elif got != source.sha256:
        raise UserError(
            f"{name} has sha256 {got}; expected {source.sha256}. It is not the file that was pinned: look at it, and"
            f" change {source.key('sha256')} only if the new content is intended"
        )


def _lost(name: str, reason: str) -> str:
    hint = "without a network, `dvc exp run -S data.source=sample` runs on the sample that ships with the project"
    kept = f"; {RAW} is as it was" if RAW.exists() else ""
    return f"{name}: {reason}, {_ATTEMPTS} times{kept}\n{hint}"


if __name__ == "__main__":
    run(main)
