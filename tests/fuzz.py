"""Fuzzing: `make fuzz` changes real inputs in many small ways; each must end in a result or in a sentence.

A fault is any other exception, more than ten seconds, or more than a gigabyte. Each kind of input is tried ten thousand
times; `make fuzz ONLY='params suites' INPUTS=100000` tries some of them longer. A fault is made as small as it can be,
and printed; it belongs into the tests of the module that it was found in.
"""

import argparse
import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stages import params, report
from stages.core.cli import UserError
from stages.core.flatten import address, has_credentials
from stages.core.paths import RAW, SUITE
from stages.dataset import formats, readers
from stages.dataset.signals import SCHEMA
from stages.gate.suite import read_suite
from tests.conftest import ROOT
from tests.support import reports
from tests.support.sources import LINES, as_csv, record, source

_SECONDS = 10
_BYTES = 10**9
_LIMIT = 10_000_000
# What readers stumble over.
_TOKENS = [
    b"\0", b'"', b"'", b"\\", b"\n", b"\r", b"\r\n", b",", b";", b"\t", b"{", b"}", b"[", b"]", b":", b"- ", b"&a ",
    b"*a", b"!!python/object:os.system ", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[31m",
    b"null", b"true", b"NaN", b"1e999", b"-1", b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"a" * 70_000, b"../../",
    b"::", b"://", b"@", b"%00", b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"<<<<<<< HEAD\n", b"=1+1", b"<script>",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One kind of input: whole examples that are changed, and what reads them."""

    examples: Sequence[bytes]
    read: Callable[[bytes], Any]


def _sources() -> Target:
    parquet = io.BytesIO()
    import pandas as pd

    pd.DataFrame({"prompt": ["Open?", "When?"], "completion": ["Yes.", "At 7."]}).to_parquet(parquet)
    shapes = [
        (source(), LINES.encode()),
        (source(), as_csv([record(("user", "Open?"), ("assistant", "Yes."))])),
        (source(), b"[" + LINES.strip().replace("\n", ",").encode() + b"]"),
        (source("columns", columns=params.Columns(user="q", assistant="a")), as_csv(["q", "a"], ["Open?", "Yes."])),
        (source("sharegpt"), b'{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}\n'),
        (source("alpaca"), b'[{"instruction":"q","input":"","output":"a"}]'),
        (source("prompt_completion"), parquet.getvalue()),
    ]
    declared = dict(zip(map(bytes, (raw for _, raw in shapes)), (given for given, _ in shapes), strict=True))

    def read(raw: bytes) -> None:
        RAW.parent.mkdir(exist_ok=True)
        RAW.write_bytes(raw)
        # By a stable choice, so that an input is the same when it is made smaller.
        given = min(declared.items(), key=lambda one: abs(len(one[0]) - len(raw)))[1]
        rows = [row for row, _ in readers.rows(RAW, given, _LIMIT)]
        records = [one.row for one in formats.read(readers.rows(RAW, given, _LIMIT), given)]
        assert len(records) == len(set(records)) and set(records) <= set(rows), "a row is lost or doubled"

    return Target([raw for _, raw in shapes], read)


def _params() -> Target:
    return Target(
        [(ROOT / "params.yaml").read_bytes(), b"lr: 0.1\n"], lambda raw: _written(params.PARAMS, raw, params.load)
    )


def _suites() -> Target:
    columns = SCHEMA.names
    return Target([(ROOT / SUITE).read_bytes()], lambda raw: _written(SUITE, raw, lambda: read_suite(SUITE, columns)))


def _reports() -> Target:
    """The committed files that a report is made of, each changed in turn."""
    (Path("params.yaml")).write_bytes((ROOT / "params.yaml").read_bytes())
    reports.write_inputs()
    whole = {path: path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.suffix in (".json", ".csv")}

    def read(raw: bytes) -> None:
        # The file that it was made of, most likely; always the same one for the same input.
        path = min(whole, key=lambda one: (whole[one] != raw, abs(len(whole[one]) - len(raw))))
        try:
            _written(path, raw, report.main)
        finally:
            path.write_bytes(whole[path])

    return Target(list(whole.values()), read)


def _addresses() -> Target:
    def read(raw: bytes) -> None:
        url = raw.decode("utf-8", "replace")
        shown = address(url)
        # What is shown of an address that has none is no more than that address.
        assert has_credentials(url) or len(shown) <= len(url) + 3

    examples = [
        b"https://me:pw@host:1/a.csv?token=x#f",
        b"zip://a.csv::simplecache::s3://k:s@bucket/a.zip",
        b"data/a.csv",
    ]
    return Target(examples, read)


TARGETS = {"sources": _sources, "params": _params, "suites": _suites, "reports": _reports, "addresses": _addresses}


def _written(path: Path, raw: bytes, read: Callable[[], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    read()


@st.composite
def _changed(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """One of the examples with up to five changes: something put in, cut out, doubled or overwritten."""
    raw = draw(st.sampled_from(examples))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 40)))
        new = draw(st.sampled_from(_TOKENS) | st.binary(max_size=4) | st.just(raw[start:end] * 2))
        raw = raw[:start] + new + raw[end if draw(st.booleans()) else start :]
    return raw


def fuzz(target: Target, inputs: int) -> Counter:
    """Try so many inputs; count which were read and which refused.

    Raises:
        Exception: the fault that was found, with the smallest input that has it.
    """
    ends: Counter = Counter()

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(_changed(target.examples))
    def attempt(raw: bytes) -> None:
        try:
            with _bounded(), _silent():
                target.read(raw)
            ends["read"] += 1
        except UserError:
            ends["refused"] += 1

    attempt()
    return ends


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"more than {_SECONDS} seconds")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _limit_memory() -> None:
    """Let memory run out a gigabyte from here, so that it is a fault and no trouble for the machine."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + _BYTES, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", choices=[[], *TARGETS], help="kinds of input; all if none is named")
    parser.add_argument("--inputs", type=int, default=10_000, help="how many of each")
    asked = parser.parse_args()
    faults = 0
    print(f"{'':12}{'inputs':>10}{'read':>10}{'refused':>10}{'seconds':>10}")
    for name in asked.only or TARGETS:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            target = TARGETS[name]()
            for whole in target.examples:
                with contextlib.suppress(UserError), _silent():
                    # What is loaded only once takes time and memory that no input is to blame for.
                    target.read(whole)
            _limit_memory()
            begin = time.monotonic()
            try:
                ends = fuzz(target, asked.inputs)
            except Exception:
                faults += 1
                sys.excepthook(*sys.exc_info())
                continue
            seconds = time.monotonic() - begin
        print(f"{name:12}{ends.total():10,}{ends['read']:10,}{ends['refused']:10,}{seconds:10.0f}", flush=True)
    sys.exit(f"{faults} kinds of input have a fault; each is above" if faults else 0)


if __name__ == "__main__":
    main()
