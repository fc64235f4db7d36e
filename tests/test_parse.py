import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from stages import conversations, params, parse
from stages.command import UserError
from stages.conversations import Conversation, Message
from stages.params import Columns, Source

MESSAGES = Source(url="x", sha256=None, format="messages")


def record(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}, ensure_ascii=False)


def as_csv(*rows):
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def read(raw, source=MESSAGES):
    return list(parse.read(io.BytesIO(raw), source))


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
        ('{"messages": [{"role": "user", "content": 5}]}', "Expected `str`, got `int` - at `$.messages[0].content`"),
        ('{"messages": [{"role": "guest", "content": "a"}]}', "Invalid enum value 'guest' - at `$.messages[0].role`"),
        ('{"messages": [], "extra": 1}', "unknown field `extra`"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(cell, reason):
    ((row, conversation, error, snippet),) = read(as_csv([cell]))
    assert (row, conversation) == (1, None) and reason in error and snippet.replace("‹", "").replace("›", "") in cell


def test_a_row_with_a_second_column_is_told():
    assert "2 columns" in read(as_csv([record(*TALK)], [record(*TALK), "x"]))[1][2]


def test_columns_with_a_system_prompt():
    columns = Columns(user="q", assistant="a", system_prompt="Be kind.")
    raw = as_csv(["id", "a", "q"], ["7", "Yes.", "Open?"], ["8", "short row"])
    rows = read(raw, Source(url="x", sha256=None, format="columns", columns=columns))
    assert rows[0][:2] == (
        2,
        Conversation((Message("system", "Be kind."), Message("user", "Open?"), Message("assistant", "Yes."))),
    )
    assert rows[1][:3] == (3, None, "2 columns where the header has 3")


def test_a_missing_column_names_those_that_there_are():
    source = Source(url="x", sha256=None, format="columns", columns=Columns(user="question", assistant="a"))
    with pytest.raises(UserError, match="no column 'question'; its columns are: q, a"):
        read(as_csv(["q", "a"], ["1", "2"]), source)


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "is empty"),
        ("{é}".encode("latin-1"), "is not UTF-8"),
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
    Path("data").mkdir()
    bad = '{"messages": 5}'
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("url: data/sample.csv", "url: data/raw.csv"))
    parse.RAW.write_bytes(as_csv([record(*TALK)], [bad], [record(("user", " "), ("assistant", "x"))]))
    parse.main()
    assert len(list(conversations.read_jsonl(parse.CONVERSATIONS))) == 2
    line = parse.CONVERSATIONS.read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(line) == json.loads(record(*TALK)) and "日本語" in line
    signals = pd.read_parquet(parse.SIGNALS)
    assert list(signals["row"]) == [1, 2, 3] and list(signals["error"].isna()) == [True, False, True]
    assert list(signals["roles"].dropna()) == ["ua", "ua"] and list(signals["n_empty"].dropna()) == [0, 1]
    assert params.load().data.chosen.format == "messages"


def test_tokens_are_those_of_the_chat_template(project, base):
    # <|im_start|>system\nYou are a helpful AI ...<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n...
    from transformers import AutoTokenizer

    from stages.chat import Chat

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    expected = AutoTokenizer.from_pretrained("models/base").apply_chat_template(turns, return_dict=True)["input_ids"]
    talk = Conversation((Message("user", "Hi"), Message("assistant", "Hello there")))
    assert Chat.load().counts([talk]) == [len(expected)]
