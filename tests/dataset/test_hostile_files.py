"""Files that are broken, huge or made to do harm end in a sentence, in bounded memory."""

import contextlib
import gzip
import io
import json
import random
import time
import tracemalloc

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import parse
from stages.backends.openai.reader import HostedChat
from stages.backends.unsloth.reader import Chat
from stages.core.cli import UserError
from stages.core.paths import RAW
from stages.dataset import conversations, formats, readers
from stages.dataset.readers import limits
from stages.dataset.signals import SCHEMA, Signaller
from tests.support.sources import FREE, KEY, LINES, MESSAGES, TALK, as_csv, read, record, source, talk

pytestmark = pytest.mark.usefixtures("here")


def test_a_binary_file_is_reported():
    with pytest.raises(UserError, match="is a binary file; expected CSV, JSON"):
        read(bytes(random.Random(0).randbytes(5000)))


@pytest.mark.parametrize("declared", ["csv", "json", "parquet"])
def test_a_wrong_container_names_the_right_one(declared):
    with pytest.raises(UserError, match=f"is declared as {declared}, and is jsonl"):
        read(record(*TALK).encode(), source(container=declared))


HOSTILE = {
    "formula": as_csv(['=HYPERLINK("http://evil")']),
    "nul bytes": b'"{\x00}"\n"\x00\x1b[31m"',
    "deep": as_csv(["[" * 100_000]),
    "deep jsonl": b'{"messages": ' + b"[" * 100_000,
    "deep json": b'[{"messages": ' + b"[" * 100_000,
    "duplicate keys": as_csv(['{"messages": [], "messages": 5}']),
    "surrogate": as_csv(['{"messages": [{"role": "user", "content": "\\ud800"}]}']),
    "surrogate json": b'[{"messages": [{"role": "user", "content": "\\ud800"}]}]',
    "nan": as_csv(['{"messages": NaN}']),
    "torn gzip": gzip.compress(random.Random(0).randbytes(1000))[:500],
    "torn parquet": b"PAR1 and nothing",
    "torn json": b'[{"messages": [',
    "path": as_csv(["../../etc/passwd"], ["../../etc/passwd"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_an_error_that_can_be_read(name):
    try:
        found = read(HOSTILE[name])
    except UserError as error:
        assert "data/raw.csv" in str(error) or "the source" in str(error)
    else:
        assert found and all(one[1] is None and one[2] and one[3].isprintable() for one in found)


def test_a_million_columns():
    with pytest.raises(UserError, match="1,000,000 columns"):
        read(b"," * 999_999 + b"\n")


@pytest.mark.parametrize("raw", [b'"' + b"a" * 5_000_000 + b'"', b"{" + b"a" * 5_000_000])
def test_a_giant_record(raw):
    with pytest.raises(UserError, match="of the source"):
        read(raw)


def test_a_giant_cell_of_a_parquet_file():
    out = io.BytesIO()
    pd.DataFrame({"prompt": ["a"] * 99 + ["a" * 5_000_000], "completion": ["b"] * 100}).to_parquet(out)
    with pytest.raises(UserError, match="row 100 of the source has more than 4,000,000 bytes in 'prompt'"):
        read(out.getvalue(), source("prompt_completion"))


def test_a_parquet_bomb():
    out = io.BytesIO()
    pd.DataFrame({"prompt": ["a" * 3_000_000] * 10, "completion": ["b"] * 10}).to_parquet(out, use_dictionary=False)
    assert len(out.getvalue()) < 3_000_000
    with pytest.raises(UserError, match=r"unpacks to more than data.max_mb allows \(10 MB\)"):
        read(out.getvalue(), source("prompt_completion"))


def test_a_parquet_bomb_of_one_value_in_many_rows():
    """A value that all rows share stands in the file once, and the file's own figures count it once."""
    out = io.BytesIO()
    pd.DataFrame({"prompt": ["a" * 900_000] * 200, "completion": ["b"] * 200}).to_parquet(out)
    assert len(out.getvalue()) < 1_000_000
    with pytest.raises(UserError, match=r"unpacks to more than data.max_mb allows \(10 MB\)"):
        read(out.getvalue(), source("prompt_completion"))


def test_a_json_array_of_many_small_elements_takes_little_memory(monkeypatch):
    # Room for the whole array is taken at once.
    monkeypatch.setattr(limits, "ARRAY_LIMIT", 300_000)
    raw = b"[" + b"0," * 100_000 + b"0]"
    RAW.parent.mkdir()
    RAW.write_bytes(raw)
    tracemalloc.start()
    count = sum(1 for _ in readers.rows(RAW, MESSAGES, 10_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_001 and peak < 10 * len(raw)


@pytest.mark.parametrize("raw", [b"[1, 2", b"[1 2]", b"[1,]", b"[1] 2", b"[", b"[,]", b"[1]]", b"[}"])
def test_a_json_array_that_is_none_is_reported(raw):
    with pytest.raises(UserError, match="the source is not a JSON array: .*; fix it, or write one record a line"):
        read(raw)


def test_elements_of_a_json_array_come_as_they_are_written():
    raw = b' [ {"a" : 1e400, "b":"\\ud800]"} ,\r\n' + b"9" * 5000 + b',"\xc3\xa9",[ ] ]\n'
    RAW.parent.mkdir()
    RAW.write_bytes(raw)
    found = [content for _, content in readers.rows(RAW, MESSAGES, 10_000_000)]
    assert found == [b'{"a" : 1e400, "b":"\\ud800]"}', b"9" * 5000, b'"\xc3\xa9"', b"[ ]"]


@pytest.mark.parametrize("size, expected", [(100, [100, 100, 50]), (99_000, [20] * 12 + [10]), (3_000_000, [1] * 250)])
def test_a_chunk_is_bounded_in_records_and_in_bytes(size, expected, monkeypatch):
    monkeypatch.setattr(parse, "CHUNK", 100)
    one = talk(("user", "a" * (size - 70)), ("assistant", "b"))
    found = list(parse.chunks(formats.Record(n, one) for n in range(250)))
    assert [len(chunk) for chunk in found] == expected
    assert [record.row for chunk in found for record, _ in chunk] == list(range(250))
    assert {line for chunk in found for _, line in chunk} == {conversations.encode(one) + b"\n"}


def test_a_large_json_array_is_sent_to_json_lines(monkeypatch):
    monkeypatch.setattr(limits, "ARRAY_LIMIT", 100)
    with pytest.raises(UserError, match="one JSON array of more than 0.0001 MB.* write one record a line"):
        read(f"[{LINES.splitlines()[0]}]".encode())


@pytest.mark.parametrize("raw", [b"\x81[", b"\x81\x81[{}]", "\N{NO-BREAK SPACE}[{}]".encode()])
def test_what_only_looks_like_a_json_array_is_reported(raw):
    with pytest.raises(UserError, match=r"is not a JSON array: Expecting '\['|binary file"):
        read(raw)


def test_a_zip_bomb():
    with pytest.raises(UserError, match="unpacks to more than data.max_mb allows"):
        read(gzip.compress(b"a\n" * 10_000_000), limit=1_000_000)


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


SHAPES = st.sampled_from(["messages", "sharegpt", "alpaca"])


@FUZZ
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")), SHAPES)
def test_no_bytes_crash_the_reader(raw, shape):
    try:
        for row, conversation, reason, *_ in read(raw, source(shape)):
            assert row > 0 and (conversation is None) == bool(reason)
    except UserError:
        pass


@FUZZ
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_no_torn_csv_crashes_the_reader(seed, cuts):
    rng = random.Random(seed)
    raw = bytearray(as_csv(*[[record(*TALK)] for _ in range(5)]))
    for _ in range(cuts):
        raw[rng.randrange(len(raw))] = rng.choice(b'"\\{}[],\n\x00\xff')
    with contextlib.suppress(UserError):
        read(bytes(raw))


@FUZZ
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_text_comes_through_a_csv_unaltered(texts):
    talks = [(("user", text), ("assistant", text)) for text in texts]
    assert [one[1] for one in read(as_csv(*[[record(*turns)] for turns in talks]))] == [talk(*turns) for turns in talks]


def test_many_keys_and_many_marks_take_no_long_time():
    count = 20_000
    keys = ",".join(f'"k{number}":1' for number in range(count))
    begin = time.process_time()
    raw = f'{{"prompt":"a","completion":"b",{keys},"k{count - 1}":1}}'.encode()
    assert "is repeated in one object" in read(raw, source("prompt_completion"))[0].error
    assert talk(("user", "a" + "\u0315\u0300" * count), ("assistant", "b")).prompt_key
    assert HostedChat("gpt-4o").lengths(["ab" * count])[0] > count / 10
    assert time.process_time() - begin < 5


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([KEY, "<s>", '{"a": [', "free", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "function", "id"]), inner),
    max_leaves=8,
)


CALLS = st.lists(st.fixed_dictionaries({"function": st.just(FREE), "type": st.just("function"), "id": st.text()}))


TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.none() | st.text(max_size=20)},
    optional={"tool_calls": CALLS | VALUES, "name": st.text() | VALUES, "tool_call_id": st.text() | VALUES},
)


@FUZZ
@given(turns=st.lists(TURNS, max_size=4), tools=VALUES | st.lists(st.dictionaries(st.text(), VALUES), max_size=2))
def test_no_record_crashes_what_inspects_it(small_base, turns, tools):
    records = read(as_csv([json.dumps({"messages": turns, "tools": tools})]))
    (row,) = Signaller(Chat.load(small_base)).rows(records)
    assert KEY not in str(row) and (row["error"] is None) == ("roles" in row)
    pa.Table.from_pylist([row], schema=SCHEMA)
