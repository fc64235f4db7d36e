"""What a source file is, and how far it is read: at the limits and just beyond."""

import gzip
import io

import pandas as pd
import pytest

from stages.core.cli import UserError
from stages.core.paths import RAW
from stages.dataset import readers
from stages.dataset.readers import columnar, limits
from stages.params import Source


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RAW.parent.mkdir()


def rows(raw, limit=10_000_000, **given):
    RAW.write_bytes(raw)
    return list(readers.rows(RAW, Source(url="x", sha256=None, format="messages", **given), limit))


def container(raw, **given):
    RAW.write_bytes(raw)
    return readers.container(RAW, Source(url="x", sha256=None, format="messages", **given), 10_000_000)


@pytest.mark.parametrize(
    "raw, kind",
    [
        (b"PAR1", "parquet"),
        (b"PAR2", "csv"),
        (b"{}", "jsonl"),
        (b" \n{}", "jsonl"),
        (b"[]", "json"),
        (b" \t[]", "json"),
        (b'"{}"', "csv"),
        (b"a[]", "csv"),
        (b"", "csv"),
        (b"\xef\xbb\xbf{}", "jsonl"),
        ("{}".encode("utf-16"), "jsonl"),
        ("[]".encode("utf-16-be"), "csv"),
        ("\ufeff[]".encode("utf-16-be"), "json"),
    ],
)
def test_a_file_s_first_bytes_tell_what_it_is(raw, kind):
    assert container(raw) == container(gzip.compress(raw)) == kind


def test_a_declared_encoding_is_used_to_tell():
    assert container("[]".encode("utf-16-be"), encoding="utf-16-be") == "json"
    assert container(b"[]", encoding="no such") == "json"


@pytest.mark.parametrize("kind, raw", [("csv", b"a\n"), ("json", b"[1]"), ("jsonl", b"{}")])
def test_a_right_declaration_is_accepted(kind, raw):
    assert len(rows(raw, container=kind)) == 1


def test_a_gzipped_file_may_unpack_to_the_limit_and_no_further():
    raw = b"a\n" * 5_000
    assert len(rows(gzip.compress(raw), limit=10_000)) == 5_000
    with pytest.raises(UserError, match=r"unpacks to more than data.max_mb allows \(0.009999 MB\)"):
        rows(gzip.compress(raw), limit=9_999)
    # What is not packed was limited when it was downloaded.
    assert len(rows(raw, limit=1)) == 5_000


def test_rows_of_a_csv_are_counted_with_blank_ones_between_them():
    assert rows(b"a,b\n\n\n1,2\n\n") == [(1, ["a", "b"]), (2, []), (3, []), (4, ["1", "2"])]
    assert rows(b"a,b\n,\n1,2\n,\n,,\n") == [(1, ["a", "b"]), (2, []), (3, ["1", "2"])]
    # What somebody put into quotes is a record.
    assert rows(b'a\n""\n1\n""\n') == [(1, ["a"]), (2, [""]), (3, ["1"]), (4, [""])]


@pytest.mark.parametrize("count, right", [(10_000, True), (10_001, False)])
def test_the_most_columns_of_a_table(count, right):
    raw = b"a" + b"," * (count - 1) + b"\n"
    if right:
        assert len(rows(raw)[0][1]) == count
    else:
        with pytest.raises(UserError, match="row 1 has 10,001 columns"):
            rows(raw)


def test_the_longest_record_of_a_csv(monkeypatch):
    monkeypatch.setattr(limits, "RECORD_LIMIT", 100)
    assert rows(b"a" * 100) == [(1, ["a" * 100])]
    with pytest.raises(UserError, match=r"line 2 of the source: field larger than field limit \(100\)"):
        rows(b"a\n" + b"a" * 101)


def test_the_longest_record_of_json_lines(monkeypatch):
    monkeypatch.setattr(limits, "RECORD_LIMIT", 100)
    line = b"{" + b"a" * 98 + b"}"
    assert rows(b"\xef\xbb\xbf{}\n" + line) == [(1, b"{}"), (2, line)]
    with pytest.raises(UserError, match="line 2 of the source has more than 100 bytes"):
        rows(b"{}\n" + line + b" ")


def test_blank_lines_between_json_lines_are_no_records_but_are_counted():
    assert rows(b"{}\n\n \t\n {} \r\n") == [(1, b"{}"), (4, b"{}")]


def test_the_longest_json_array(monkeypatch):
    monkeypatch.setattr(limits, "ARRAY_LIMIT", 11)
    assert rows(b"[1, [2], 3]") == [(1, b"1"), (2, b"[2]"), (3, b"3")]
    with pytest.raises(UserError, match="one JSON array of more than 1.1e-05 MB"):
        rows(b"[1, [2], 3] ")


@pytest.mark.parametrize("raw", [b"[]", b"[ ]", b"\n\n", b""])
def test_a_file_without_records_is_empty(raw):
    with pytest.raises(UserError, match=r"data/raw.csv is empty; expected one conversation a record"):
        rows(raw)


@pytest.mark.parametrize(
    "line, sign",
    [
        ("a,b", ","),
        ("a;b", ";"),
        ("a\tb", "\t"),
        ("a|b", "|"),
        ('"a;b;c",d', ","),
        ("ab", ","),
        ("a,b;c", ","),
    ],
)
def test_the_sign_that_is_most_often_outside_quotes_parts_the_cells(line, sign):
    cells = rows(f"{line}\nx;y,z|1\t2\n".encode())[0][1]
    assert len(cells) == 1 + line.replace('"a;b;c"', "x").count(sign)


@pytest.mark.parametrize(
    "raw, header",
    [
        (b"id;q (short, clear);a\n0;Open?;Yes.\n1;And Sunday, too?;No.\n", ["id", "q (short, clear)", "a"]),
        (b"q, with reason\ta\n1, 2\tx\n3, 4\ty\n", ["q, with reason", "a"]),
        (b"question|answer; if any\nOpen?|Yes; always\nShut?|No\n", ["question", "answer; if any"]),
        (b"q,a\nOpen; or not?,Yes; always\nShut; or not?,No; never\n", ["q", "a"]),
        (b"q;a\nOpen, or not?;Yes\n", ["q", "a"]),
    ],
)
def test_the_delimiter_is_the_one_by_which_the_first_rows_are_equally_wide(raw, header):
    assert rows(raw)[0][1] == header


def test_a_declared_delimiter_is_used_where_the_first_line_has_it_or_has_none():
    assert rows(b"a:b,c\n", delimiter=":") == [(1, ["a", "b,c"])]
    assert rows(b"abc\nd;e\n", delimiter=";") == [(1, ["abc"]), (2, ["d", "e"])]
    with pytest.raises(UserError, match="delimiter is ':', and the first line has none; it looks like ','"):
        rows(b"a,b\n", delimiter=":")


def parquet(frame, **options):
    out = io.BytesIO()
    frame.to_parquet(out, **options)
    return out.getvalue()


def test_rows_of_parquet_are_numbered_through_all_groups():
    frame = pd.DataFrame({"prompt": [f"q{n}" for n in range(150)]})
    found = rows(parquet(frame, row_group_size=70))
    assert [number for number, _ in found] == list(range(1, 151)) and found[149][1] == {"prompt": "q149"}


def test_a_parquet_file_may_unpack_to_the_limit_and_no_further():
    raw = parquet(pd.DataFrame({"a": ["x" * 1000] * 100}), use_dictionary=False, compression=None)
    with pytest.raises(UserError, match="unpacks to more than"):
        rows(raw, limit=99_000)
    assert len(rows(raw, limit=200_000)) == 100


def test_the_longest_record_of_parquet(monkeypatch):
    raw = parquet(pd.DataFrame({"a": ["x", "x" * 90], "b": ["y" * 9, "y"]}))
    # In memory a text is its bytes and, for each cell, four or more that say where it ends.
    monkeypatch.setattr(limits, "RECORD_LIMIT", 130)
    assert len(rows(raw)) == 2
    monkeypatch.setattr(limits, "RECORD_LIMIT", 80)
    with pytest.raises(UserError, match="row 2 of the source has more than 80 bytes in 'a'"):
        rows(raw)


def test_a_gzipped_parquet_file_is_to_be_unpacked():
    with pytest.raises(UserError, match="a Parquet file must not be gzipped; unpack it first"):
        rows(gzip.compress(parquet(pd.DataFrame({"a": ["x"]}))))


@pytest.mark.parametrize("longest, rows_at_once", [(1, 64), (1_000_000, 64), (2_000_000, 32), (64_000_001, 1)])
def test_batches_of_parquet_are_as_small_as_the_longest_column_asks(longest, rows_at_once):
    asked = []

    class File:
        class metadata:  # noqa: N801
            num_row_groups = 1

            @staticmethod
            def row_group(number):
                class Group:
                    num_columns = 1

                    @staticmethod
                    def column(at):
                        return type("Column", (), {"total_uncompressed_size": longest})

                return Group

        @staticmethod
        def iter_batches(count, row_groups):
            asked.append((count, row_groups))
            return []

    assert list(columnar.batches(File)) == [] and asked == [(rows_at_once, [0])]


def test_a_fault_of_the_encoding_far_into_the_file_is_found_with_its_line():
    raw = b"asked,answered\n" * 10_000 + "caf\xe9,b\n".encode("latin-1")
    with pytest.raises(UserError, match="the source is not utf-8: invalid continuation byte near line"):
        rows(raw, encoding="utf-8")


def test_a_letter_that_is_parted_by_a_block_is_read_whole():
    text = "[" + '"' + "a" * (limits.HEAD - 3) + "é" * 50_000 + '"' + "]"
    for encoding in ("utf-8", "utf-16", "cp1252"):
        found = rows(text.encode(encoding), encoding=None if encoding == "utf-16" else encoding)
        assert found == [(1, text[1:-1].encode())]
