"""What pandas reads of data/quarantine.csv is what the source has, whatever the source is."""

import csv
import io
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.cli import UserError
from stages.core.paths import QUARANTINE, RAW
from stages.gate import quarantine
from tests.conftest import good_records

# Quotes, line ends, NUL, a direction override, and what spreadsheets take for a formula or pandas for a number.
ODD = [
    'say "hi"',
    "a\nb",
    "a\r\nb",
    "\r",
    "x\0y",
    "\u202eabc",
    "=1+1",
    "+1",
    "-1",
    "@A1",
    "007",
    "NA",
    "a,b;c",
    "\\",
    "é",
]


def source(form="columns", label=None, encoding=None):
    return SimpleNamespace(
        format=form,
        columns=SimpleNamespace(user="q", assistant="a", system=None, system_prompt=None, history=None),
        turns=None,
        label=label,
        ignore=(),
        roles={},
        reasoning=None,
        container=None,
        sheet=None,
        encoding=encoding,
        delimiter=None,
        escape=None,
        key=lambda field: f"data.sources.own.{field}",
    )


@pytest.fixture
def read(here):
    """read(raw, rows, ...) sets rows of a source aside, and reads them as anybody would, all cells as text."""

    def run(raw, rows, **declared):
        RAW.parent.mkdir(exist_ok=True)
        RAW.write_bytes(raw)
        quarantine.write({row: f"rule {row}" for row in rows}, source(**declared), 10**8)
        return pd.read_csv(QUARANTINE, dtype=str, keep_default_na=False)

    return run


def as_csv(rows):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def test_a_table_keeps_its_columns(read):
    found = read(
        as_csv([["q", "a", "note"], *([one, f"{n}", ""] for n, one in enumerate(ODD))]), range(2, len(ODD) + 2)
    )
    assert list(found) == ["row", "why", "q", "a", "note"]
    assert found["q"].tolist() == ODD and found["a"].tolist() == [str(n) for n in range(len(ODD))]
    assert found["row"].tolist() == [str(n) for n in range(2, len(ODD) + 2)]
    assert found["why"].tolist() == [f"rule {n}" for n in range(2, len(ODD) + 2)]


def test_pandas_reads_the_row_as_a_number_without_being_asked(read):
    read(as_csv([["q", "a"], ["x", "y"]]), [2])
    assert pd.read_csv(QUARANTINE)["row"].tolist() == [2]


@pytest.mark.parametrize("header", [[], [["chat"]]])
def test_records_of_a_csv_with_and_without_header(read, header):
    found = read(
        as_csv([*header, *([one] for one in ['{"messages": 5}', *ODD])]),
        [1 + len(header), 3 + len(header)],
        form="messages",
    )
    name = "chat" if header else "record"
    assert list(found) == ["row", "why", name] and found[name].tolist() == ['{"messages": 5}', ODD[1]]


def test_records_beside_a_label_keep_both_columns(read):
    found = read(as_csv([["topic", "chat"], ["pool", "{"]]), [2], form="messages", label="topic")
    assert found.to_dict("records") == [{"row": "2", "why": "rule 2", "topic": "pool", "chat": "{"}]


def test_a_line_of_json_lines_is_a_record_as_it_is_written(read):
    lines = ['{"q": "a\\nb",  "a": 1}', "{broken", '{"other": "\\u0000 \\ud800 é"}']
    found = read("\n".join(lines).encode(), [1, 2, 3])
    assert list(found) == ["row", "why", "record"] and found["record"].tolist() == lines


def test_an_element_of_a_json_array_is_a_record_as_it_is_written(read):
    found = read('[{"q": 1,  "a": "é"}, 5, {"q": "x\\n"}]'.encode(), [1, 3])
    assert found["record"].tolist() == ['{"q": 1,  "a": "é"}', '{"q": "x\\n"}'] and list(found["row"]) == ["1", "3"]


def test_parquet_keeps_its_columns_and_what_is_no_text_is_json(read):
    table = pd.DataFrame(
        {"q": ODD, "a": range(len(ODD)), "row": [{"k": ["é", None]}] * len(ODD), "why": [None] * len(ODD)}
    )
    table["at"] = pd.Timestamp("2026-01-02T03:04:05")
    found = read(table.to_parquet(), range(1, len(ODD) + 1))
    assert list(found) == ["row", "why", "q", "a", "row.1", "why.1", "at"]
    assert found["q"].tolist() == ODD and found["a"].tolist() == [str(n) for n in range(len(ODD))]
    assert json.loads(found["row.1"][0]) == {"k": ["é", None]} and found["why.1"][0] == ""
    assert pd.Timestamp(found["at"][0]) == pd.Timestamp("2026-01-02T03:04:05")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_text_in_another_encoding_is_the_same_text(read, encoding):
    raw = as_csv([["q", "a"], ["Où est la clé? Là-bas, à côté de l’entrée.", "Près du café, señor."]])
    found = read(raw.decode().encode(encoding), [2], encoding=encoding)
    assert found["q"].tolist() == ["Où est la clé? Là-bas, à côté de l’entrée."]
    assert found["a"].tolist() == ["Près du café, señor."]


def test_narrow_rows_are_filled_and_further_cells_are_a_list_in_the_last_column(read):
    rows = [["q", "a"], ["1"], ["1", "2"], ["1", "2", "3", 'x"y'], ["1", "2", "3"]]
    found = read(as_csv(rows), [2, 3, 4])
    assert list(found) == ["row", "why", "q", "a", "more"]
    assert found[["q", "a"]].values.tolist() == [["1", ""], ["1", "2"], ["1", "2"]]
    assert found["more"].tolist()[:2] == ["", ""] and json.loads(found["more"][2]) == ["3", 'x"y']
    # Without such a row there is no such column.
    assert list(read(as_csv(rows), [2, 3])) == ["row", "why", "q", "a"]


def test_a_blank_row_is_a_row(read):
    found = read(b"q,a\n\n1,2\n", [2, 3])
    assert found[["row", "q", "a"]].values.tolist() == [["2", "", ""], ["3", "1", "2"]]


@pytest.mark.parametrize(
    "raw, names",
    [
        (as_csv([["q", "a", ""], ["x", "y", "z"]]), ["q", "a", "column 3"]),
        (b'{"q": 1}\n', ["record"]),
        (b"[1]", ["record"]),
        (pd.DataFrame({"q": ["x"], "a": ["y"]}).to_parquet(), ["q", "a"]),
    ],
)
def test_with_nothing_set_aside_there_is_the_header_alone(read, raw, names):
    found = read(raw, [])
    assert list(found) == ["row", "why", *names] and len(found) == 0


@pytest.mark.parametrize(
    "names, header",
    [
        (["row", "why", "q", "a"], ["row", "why", "row.1", "why.1", "q", "a"]),
        (["row", "row.1", "row"], ["row", "why", "row.2", "row.1", "row.3"]),
        (["x", "x", "more"], ["row", "why", "x", "x.1", "more"]),
    ],
)
def test_a_name_that_is_taken_gets_a_number(read, names, header):
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(as_csv([names, [f"cell {n}" for n in range(len(names))]]))
    quarantine.write({2: "x"}, source(), 10**8)
    with QUARANTINE.open(newline="", encoding="utf-8") as file:
        first, second = csv.reader(file)
    assert first == header and second[2:] == [f"cell {n}" for n in range(len(names))]


def test_the_column_of_further_cells_gets_out_of_the_sources_way(read):
    found = read(as_csv([["more", "q"], ["1", "2", "3"]]), [2])
    assert list(found) == ["row", "why", "more", "q", "more.1"] and found["more"][0] == "1"


def test_ten_thousand_equal_names_take_no_time(read):
    found = read(as_csv([["x"] * 10_000, ["1"] * 10_000]), [2])
    assert len(found.columns) == 10_002 and found.columns[-1] == "x.9999"


def test_a_row_that_is_gone_is_noticed_and_the_file_is_kept(read):
    read(as_csv([["q", "a"], ["x", "y"]]), [2])
    before = QUARANTINE.read_bytes()
    with pytest.raises(UserError, match="data/raw.csv changed while it was read"):
        read(as_csv([["q", "a"], ["x", "y"]]), [2, 3])
    assert QUARANTINE.read_bytes() == before and sorted(path.name for path in QUARANTINE.parent.iterdir()) == [
        "quarantine.csv",
        "raw.csv",
    ]


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5), min_size=1, max_size=8
    )
)
def test_any_cells_come_back(read, rows):
    # Rows without any text are blank lines, and none at the end of the file.
    rows = [*(cells if any(cells) or len(cells) == 1 else [] for cells in rows), ["end"]]
    found = read(as_csv([["q", "a", "n"], *rows]), range(2, len(rows) + 2))
    assert list(found)[:5] == ["row", "why", "q", "a", "n"]
    for cells, back in zip(rows, found.to_dict("records"), strict=True):
        more = json.loads(back["more"] or "[]") if "more" in back else []
        assert [back["q"], back["a"], back["n"], *more] == [*cells, *[""] * (3 - len(cells))]


def test_the_gate_says_in_the_file_what_is_wrong_with_a_record(gate):
    gate([*good_records(20), ["{}", "x"]], on_error="quarantine", max_quarantined=0.5)
    (found,) = pd.read_csv(QUARANTINE).to_dict("records")
    assert found["why"].startswith("parses: 2 columns where one column of JSON records is expected; fix the record")
    assert (found["row"], found["record"], found["more"]) == (21, "{}", '["x"]')
