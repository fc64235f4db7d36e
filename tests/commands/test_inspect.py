"""inspect: what it says of a file, and what it writes."""

import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from stages import params
from stages.commands import inspect
from stages.core.cli import UserError
from stages.dataset import formats, readers
from tests.conftest import ROOT
from tests.support.sources import TALK, as_csv, record

SHAPES = ROOT / "tests/support/shapes"


@pytest.fixture
def say(project, monkeypatch, capsys):
    """say(raw or a shape's name, *arguments) inspects a file and returns what is printed."""

    def run(what, *arguments):
        path = Path("data/local/mine.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(what if isinstance(what, bytes) else (SHAPES / what).read_bytes())
        monkeypatch.setattr("sys.argv", ["inspect", str(path), *arguments])
        inspect.main()
        return capsys.readouterr().out

    return run


def block(said):
    """The lines for params.yaml."""
    return yaml.safe_load(said.partition("for params.yaml (--add NAME writes it):")[2])


@pytest.mark.parametrize("shape", ["dolly.jsonl", "turns.csv", "bs.csv", "sgt.json", "book.xlsx", "macroman.csv"])
def test_the_block_that_is_printed_reads_the_file(say, shape):
    said = say(shape)
    assert len(re.findall(r"^row \d+$", said, re.MULTILINE)) == min(5, said.count("  user: "))
    assert " records: " in said and " 0 invalid" in said and "Hold the green button for five seconds." in said
    found = block(said)["data"]
    assert found["source"] == "mine" and found["sources"]["mine"]["url"] == "data/local/mine.csv"
    source = params.Data.model_validate({**found, "max_mb": 1}).chosen
    records = list(formats.read(readers.rows(Path(source.url), source, 10**6), source))
    assert records and all(one.error is None for one in records)


def test_of_a_spreadsheet_the_sheet_with_conversations_is_found(say):
    found = block(say("book.xlsx"))["data"]["sources"]["mine"]
    assert (found["sheet"], found["columns"]) == ("FAQ", {"user": "question", "assistant": "answer"})


def test_five_records_are_shown_with_what_the_first_bytes_say(say):
    said = say("".join(record(("user", f"Room {n}?"), ("assistant", f"Yes, {n}.")) + "\n" for n in range(9)).encode())
    assert said.startswith("data/local/mine.csv is jsonl, with JSON chat records with messages (format: messages)")
    assert said.count("\nrow ") == 5 and "  user: Room 4?\n  assistant: Yes, 4.\n" in said and "Room 5?" not in said
    assert "9 records: 9 valid, 0 invalid" in said


def test_findings_are_counted_with_their_first_rows_and_secrets_are_masked(say):
    key = "sk-" + "a1B2" * 8
    bad = [record(*TALK), record(("user", "Key?"), ("assistant", f"Use {key}.")), "{", record(("user", "Well?"))]
    said = say("\n".join([*bad, record(*TALK)]).encode())
    assert "5 records: 4 valid, 1 invalid" in said and "  api_key (1)\n    row 2, message 2 (assistant): " in said
    assert "no conversation: Input data was truncated (1)\n    row 3" in said
    assert "the last message is not the assistant's (1)\n    row 4, user" in said
    assert key not in said


def test_add_writes_the_source_and_keeps_the_comments(say):
    before = Path("params.yaml").read_text(encoding="utf-8")
    said = say(as_csv(["question", "answer"], ["Open?", "Yes."]), "--add", "desk")
    assert "params.yaml has it as data.sources.desk, and uses it; check all of it with `dvc repro validate`" in said
    data = params.load().data
    assert data.source == "desk" and data.chosen.columns.user == "question" and data.chosen.sha256 is None
    after = Path("params.yaml").read_text(encoding="utf-8")
    comments = [line for line in before.splitlines() if line.lstrip().startswith("#")]
    assert [line for line in after.splitlines() if line.lstrip().startswith("#")] == comments
    assert params.read_yaml(Path("params.yaml"))["data"]["sources"]["sample"]["url"] == "data/sample.csv"


@pytest.mark.parametrize("name", ["sample", "a.b", "a b", "../x"])
def test_a_name_that_is_taken_or_none_is_refused_and_nothing_is_written(say, name):
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError, match="already; choose another name|params.yaml is as it was: .* is not a name of a"):
        say(as_csv(["question", "answer"], ["Open?", "Yes."]), "--add", name)
    assert Path("params.yaml").read_bytes() == before
    assert sorted(path.name for path in Path().glob(".params*")) == []


@pytest.mark.parametrize(
    "what, said",
    [
        ("wa.txt", "it is an export of WhatsApp, which docs/conversions.md#whatsapp converts"),
        (b"%PDF-1.7 x", "a PDF"),
        (b"x,y,z\n1,2,3\n", "docs/own-csv.md lists the shapes that are read"),
    ],
)
def test_what_is_not_read_ends_in_what_to_do(say, what, said):
    with pytest.raises(UserError) as error:
        say(what)
    assert said in str(error.value)


def test_a_file_that_is_missing_is_reported(project, monkeypatch):
    for name, said in (("none.csv", "is not a file"), ("https://user:secret@host/x", "holds credentials")):
        monkeypatch.setattr("sys.argv", ["inspect", name])
        with pytest.raises(UserError, match=said) as error:
            inspect.main()
        assert "secret" not in str(error.value)


@pytest.mark.slow
def test_an_address_is_fetched_as_the_download_does(project, monkeypatch, capfd):
    shutil.copytree(ROOT / "stages", project / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    served = partial(SimpleHTTPRequestHandler, directory=str(SHAPES))
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/dolly.jsonl"
        monkeypatch.setattr("sys.argv", ["inspect", url])
        inspect.main()
        server.shutdown()
    assert block(capfd.readouterr().out)["data"]["sources"]["mine"]["url"] == url
