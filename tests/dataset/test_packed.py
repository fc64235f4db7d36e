"""Packed files, spreadsheets and JSON documents: read within limits, or refused with what to do."""

import gzip
import io
import json
import zipfile

import openpyxl
import pandas as pd
import pyarrow as pa
import pytest

from stages.core.cli import UserError
from stages.core.paths import RAW
from stages.dataset import encodings, readers
from stages.dataset.readers import limits, workbooks
from stages.dataset.source import Tried
from tests.support.sources import LINES

pytestmark = pytest.mark.usefixtures("here")


def rows(raw, limit=10_000_000, **given):
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(raw)
    return list(readers.rows(RAW, Tried(**given), limit))


def refused(raw, **given):
    with pytest.raises(UserError) as error:
        rows(raw, **given)
    assert str(error.value).replace("\n", "").isprintable()
    return str(error.value)


def zipped(files, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def packed(raw, kind, tmp_path):
    if kind == "zst":
        with pa.OSFile(str(tmp_path / "x.zst"), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
            stream.write(raw)
        return (tmp_path / "x.zst").read_bytes()
    return gzip.compress(raw) if kind == "gz" else zipped({"inner/x.csv": raw})


KINDS = pytest.mark.parametrize("kind", ["gz", "zip", "zst"])


@KINDS
@pytest.mark.parametrize("raw", [b"q,a\n1,2\n", b'[{"a": 1}, {"a": 2}]', LINES.encode(), LINES.encode("cp1252")])
def test_a_packed_file_reads_as_the_file_in_it(kind, raw, tmp_path):
    assert rows(packed(raw, kind, tmp_path)) == rows(raw)


@KINDS
def test_a_packed_file_may_unpack_to_the_limit_and_no_further(kind, tmp_path):
    raw = packed(b"a\n" * 5_000, kind, tmp_path)
    assert len(rows(raw, limit=10_000)) == 5_000
    with pytest.raises(UserError, match="unpacks to more than data.max_mb allows"):
        rows(raw, limit=9_999)


@KINDS
def test_a_packed_file_that_is_cut_off_is_damaged_and_not_shorter(kind, tmp_path):
    raw = packed(b"".join(b"%d,%d\n" % (n, n * n) for n in range(50_000)), kind, tmp_path)
    assert "damaged" in refused(raw[: len(raw) // 2])


def test_several_frames_of_zstandard_are_one_file(tmp_path):
    assert rows(packed(b"a\n1\n", "zst", tmp_path) + packed(b"2\n", "zst", tmp_path))[-1] == (3, ["2"])


def test_a_zip_holds_one_file_beside_what_systems_add():
    files = {"x.csv": b"q,a\n1,2\n", "__MACOSX/._x.csv": b"junk", ".DS_Store": b"junk"}
    assert rows(zipped(files)) == rows(b"q,a\n1,2\n")
    said = refused(zipped({f"{n}.csv": b"a\n" for n in range(9)}))
    assert "holds 0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 4 more; expected one file: unpack it" in said
    assert "holds no file" in refused(zipped({}))


def test_what_a_zip_may_do_to_harm_is_refused():
    assert "unusual method" in refused(zipped({"x.csv": b"a\n" * 50}, zipfile.ZIP_LZMA))
    secret = bytearray(zipped({"x.csv": b"a\n"}))
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        secret[secret.index(sign) + place] |= 1
    assert "encrypted" in refused(bytes(secret))
    wrong = bytearray(zipped({"x.csv": b"a,b\n" * 100}, zipfile.ZIP_STORED))
    wrong[60] ^= 1
    assert "damaged" in refused(bytes(wrong))
    many = zipped({f"{n:050}.csv": b"" for n in range(15_000)}, zipfile.ZIP_STORED)
    assert "a list of more files than is read" in refused(many)
    assert "holds a\\x1b[31m.csv, b.csv" in refused(zipped({"a\x1b[31m.csv": b"", "b.csv": b""}))


def test_documents_that_are_zips_are_named():
    assert "is a Word document; save its table" in refused(zipped({"word/document.xml": b"<w/>"}))
    assert "is an OpenDocument file" in refused(zipped({"content.xml": b"<w/>", "mimetype": b"x"}))


@pytest.mark.parametrize(
    "magic, said",
    [
        (b"%PDF-1.7", "a PDF"), (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel or Word file; .* save its table as .xlsx"),
        (b"SQLite format 3\x00", "an SQLite database; .* sqlite3 -header -csv"), (b"ARROW1\0\0", "an Arrow file"),
        (b"BZh91AY", "bunzip2"), (b"\xfd7zXZ\x00", "xz -d"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a RAR archive"), (b"Obj\x01", "an Avro file"), (b"<!DOCTYPE html><html>", "a web page"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named_with_the_way_to_records(magic, said):
    with pytest.raises(UserError, match=said):
        rows(magic + b"\x00" * 50)


def book(sheets):
    made, out = openpyxl.Workbook(), io.BytesIO()
    made.remove(made.active)
    for name, content in sheets.items():
        sheet = made.create_sheet(name)
        for row in content:
            sheet.append(row)
    made.save(out)
    return out.getvalue()


def test_a_sheet_is_read_by_name_or_the_first(capsys):
    raw = book({"Notes": [["x"]], "FAQ": [["q", "a"], ["Open?", "Yes."]]})
    assert rows(raw, sheet="FAQ") == [(1, ["q", "a"]), (2, ["Open?", "Yes."])]
    assert rows(raw) == [(1, ["x"])]
    assert (
        "has the sheets Notes, FAQ; the first is read, data.sources.NAME.sheet names another" in capsys.readouterr().out
    )
    assert "there is no sheet 'Faq'; the sheets are: Notes, FAQ" in refused(raw, sheet="Faq")


def test_cells_are_text_and_empty_rows_at_the_end_are_none():
    import datetime

    day = datetime.datetime(2026, 11, 25, 10)
    raw = book(
        {"x": [["a", "b", "c"], [1.0, 2.5, True], [None, day, None], [None, None, None], ["é", "", None], ["", ""]]}
    )
    assert rows(raw) == [
        (1, ["a", "b", "c"]),
        (2, ["1", "2.5", "TRUE"]),
        (3, ["", "2026-11-25T10:00:00", ""]),
        (4, []),
        (5, ["é", "", ""]),
    ]


def test_a_spreadsheet_is_bounded(monkeypatch):
    raw = book({"x": [["a" * 100] * 10] * 100})
    with pytest.raises(UserError, match="unpacks to more than"):
        rows(raw, limit=1_000)
    monkeypatch.setattr(workbooks, "_HELD_LIMIT", 1_000)
    assert "too large for a spreadsheet" in refused(raw)
    monkeypatch.undo()
    monkeypatch.setattr(workbooks, "_COLUMN_LIMIT", 5)
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(raw)
    with pytest.raises(UserError, match="more than 1,048,576 rows or 5 columns"):
        list(readers.rows(RAW, Tried(), 10**7))


def test_a_row_number_beyond_any_sheet_ends(monkeypatch):
    monkeypatch.setattr(workbooks, "_ROW_LIMIT", 1_000)
    with zipfile.ZipFile(io.BytesIO(book({"x": [["a"], ["b"]]}))) as archive:
        files = {one.filename: archive.read(one) for one in archive.infolist()}
    name = "xl/worksheets/sheet1.xml"
    files[name] = files[name].replace(b'<row r="2"', b'<row r="999999999999"').replace(b'r="A2"', b'r="A999999999999"')
    assert "more than 1,000 rows" in refused(zipped(files))


@pytest.mark.parametrize("files", [{}, {"xl/workbook.xml": b"<x"}, {"xl/workbook.xml": b"<workbook/>"}])
def test_a_damaged_spreadsheet_is_reported(files):
    assert "damaged spreadsheet" in refused(zipped({"xl/workbook.xml": b"", **files}))
    assert "must not be packed once more" in refused(gzip.compress(book({"x": [["a"]]})))


ONE, TWO = {"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ONE, indent=2) + "\n" + json.dumps(TWO, indent=2),
        json.dumps([ONE, TWO], indent=2),
        json.dumps({"data": [ONE, TWO]}),
        json.dumps({"data": [ONE, TWO]}, indent=2),
        json.dumps({"version": 1, "meta": {"a": [1]}, "rows": [ONE, TWO], "tags": ["x"]}),
        json.dumps(ONE) + "\n" + json.dumps(TWO),
        json.dumps(ONE, indent=1) + json.dumps(TWO, indent=1),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_records_are_found_however_json_is_laid_out(text, end):
    assert [json.loads(content) for _, content in rows((text + end).encode())] == [ONE, TWO]


def test_a_single_record_is_not_taken_apart():
    tools = {"tools": [{"name": "f"}], **ONE}
    for text in (json.dumps(ONE), json.dumps(ONE, indent=2), json.dumps(tools), json.dumps(tools, indent=2)):
        assert [json.loads(content) for _, content in rows(text.encode())] == [json.loads(text)]


def test_lists_of_messages_are_records_one_a_line_or_in_an_array():
    talks = [ONE["messages"], TWO["messages"]]
    for text in (json.dumps(talks), "\n".join(map(json.dumps, talks)), json.dumps(talks, indent=1)):
        assert [json.loads(content) for _, content in rows(text.encode())] == talks


def test_a_long_line_that_holds_a_list_is_a_document():
    text = json.dumps({"data": [{"q": "x" * 900, "n": n} for n in range(100)]})
    assert len(text) > limits.HEAD and len(rows(text.encode())) == 100
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 900}] * 100})
    assert len(rows((long + "\n" + long).encode())) == 2


def test_json_that_holds_something_else_says_what_to_do():
    assert "with the lists train, test; write the one" in refused(json.dumps({"train": [ONE], "test": [TWO]}).encode())
    frame = pd.DataFrame({"q": ["a", "b"], "a": ["c", "d"]})
    assert "orient='records', lines=True" in refused(frame.to_json().encode())
    assert "the source is not JSON: " in refused(b'{\n "a": 1\n}\n{\n "b": \n}')


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("mac_roman", "Où est le café Zoé, près de la gare ? Près de l’hôtel, à côté du théâtre, déjà ouvert l’été."),
        ("mac_roman", "Wann gibt es Frühstück? Schöne Grüße, natürlich für Sie, von sieben bis zehn Uhr, täglich."),
        ("cp437", "Wann gibt es Frühstück? Schöne Grüße, natürlich für Sie, von sieben bis zehn Uhr, täglich."),
        ("koi8_r", "Во сколько завтрак? Завтрак подают с семи до десяти часов утра в саду."),
        ("cp866", "Во сколько завтрак? Завтрак подают с семи до десяти часов утра в саду."),
        ("cp1254", "Kahvaltı saat kaçta? Kahvaltı yediden ona kadar bahçede verilir, teşekkürler, iyi günler, şimdi."),
        ("cp1256", "متى يفتح المتجر؟ يفتح المتجر من التاسعة حتى السادسة."),
    ],
)
def test_older_encodings_are_found_by_the_letters_of_the_language(encoding, text):
    assert encodings.guess(text.encode(encoding)) == encoding
    assert rows(f'"{text}"\n'.encode(encoding)) == [(1, [text])]


def test_text_in_an_unknown_encoding_asks_for_it_and_is_no_binary_file():
    # Too few letters to tell the language from.
    said = refused("q,a\nZoé: où ?,là\n".encode("mac_roman"))
    assert "save it as UTF-8, or declare it: data.sources.NAME.encoding: cp1252 (or mac_roman," in said
    assert rows("q,a\nZoé: où ?,là\n".encode("mac_roman"), encoding="mac_roman")[1] == (2, ["Zoé: où ?", "là"])
    assert "is a binary file" in refused(b"\x00\x01\x02\xff\xfe\xfd" * 50)
