import contextlib
import csv
import gzip
import io
import json
import random
import time
import tracemalloc
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import backends, conversations, parse, reading, shapes
from stages.backends.openai.chat import HostedChat
from stages.backends.unsloth.chat import Chat
from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.params import Columns, Source
from stages.paths import CONVERSATIONS, RAW, SIGNALS
from stages.signals import SCHEMA, Signaller

MESSAGES = Source(url="x", sha256=None, format="messages")


def record(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}, ensure_ascii=False)


def as_csv(*rows):
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def source(shape="messages", **given):
    return Source(url="x", sha256=None, format=shape, **given)


def read(raw, given=MESSAGES, limit=10_000_000):
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(raw)
    return list(shapes.read(reading.rows(RAW, given, limit), given))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TALK = (("user", "Is “breakfast”, served\nat 7?"), ("assistant", "Yes — naïve café, 日本語, \u2019quoted\u2019"))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("header, first", [([], 1), ([["chat"]], 2)])
def test_messages_with_and_without_header_and_bom(bom, header, first):
    rows = read(bom + as_csv(*header, [record(*TALK)], [record(*TALK)]))
    assert [row for row, *_ in rows] == [first, first + 1]
    assert rows[0][1] == Conversation(tuple(Message(*turn) for turn in TALK))


@pytest.mark.parametrize(
    "cell, reason",
    [
        ('(["role": "user"]', "malformed"),
        ('{"messages": [{"role": "user", "content": 5}]}', "got `int` - at `$.messages[0].content`"),
        ('{"messages": [{"role": "guest", "content": "a"}]}', "Invalid enum value 'guest' - at `$.messages[0].role`"),
        ('{"messages": [], "extra": 1}', "unknown field `extra`"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(cell, reason):
    ((row, conversation, error, snippet, _),) = read(as_csv([cell]))
    assert (row, conversation) == (1, None) and reason in error
    shown = snippet.replace("‹", "").replace("›", "")
    assert shown and shown in cell


def test_a_row_with_a_second_column_is_told():
    assert "2 columns" in read(as_csv([record(*TALK)], [record(*TALK), "x"]))[1][2]


def test_columns_with_a_system_prompt():
    columns = Columns(user="q", assistant="a", system_prompt="Be kind.")
    raw = as_csv(["id", "a", "q"], ["7", "Yes.", "Open?"], ["8", "short row"])
    rows = read(raw, source("columns", columns=columns))
    assert rows[0][:2] == (
        2,
        Conversation((Message("system", "Be kind."), Message("user", "Open?"), Message("assistant", "Yes."))),
    )
    assert rows[1][:3] == (3, None, "2 columns where the header has 3")


def test_a_missing_column_names_those_that_there_are():
    wrong = source("columns", columns=Columns(user="question", assistant="a"))
    with pytest.raises(UserError, match="no column 'question'; its columns are: q, a"):
        read(as_csv(["q", "a"], ["1", "2"]), wrong)


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "is empty"),
        (b'"{"messages"": []}"\n', "check the quotes"),
        (b'"never closed\n', "check the quotes"),
    ],
)
def test_a_file_that_is_no_csv(raw, message):
    with pytest.raises(UserError, match=message):
        read(raw)


def test_a_cell_longer_than_the_csv_modules_own_limit():
    long = record(("user", "a" * 200_000), ("assistant", "b"))
    assert read(as_csv([long]))[0][1].prompt[0].content == "a" * 200_000


def test_main_writes_conversations_and_signals(project, base):
    Path("data").mkdir(exist_ok=True)
    bad = '{"messages": 5}'
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("url: data/sample.csv", "url: data/raw.csv"))
    RAW.write_bytes(as_csv([record(*TALK)], [bad], [record(("user", " "), ("assistant", "x"))]))
    parse.main()
    assert len(list(conversations.read_jsonl(CONVERSATIONS))) == 2
    line = CONVERSATIONS.read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(line) == json.loads(record(*TALK)) and "日本語" in line
    signals = pd.read_parquet(SIGNALS)
    assert list(signals["row"]) == [1, 2, 3] and list(signals["error"].isna()) == [True, False, True]
    assert list(signals["roles"].dropna()) == ["ua", "ua"] and list(signals["n_empty"].dropna()) == [0, 1]


def test_tokens_are_those_of_the_chat_template(project, base):
    # <|im_start|>system\nYou are a helpful AI ...<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n...
    from transformers import AutoTokenizer

    from stages.backends.unsloth.chat import Chat

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    expected = AutoTokenizer.from_pretrained("models/base").apply_chat_template(turns, return_dict=True)["input_ids"]
    talk = Conversation((Message("user", "Hi"), Message("assistant", "Hello there")))
    assert Chat.load().counts([talk]) == [len(expected)]


def talk(*turns):
    return Conversation(tuple(Message(*turn) for turn in turns))


HELLO = talk(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"))
SHAREGPT = {
    "system": "Be kind.",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
}
ALPACA = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
GOOD_DAY = ("assistant", "Good day")


@pytest.mark.parametrize(
    "shape, one, expected",
    [
        ("sharegpt", SHAREGPT, HELLO),
        ("alpaca", ALPACA, talk(("user", "Translate.\n\nGuten Tag"), GOOD_DAY)),
        ("alpaca", {**ALPACA, "input": ""}, talk(("user", "Translate."), GOOD_DAY)),
        ("prompt_completion", {"prompt": "Hi", "completion": "Good day"}, talk(("user", "Hi"), GOOD_DAY)),
        ("messages", json.loads(record(*TALK)), talk(*TALK)),
    ],
)
@pytest.mark.parametrize("container", ["json", "jsonl", "parquet", "jsonl.gz"])
def test_formats_in_every_container(shape, one, expected, container):
    if container == "json":
        raw = json.dumps([one, one]).encode()
    elif container == "parquet":
        out = io.BytesIO()
        pd.DataFrame([one, one]).to_parquet(out)
        raw = out.getvalue()
    else:
        raw = f"{json.dumps(one)}\n{json.dumps(one)}".encode()
    if container.endswith("gz"):
        raw = gzip.compress(raw)
    assert read(raw, source(shape)) == [shapes.Record(1, expected), shapes.Record(2, expected)]


def test_alpaca_in_a_csv():
    raw = as_csv(["output", "instruction", "input"], ["Good day", "Translate.", "Guten Tag"])
    assert read(raw, source("alpaca"))[0][1].response == "Good day"


def test_an_unknown_speaker_is_told():
    robot = {"conversations": [{"from": "robot", "value": "Hi"}]}
    assert "Invalid enum value 'robot'" in read(json.dumps(robot).encode(), source("sharegpt"))[0][2]


def test_a_field_that_is_no_text_is_told():
    found = read(b'{"prompt": 5, "completion": "x"}', source("prompt_completion"))
    assert found[0][2] == "Expected text in field `prompt`, got int"
    assert "got missing" in read(b'{"completion": "x"}', source("prompt_completion"))[0][2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_column_of_labels_beside_the_records(order):
    rows = [["intent", "chat"], ["pool", record(*TALK)], ["", record(*TALK)]]
    raw = as_csv(*([row[at] for at in order] for row in rows))
    found = read(raw, source(label="intent"))
    assert [(one.row, one.conversation, one.label) for one in found] == [(2, talk(*TALK), "pool"), (3, talk(*TALK), "")]


@pytest.mark.parametrize(
    "shape, one", [("messages", json.loads(record(*TALK))), ("sharegpt", SHAREGPT), ("alpaca", ALPACA)]
)
def test_a_key_of_labels_in_the_records(shape, one):
    records = [{**one, "topic": "pool"}, {**one, "topic": 7}, one, {**one, "topic": None}]
    found = read("\n".join(map(json.dumps, records)).encode(), source(shape, label="topic"))
    assert [(record.error, record.label) for record in found] == [(None, "pool"), (None, "7"), (None, ""), (None, "")]


@pytest.mark.parametrize("label, reason", [(["a"], "text or a number in field `topic`"), ("x" * 101, "at most 100")])
def test_what_is_no_label_is_told(label, reason):
    (found,) = read(json.dumps({**ALPACA, "topic": label}).encode(), source("alpaca", label="topic"))
    assert found.conversation is None and reason in found.error


def test_a_missing_column_of_labels_is_told():
    with pytest.raises(UserError, match="no column 'topic'; its columns are: chat, intent"):
        read(as_csv(["chat", "intent"], [record(*TALK), "pool"]), source(label="topic"))


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_the_delimiter_is_detected(sign):
    raw = f'q{sign}a\n"1, 2"{sign}"x, y"\n'.encode()
    columns = Columns(user="q", assistant="a")
    assert read(raw, source("columns", columns=columns))[0][1].response == "x, y"
    with pytest.raises(UserError, match="it looks like"):
        read(raw, source("columns", columns=columns, delimiter=","))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8"])
def test_a_declared_encoding_is_used(encoding):
    cell = record(("user", "Café?"), ("assistant", "Oui, déjà")).replace('"', '""')
    found = read(f'"{cell}"\n'.encode(encoding), source(encoding=encoding))
    assert found[0][1].prompt[0].content == "Café?"


@pytest.mark.parametrize("sign", ['"', "\n", "\r", "\0"])
def test_a_delimiter_that_cannot_be_one_is_told(sign):
    with pytest.raises(UserError, match=r"data.sources.*.delimiter: .* cannot stand between cells"):
        read(as_csv([record(*TALK)]), source(delimiter=sign))


def test_a_blank_line_is_a_row_but_at_the_end_of_the_file():
    line = as_csv([record(*TALK)])
    found = read(line + b"\r\n\r\n" + line + b"\r\n\n\r\n")
    assert [(one.row, one.conversation is None) for one in found] == [(1, False), (2, True), (3, True), (4, False)]
    with pytest.raises(UserError, match="is empty"):
        read(b"\n\n\n")


@pytest.mark.parametrize("given, name", [({"columns": Columns(user="q", assistant="a")}, "q"), ({"label": "q"}, "q")])
def test_a_needed_column_that_stands_twice_is_told(given, name):
    shape = "columns" if "columns" in given else "messages"
    with pytest.raises(UserError, match="has 2 columns 'q', of which one is meant"):
        read(as_csv(["q", "a", "q"], ["lost", "Yes.", "Open?"]), source(shape, **given))


def test_another_column_may_stand_twice():
    raw = as_csv(["q", "", "a", ""], ["Open?", "", "Yes.", ""])
    assert read(raw, source("columns", columns=Columns(user="q", assistant="a")))[0].conversation.response == "Yes."


FRENCH = "Où êtes-vous, où est le café déjà payé par l’hôtel ? Voilà, voilà."
RUSSIAN = "Во сколько завтрак? Завтрак подают с семи до десяти часов утра в саду."
JAPANESE = "朝食は何時からですか。朝食は七時から十時まで、庭の部屋でお召し上がりいただけます。"


@pytest.mark.parametrize("encoding, text", [("cp1252", FRENCH), ("cp1251", RUSSIAN), ("shift_jis", JAPANESE)])
def test_an_encoding_is_detected_and_told(encoding, text, capsys):
    # The first odd byte comes after all that is looked at to tell the container.
    plain = "\n".join(["asked,answered"] + ["Is there a pool?,Yes there is."] * 3000)
    raw = f"{plain}\n{text.replace(',', ' ')},{text.replace(',', ' ')}\n".encode(encoding)
    found = read(raw, source("columns", columns=Columns(user="asked", assistant="answered")))
    assert found[-1].conversation.response == text.replace(",", " ")
    assert f"is not UTF-8 and is read as {encoding}" in capsys.readouterr().out


@pytest.mark.parametrize("declared", ["utf-8", "ascii", "shift_jis"])
def test_a_wrong_encoding_names_a_likely_one(declared):
    with pytest.raises(UserError, match="it looks like cp1252: mend data.sources"):
        read(f'"{FRENCH} {FRENCH}"\n'.encode("cp1252") * 50, source(encoding=declared))


GERMAN = "Wann gibt es Frühstück? Es wird von sieben bis zehn Uhr serviert. Schöne Grüße, natürlich für Sie."
POLISH = "O której jest śniadanie? Podajemy je od siódmej do dziesiątej rano w ogrodzie. Dziękuję, proszę bardzo."
CROATIAN = "U koliko sati je doručak? Poslužuje se od sedam do deset sati. Želite li još nešto, čašu, u kući, đak?"
BULGARIAN = "В колко часа е закуската? Закуската се сервира от седем до десет сутринта в градината."
ENGLISH = "It’s “fine” – the guest’s bill of the café is paid, isn’t it? We’ll see you at seven o’clock."
NAMES = "Mr Wałęsa and Mr Dvořák asked at what time breakfast is served, and whether the pool is open at night."
SIMPLE = str.maketrans("łęřá", "lera")
RIGHT = [
    ("cp1252", FRENCH),
    ("latin-1", FRENCH.replace("’", "'")),
    ("cp1252", GERMAN),
    ("cp1252", ENGLISH),
    ("cp1251", RUSSIAN),
    ("cp1251", BULGARIAN),
    ("cp1250", POLISH),
    ("cp1250", CROATIAN),
    ("cp1250", NAMES),
    ("iso8859-2", POLISH),
    ("koi8-r", RUSSIAN),
    ("cp1251", f"{NAMES.translate(SIMPLE)} “Are they?” {NAMES.translate(SIMPLE)} Завтрак в семь."),
]


@pytest.mark.parametrize("declared, text", RIGHT)
@pytest.mark.parametrize("times", [1, 30])
def test_a_right_encoding_is_accepted(declared, text, times):
    RAW.parent.mkdir()
    RAW.write_bytes(f'"{text}"\n'.encode(declared) * times)
    assert [cells for _, cells in reading.rows(RAW, source(encoding=declared), 10_000_000)] == [[text]] * times


@pytest.mark.parametrize(
    "right, text, declared",
    [
        ("cp1251", RUSSIAN, "cp1252"),
        ("cp1251", RUSSIAN, "latin-1"),
        ("cp1251", BULGARIAN, "cp1250"),
        ("cp1252", FRENCH, "cp1251"),
        ("cp1252", FRENCH, "cp1250"),
        ("cp1252", GERMAN, "cp1251"),
        ("cp1252", ENGLISH, "latin-1"),
        ("cp1250", POLISH, "cp1252"),
        ("cp1250", POLISH, "latin-1"),
        ("cp1250", POLISH, "cp1251"),
        ("cp1250", CROATIAN, "cp1252"),
    ],
)
def test_a_wrong_encoding_that_takes_any_byte_names_the_likely_one(right, text, declared):
    with pytest.raises(UserError, match=f"declared as {declared}, and reads as a text in {right}; mend data.sources"):
        read(f'"{text}"\n'.encode(right) * 5, source(encoding=declared))


@pytest.mark.parametrize(
    "declared",
    ["hex", "rot13", "zlib", "idna", "undefined", "punycode", "utf-7", "unicode_escape", "a\0b", "nope", "ü"],
)
def test_what_is_no_encoding_of_text_is_told_in_a_line(declared):
    for raw in (as_csv([record(*TALK)]), record(*TALK).encode()):
        with pytest.raises(UserError, match="is no encoding of text; expected e.g. utf-8") as error:
            read(raw, source(encoding=declared))
        assert str(error.value).isprintable()


LINES = "".join(
    record(("user", f"Où est l'hôtel {n} ?"), ("assistant", "Près du café, à côté.")) + "\n" for n in range(9)
)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("form", ["lines", "array"])
def test_json_in_a_declared_encoding(encoding, form):
    text = LINES if form == "lines" else f"[{LINES.strip().replace(chr(10), ',')}]"
    assert [one.conversation for one in read(text.encode(encoding), source(encoding=encoding))] == [
        conversations.decode(line) for line in LINES.splitlines()
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_json_lines_in_another_encoding_are_detected(encoding):
    assert [one.error for one in read(LINES.encode(encoding))] == [None] * 9


@pytest.mark.parametrize("declared, message", [("utf-8", "it looks like cp1252"), ("utf-16", "is not utf-16")])
def test_json_lines_with_a_wrong_encoding_are_told(declared, message):
    with pytest.raises(UserError, match=message):
        read(LINES.encode("cp1252"), source(encoding=declared))


def test_utf_8_json_lines_declared_as_another_are_told():
    with pytest.raises(UserError, match="declared as cp1252, and is utf-8"):
        read(LINES.encode(), source(encoding="cp1252"))


@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "right, one",
    [
        ("messages", {"messages": [{"role": "user", "content": "a"}]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}),
        ("alpaca", {"instruction": "a", "input": "", "output": "b"}),
        ("prompt_completion", {"prompt": "a", "completion": "b"}),
    ],
)
def test_a_wrong_format_names_the_right_one(right, one, container):
    if container == "csv":
        table = right in ("alpaca", "prompt_completion")
        raw = as_csv(list(one), list(one.values())) if table else as_csv([json.dumps(one)])
    elif container == "jsonl":
        raw = json.dumps(one).encode()
    else:
        out = io.BytesIO()
        pd.DataFrame([one]).to_parquet(out)
        raw = out.getvalue()
    for wrong in {"messages", "sharegpt", "alpaca", "prompt_completion"} - {right}:
        with pytest.raises(UserError, match=f"declared as format: {wrong}, and its first record looks like {right}"):
            read(raw, source(wrong))
    read(raw, source(right))


def test_a_key_that_stands_twice_is_a_fault():
    twice = '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}'
    ((_, conversation, error, _, _),) = read(as_csv([twice]))
    assert conversation is None and error == "The key `content` stands more than once in one object"


def test_utf_8_declared_as_another_is_told():
    with pytest.raises(UserError, match="is declared as cp1252, and is utf-8"):
        read(as_csv([FRENCH]), source(encoding="cp1252"))


def test_a_binary_file_is_told():
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
    monkeypatch.setattr(reading, "_ARRAY_LIMIT", 300_000)
    raw = b"[" + b"0," * 100_000 + b"0]"
    RAW.parent.mkdir()
    RAW.write_bytes(raw)
    tracemalloc.start()
    count = sum(1 for _ in reading.rows(RAW, MESSAGES, 10_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_001 and peak < 10 * len(raw)


@pytest.mark.parametrize("raw", [b"[1, 2", b"[1 2]", b"[1,]", b"[1] 2", b"[", b"[,]", b"[1]]", b"[}"])
def test_a_json_array_that_is_none_is_told(raw):
    with pytest.raises(UserError, match="the source is not a JSON array: .*; mend it, or write one record a line"):
        read(raw)


def test_elements_of_a_json_array_come_as_they_stand_there():
    raw = b' [ {"a" : 1e400, "b":"\\ud800]"} ,\r\n' + b"9" * 5000 + b',"\xc3\xa9",[ ] ]\n'
    RAW.parent.mkdir()
    RAW.write_bytes(raw)
    found = [content for _, content in reading.rows(RAW, MESSAGES, 10_000_000)]
    assert found == [b'{"a" : 1e400, "b":"\\ud800]"}', b"9" * 5000, b'"\xc3\xa9"', b"[ ]"]


@pytest.mark.parametrize("size, expected", [(100, [100, 100, 50]), (99_000, [20] * 12 + [10]), (3_000_000, [1] * 250)])
def test_a_chunk_is_bounded_in_records_and_in_bytes(size, expected, monkeypatch):
    monkeypatch.setattr(parse, "CHUNK", 100)
    one = talk(("user", "a" * (size - 70)), ("assistant", "b"))
    found = list(parse.chunks(shapes.Record(n, one) for n in range(250)))
    assert [len(chunk) for chunk in found] == expected
    assert [record.row for chunk in found for record, _ in chunk] == list(range(250))
    assert {line for chunk in found for _, line in chunk} == {conversations.encode(one) + b"\n"}


def test_a_large_json_array_is_sent_to_json_lines(monkeypatch):
    monkeypatch.setattr(reading, "_ARRAY_LIMIT", 100)
    with pytest.raises(UserError, match="one JSON array of more than 0.0001 MB.* write one record a line"):
        read(f"[{LINES.splitlines()[0]}]".encode())


@pytest.mark.parametrize("raw", [b"\x81[", b"\x81\x81[{}]", "\N{NO-BREAK SPACE}[{}]".encode()])
def test_what_only_looks_like_a_json_array_is_told(raw):
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


FREE = {"name": "free", "arguments": "{}"}
# Not in the order of OpenAI's pages: it comes through as it is.
CALL = {"function": FREE, "type": "function", "id": "1"}


def test_tools_and_weights_come_through():
    one = {
        "messages": [
            {"role": "user", "content": "A room?"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "assistant", "content": "Two.", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "free"}}],
    }
    found = read(as_csv([json.dumps(one)]))[0][1]
    assert conversations.encode(found) == json.dumps(one, separators=(",", ":")).encode()


@pytest.mark.parametrize("container", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "calls, tools, reason",
    [
        (5, [], "Expected `array | null`, got `int` - at `$.messages[1].tool_calls`"),
        (["free"], [], "Expected `object`, got `str` - at `$.messages[1].tool_calls[0]`"),
        ([{**CALL, "function": None}], [], "got `null` - at `$.messages[1].tool_calls[0].function`"),
        ([{**CALL, "function": {"name": "a"}}], [], "missing required field `arguments`"),
        ([{**CALL, "function": {**FREE, "arguments": {}}}], [], "Expected `str`, got `object`"),
        ([{**CALL, "type": "tool"}], [], "Invalid enum value 'tool'"),
        ([{**CALL, "id": 5}], [], "Expected `str`, got `int` - at `$.messages[1].tool_calls[0].id`"),
        ([{**CALL, "index": 0}], [], "unknown field `index`"),
        ([CALL], ["free"], "Expected `object`, got `str` - at `$.tools[0]`"),
        ([CALL], {"name": "free"}, "Expected `array | null`, got `object` - at `$.tools`"),
        ([CALL], [{"a": "\ud800 x"}], "the text holds half of a surrogate pair"),
        ([CALL], [{"a": "x\udc00"}], "the text holds half of a surrogate pair"),
    ],
)
def test_odd_tools_are_an_error_of_their_row(calls, tools, reason, container):
    turns = [{"role": "user", "content": "A room?"}, {"role": "assistant", "tool_calls": calls}]
    one = {"messages": turns, "tools": tools}
    good, bad = record(*TALK), json.dumps(one)
    first, second = read(as_csv([good], [bad]) if container == "csv" else f"{good}\n{bad}".encode())
    assert first.error is None and second.conversation is None and reason in second.error
    assert "\\ud800" not in bad or "‹\\ud800›" in second.snippet


def test_a_whole_surrogate_pair_and_an_escaped_backslash_are_text():
    cell = json.dumps({"messages": [{"role": "user", "content": "🙂 \\ud800"}, {"role": "assistant", "content": "a"}]})
    assert "\\ud83d" in cell and read(as_csv([cell]))[0].conversation.messages[0].text == "🙂 \\ud800"


KEY = "sk-" + "a1B2" * 8


@pytest.mark.parametrize(
    "cell",
    [
        '{"messages":[{"role":"%s\\u001b[31m\\nerror: fake","content":"x"}]}',
        '{"messages":[],"%s":1}',
        '{"messages":[],"tools":[{"%s":1,"%s":1}]}',
        '{"messages":[],"%s (byte 99999999999999999999)":1}',
        '{"messages": "%s',
    ],
)
def test_no_error_shows_a_secret_or_moves_the_terminal(cell):
    cell = cell.replace("%s", KEY)
    first, second = read(as_csv([cell], [cell]))
    assert first.error == second.error and not first.conversation
    shown = first.error + first.snippet
    assert KEY not in shown and KEY[4:] not in shown and "sk•••" in shown and shown.isprintable()


def test_a_header_that_is_text_is_listed_short_and_masked():
    header = [f"My card is 4111 1111 1111 1111 \x1b[31m {'x' * 500}", f"use {KEY}", *map(str, range(100))]
    with pytest.raises(UserError) as error:
        read(as_csv(header, ["a"] * 102), source("columns", columns=Columns(user="q", assistant="a")))
    text = str(error.value)
    assert "My card is 41•••" in text and "use sk•••" in text and " and 82 more" in text
    assert text.isprintable() and len(text) < 400


def test_many_keys_and_many_marks_take_no_long_time():
    count = 20_000
    keys = ",".join(f'"k{number}":1' for number in range(count))
    begin = time.process_time()
    raw = f'{{"prompt":"a","completion":"b",{keys},"k{count - 1}":1}}'.encode()
    assert "stands more than once" in read(raw, source("prompt_completion"))[0].error
    assert talk(("user", "a" + "\u0315\u0300" * count), ("assistant", "b")).prompt_key
    assert HostedChat("gpt-4o").lengths(["ab" * count])[0] > count / 10
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("text", ["Ou\u0300 e\u0302tes-vous ?", "か\u3099 " * 400, "か\u3099" * 400, "ﬁn"])
def test_equal_texts_in_other_unicode_forms_are_one_prompt(text):
    texts = [unicodedata.normalize(form, case) for form in ("NFC", "NFD", "NFKC") for case in (text, text.upper())]
    keys = {talk(("user", one), ("assistant", "b")).prompt_key for one in texts}
    assert len(keys) == 1


def test_tokens_of_a_long_text_are_those_of_its_words():
    chat, text = HostedChat("gpt-4o"), "The pool is open from seven to ten, also for dogs. " * 50
    assert chat.lengths([text]) == [len(chat._encoding.encode_ordinary(text))]


class Failing:
    """A reader that can make nothing of tool calls."""

    context, special_tokens = 100, ("<s>",)

    def counts(self, talks):
        return [f"no place for {KEY}" if any(one.tool_calls for one in talk.messages) else 7 for talk in talks]

    def lengths(self, texts):
        return [7] * len(texts)


def test_what_the_model_cannot_read_is_an_error_of_its_row(project, base, monkeypatch):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("url: data/sample.csv", "url: data/raw.csv"))
    monkeypatch.setattr(backends, "chosen", lambda knobs: SimpleNamespace(reader=Failing))
    calls = {"messages": [{"role": "user", "content": "A room?"}, {"role": "assistant", "tool_calls": [CALL]}]}
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(as_csv([record(*TALK)], [json.dumps(calls)], ["{"], [record(*TALK)]))
    parse.main()
    assert [one.prompt[0].text for one in conversations.read_jsonl(CONVERSATIONS)] == [TALK[0][1]] * 2
    table = pd.read_parquet(SIGNALS)
    assert list(table["error"].isna()) == [True, False, False, True] and table["error"][1] == "no place for sk•••"
    assert "A room?" in dict(table["faults"][1])["error"]


def test_a_label_is_inspected_too():
    first, second = Signaller(Failing()).rows([shapes.Record(1, talk(*TALK), label=one) for one in (KEY, "pool")])
    assert (first["api_key"], second["api_key"]) == (1, 0) and first["faults"]["api_key"] == "label: ‹sk•••›"


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
