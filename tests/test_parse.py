"""parse: from the source to conversations and signals."""

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from stages import backends, parse
from stages.backends.openai.reader import HostedChat
from stages.backends.unsloth.reader import Chat
from stages.core.cli import UserError
from stages.core.paths import CONVERSATIONS, RAW, SIGNALS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.params import Columns
from tests.support.sources import CALL, TALK, Failing, as_csv, read, record, source, talk

pytestmark = pytest.mark.usefixtures("here")


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
        ('{"messages": [], "images": ["a.png"]}', "`images` changes the conversation and is never ignored"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(cell, reason):
    ((row, conversation, error, snippet, _),) = read(as_csv([cell]))
    assert (row, conversation) == (1, None) and reason in error
    # Records this short are shown whole, or from around the place that the error names.
    shown = snippet.replace("‹", "").replace("›", "")
    assert len(shown) >= 10 and shown in cell


def test_a_row_with_a_second_column_is_reported():
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

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    expected = AutoTokenizer.from_pretrained("models/base").apply_chat_template(turns, return_dict=True)["input_ids"]
    talk = Conversation((Message("user", "Hi"), Message("assistant", "Hello there")))
    assert Chat.load().counts([talk]) == [len(expected)]


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_the_delimiter_is_detected(sign):
    raw = f'q{sign}a\n"1, 2"{sign}"x, y"\n'.encode()
    columns = Columns(user="q", assistant="a")
    assert read(raw, source("columns", columns=columns))[0][1].response == "x, y"
    with pytest.raises(UserError, match="it looks like"):
        read(raw, source("columns", columns=columns, delimiter=","))


@pytest.mark.parametrize("sign", ['"', "\n", "\r", "\0"])
def test_a_delimiter_that_cannot_be_one_is_reported(sign):
    with pytest.raises(UserError, match=r"data.sources.*.delimiter: .* cannot separate cells"):
        read(as_csv([record(*TALK)]), source(delimiter=sign))


def test_a_blank_line_is_a_row_but_at_the_end_of_the_file():
    line = as_csv([record(*TALK)])
    found = read(line + b"\r\n\r\n" + line + b"\r\n\n\r\n")
    assert [(one.row, one.conversation is None) for one in found] == [(1, False), (2, True), (3, True), (4, False)]
    with pytest.raises(UserError, match="is empty"):
        read(b"\n\n\n")


@pytest.mark.parametrize("given, name", [({"columns": Columns(user="q", assistant="a")}, "q"), ({"label": "q"}, "q")])
def test_a_needed_column_that_is_repeated_is_an_error(given, name):
    shape = "columns" if "columns" in given else "messages"
    with pytest.raises(UserError, match="has 2 columns 'q', of which one is meant"):
        read(as_csv(["q", "a", "q"], ["lost", "Yes.", "Open?"]), source(shape, **given))


def test_another_column_may_be_repeated():
    raw = as_csv(["q", "", "a", ""], ["Open?", "", "Yes.", ""])
    assert read(raw, source("columns", columns=Columns(user="q", assistant="a")))[0].conversation.response == "Yes."


@pytest.mark.parametrize("text", ["Ou\u0300 e\u0302tes-vous ?", "か\u3099 " * 400, "か\u3099" * 400, "ﬁn"])
def test_equal_texts_in_other_unicode_forms_are_one_prompt(text):
    texts = [unicodedata.normalize(form, case) for form in ("NFC", "NFD", "NFKC") for case in (text, text.upper())]
    keys = {talk(("user", one), ("assistant", "b")).prompt_key for one in texts}
    assert len(keys) == 1


def test_tokens_of_a_long_text_are_those_of_its_words():
    chat, text = HostedChat("gpt-4o"), "The pool is open from seven to ten, also for dogs. " * 50
    assert chat.lengths([text]) == [len(chat._encoding.encode_ordinary(text))]


def test_what_the_model_cannot_read_is_an_error_of_its_row(project, base, monkeypatch):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("url: data/sample.csv", "url: data/raw.csv"))
    monkeypatch.setattr(backends, "reader", lambda knobs: SimpleNamespace(load=Failing))
    calls = {"messages": [{"role": "user", "content": "A room?"}, {"role": "assistant", "tool_calls": [CALL]}]}
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(as_csv([record(*TALK)], [json.dumps(calls)], ["{"], [record(*TALK)]))
    parse.main()
    assert [one.prompt[0].text for one in conversations.read_jsonl(CONVERSATIONS)] == [TALK[0][1]] * 2
    table = pd.read_parquet(SIGNALS)
    assert list(table["error"].isna()) == [True, False, False, True] and table["error"][1] == "no place for sk•••"
    assert "A room?" in dict(table["faults"][1])["error"]
