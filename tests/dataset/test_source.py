"""Messages about a source name it, and call its file what it is."""

import ast
import gzip

import pytest

from stages import download, params
from stages.core.cli import UserError
from stages.dataset import formats, readers
from tests.conftest import ROOT

URL = {"url": "data/local/x.csv", "sha256": None, "format": "messages"}
JSON = b'{"messages": []}\n'


def named(name="front_desk", **given):
    """A source as params.yaml declares it."""
    sources = {"another": URL, name: {**URL, **given}}
    return params.Data.model_validate({"source": name, "max_mb": 1, "sources": sources}).chosen


@pytest.mark.parametrize(
    "raw, given, key",
    [
        (JSON, {"container": "csv"}, "container"),
        (b'"a"\n', {"encoding": "klingon"}, "encoding"),
        ("é".encode(), {"encoding": "cp1252"}, "encoding"),
        ("“Où est l’hôtel ?” “À côté de l’église.” “Très bien, merci.”\n".encode("cp1252") * 9, {"encoding": "utf-8"},
         "encoding"),
        (JSON + "é".encode("cp1252"), {"encoding": "utf-8"}, "encoding"),
        (b"a;b\n", {"delimiter": ","}, "delimiter"),
        (b"a;b\n", {"delimiter": '"'}, "delimiter"),
        (b"conversations\n", {"format": "alpaca"}, "format"),
        (b'{"prompt": "a", "completion": "b"}', {"format": "alpaca"}, "format"),
        (b"q,a\n", {"format": "columns", "columns": {"user": "question", "assistant": "a"}}, "columns"),
        (b"instruction,output\n", {"format": "alpaca", "label": "topic"}, "label"),
        (b"messages,topic\n", {"label": "intent"}, "label"),
    ],
)  # fmt: skip
def test_an_error_in_reading_names_the_parameter_of_the_source_in_use(tmp_path, raw, given, key):
    path, source = tmp_path / "raw.csv", named(**given)
    path.write_bytes(raw)
    with pytest.raises(UserError) as error:
        list(formats.read(readers.rows(path, source, 1_000_000), source))
    assert f"data.sources.front_desk.{key}" in str(error.value)


def test_a_guessed_encoding_names_the_parameter_that_declares_another(tmp_path, capsys):
    path, source = tmp_path / "raw.csv", named()
    path.write_bytes(("Où est l’hôtel ? À côté de l’église, très bien.\n" * 9).encode("cp1252"))
    list(readers.rows(path, source, 1_000_000))
    assert "is read as cp1252; data.sources.front_desk.encoding declares another" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url", ["data/local/none.csv", "data/local", "memory://none.csv", "http://[::1", "http://", "data/\0"]
)
def test_an_error_in_downloading_names_the_url_of_the_source_in_use(project, url):
    (project / "data/local").mkdir(parents=True)
    # What cannot be parsed is refused with the parameters already; a download refuses it all the same.
    source = named().model_copy(update={"url": url})
    with pytest.raises(UserError, match=r"data\.sources\.front_desk\.url"):
        download.fetch(source, 1_000_000, pause=0)


def test_a_checksum_is_named_by_its_source_whether_it_is_missing_or_wrong(project, capsys):
    (project / "data/local").mkdir(parents=True)
    (project / "data/local/x.csv").write_bytes(JSON)
    download.fetch(named(), 1_000_000)
    assert "data.sources.front_desk.sha256 is null, so any content is accepted" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"change data\.sources\.front_desk\.sha256 only if"):
        download.fetch(named(sha256="0" * 64), 1_000_000)


@pytest.mark.parametrize("raw", [b"", b"<!DOCTYPE html>"])
def test_what_is_no_data_is_not_said_to_be_no_csv(project, raw):
    (project / "data/local").mkdir(parents=True)
    (project / "data/local/x.csv").write_bytes(raw)
    with pytest.raises(UserError) as error:
        download.fetch(named(), 1_000_000)
    assert "a CSV" not in str(error.value)


def test_an_empty_gzip_is_called_empty(tmp_path):
    (tmp_path / "raw.csv").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="raw.csv is empty; expected one conversation a record"):
        list(readers.rows(tmp_path / "raw.csv", named(), 1_000_000))


def test_a_name_with_control_characters_is_refused():
    with pytest.raises(ValueError, match="is not a name of a source"):
        named("a\n\x1b[31m")


def test_no_message_leaves_the_name_of_the_source_open():
    texts = [
        (path.name, node.value)
        for path in (ROOT / "stages").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and "data.sources.*" in str(node.value)
    ]
    assert texts == []
