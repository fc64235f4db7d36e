"""Tables: several columns for a role, a row for each message, trees of messages."""

import json
import random

import pandas as pd
import pytest

from stages.core.cli import UserError
from stages.core.paths import QUARANTINE, RAW
from stages.dataset import readers
from stages.dataset.formats.cells import cells
from stages.dataset.readers import limits
from stages.gate import quarantine
from tests.support.sources import as_csv, read, source, talk

pytestmark = pytest.mark.usefixtures("here")

TURNS = {"conversation": "id", "role": "role", "content": "text"}


@pytest.mark.parametrize(
    "spec, fields, text",
    [
        ("q", {"q": " Open? "}, " Open? "),
        (["q", "c"], {"q": "Open?", "c": "Page 3."}, "Open?\n\nPage 3."),
        (["q", "c"], {"q": "Open?", "c": ""}, "Open?"),
        (["q", "c"], {"q": "Open?", "c": None}, "Open?"),
        ("{q}\n\n{c}", {"q": "Open?", "c": "Page 3."}, "Open?\n\nPage 3."),
        ("{q}\n\nContext: {c}", {"q": "Open?", "c": " "}, "Open?"),
        ("Context: {c}\n\n{q}", {"q": "Open?", "c": ""}, "Open?"),
        ("{q} ({c})", {"q": "Open?", "c": "Friday"}, "Open? (Friday)"),
        ("Q: {q}", {"q": ""}, ""),
        ("Translate: {the text}", {"the text": "Hallo"}, "Translate: Hallo"),
        ("{q}\n{c}", {"q": "", "c": ""}, ""),
    ],
)
def test_a_role_may_be_made_of_several_columns(spec, fields, text):
    assert cells(spec).text(fields) == text


def test_a_template_reads_a_table_and_json_alike():
    columns = {"user": "{q}\n\n{c}", "assistant": "a"}
    expected = [talk(("user", "Open?\n\nPage 3."), ("assistant", "Yes.")), talk(("user", "Why?"), ("assistant", "So."))]
    rows = [["Open?", "Page 3.", "Yes."], ["Why?", "", "So."]]
    table = read(as_csv(["q", "c", "a"], *rows), source("columns", columns=columns))
    lines = "\n".join(json.dumps(dict(zip("qca", row, strict=True))) for row in rows).encode()
    assert [one.conversation for one in table] == expected
    assert [one.conversation for one in read(lines, source("columns", columns=columns))] == expected


def test_a_missing_column_of_a_template_is_an_error():
    with pytest.raises(UserError, match="no column 'context'; its columns are: q, a"):
        read(as_csv(["q", "a"], ["1", "2"]), source("columns", columns={"user": "{q}\n{context}", "assistant": "a"}))


def test_an_empty_list_of_columns_is_refused():
    with pytest.raises(ValueError, match="user is an empty list"):
        source("columns", columns={"user": [], "assistant": "a"})


def messages(count, turns=4):
    """Rows of a table of messages: conversation, role, text, place."""
    return [
        [f"c{n}", "user" if place % 2 == 0 else "assistant", f"text {n} {place}", place]
        for n in range(count)
        for place in range(turns)
    ]


def expected(count, turns=4):
    return {
        talk(*(("user" if place % 2 == 0 else "assistant", f"text {n} {place}") for place in range(turns)))
        for n in range(count)
    }


@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
def test_rows_of_messages_are_put_together_wherever_they_are(container, tmp_path):
    rows = messages(30)
    random.Random(0).shuffle(rows)
    header = ["id", "role", "text", "place"]
    if container == "csv":
        raw = as_csv(header, *rows)
    elif container == "jsonl":
        raw = "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows).encode()
    else:
        pd.DataFrame(rows, columns=header).to_parquet(tmp_path / "x")
        raw = (tmp_path / "x").read_bytes()
    found = read(raw, source("turns", turns={**TURNS, "order": "place"}))
    assert len(found) == 30 and {one.conversation for one in found if one.error is None} == expected(30)
    # Conversations are numbered by their first rows, and come in that order.
    assert [one.row for one in found] == sorted(one.row for one in found)
    first = {}
    for number, row in enumerate(rows, 2 if container == "csv" else 1):
        first.setdefault(row[0], number)
    assert [one.row for one in found] == sorted(first.values())


def test_without_an_order_rows_follow_each_other_as_in_the_file():
    rows = messages(3, 2)
    mixed = [rows[0], rows[2], rows[4], rows[1], rows[3], rows[5]]
    found = read(as_csv(["id", "role", "text", "n"], *mixed), source("turns", turns=TURNS))
    assert [one.row for one in found] == [2, 3, 4] and {one.conversation for one in found} == expected(3, 2)


def test_dates_sort_as_iso_writes_them_and_others_are_refused():
    def of(*dates):
        rows = [["c", "assistant", "Yes.", dates[1]], ["c", "user", "Open?", dates[0]]]
        raw = as_csv(["id", "role", "text", "at"], *rows, ["d", "user", "a", 1], ["d", "assistant", "b", 2])
        return read(raw, source("turns", turns={**TURNS, "order": "at"}))[0]

    good = of("2026-11-25 10:00", "2026-11-25 10:05")
    assert good.conversation == talk(("user", "Open?"), ("assistant", "Yes."))
    bad = of("25/11/26 10:00", "25/11/26 10:05")
    assert "dates such as 2026-11-25 10:00, in field `at`" in bad.error and bad.snippet == "conversation c, rows 2, 3"
    assert "the same value in field `at`" in of("7", "7").error


def test_a_broken_conversation_names_its_rows_and_leaves_the_others():
    rows = [["c1", "user", "Open?"], ["c2", "user", "Why?"], ["c1", "robot", "Yes."], ["c2", "assistant", "So."],
            ["", "user", "Lost."], ["c2"]]  # fmt: skip
    found = {one.row: one for one in read(as_csv(["id", "role", "text"], *rows), source("turns", turns=TURNS))}
    assert "Invalid enum value 'robot'" in found[2].error and found[2].snippet == "conversation c1, rows 2, 4"
    assert found[3].conversation == talk(("user", "Why?"), ("assistant", "So."))
    assert "no text in field `id`" in found[6].error and "1 columns where the header has 3" in found[7].error


def test_a_conversation_of_too_many_rows_is_an_error_of_its_own(monkeypatch):
    monkeypatch.setattr(limits, "RECORD_LIMIT", 2_000)
    rows = [["c1", "user", "x" * 50]] * 100 + [["c2", "user", "Why?"], ["c2", "assistant", "So."]]
    first, second = read(as_csv(["id", "role", "text"], *rows), source("turns", turns=TURNS))
    assert "more than 2,000 bytes" in first.error and " and 90 more" in first.snippet and second.error is None


def test_names_of_speakers_and_labels_in_a_table_of_messages():
    rows = [["c1", "Kim", "Open?", "hours"], ["c1", "Desk", "Yes.", "hours"]]
    given = source("turns", turns=TURNS, roles={"Kim": "user", "Desk": "assistant"}, label="topic")
    (found,) = read(as_csv(["id", "role", "text", "topic"], *rows), given)
    assert (found.conversation, found.label) == (talk(("user", "Open?"), ("assistant", "Yes.")), "hours")


def test_quarantine_keeps_all_rows_of_a_conversation():
    RAW.parent.mkdir(exist_ok=True)
    rows = [["c1", "user", "Open?"], ["c2", "user", "Why?"], ["c1", "robot", "Yes."], ["c2", "assistant", "So."]]
    RAW.write_bytes(as_csv(["id", "role", "text"], *rows))
    quarantine.write({2: "parses"}, source("turns", turns=TURNS), 10**6)
    (kept,) = pd.read_csv(QUARANTINE, dtype=str).to_dict("records")
    assert (kept["row"], kept["id"], kept["text"]) == ("2", "c1", "Open?")
    assert [json.loads(one) for one in json.loads(kept["more"])] == [["c1", "robot", "Yes."]]


def message(identity, parent, role, text, rank=None):
    return {"message_id": identity, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en"}


TREE = [
    message("r", None, "prompter", "Open?"),
    message("a2", "r", "assistant", "Perhaps.", 1),
    message("a1", "r", "assistant", "Yes.", 0),
    message("u", "a1", "prompter", "And on Sunday?", 0),
    message("b", "u", "assistant", "Shut.", 0),
    message("v", "b", "prompter", "Why?", 0),
]
BEST = talk(("user", "Open?"), ("assistant", "Yes."), ("user", "And on Sunday?"), ("assistant", "Shut."))


@pytest.mark.parametrize("order", [1, -1])
def test_the_best_ranked_path_of_a_tree_is_its_conversation(order, capsys):
    rows = [*TREE, message("r2", None, "prompter", "Why?"), message("x", "r2", "assistant", "So.")][::order]
    found = read("\n".join(map(json.dumps, rows)).encode(), source("oasst"))
    assert {one.conversation for one in found} == {BEST, talk(("user", "Why?"), ("assistant", "So."))}
    assert "the best-ranked path of each is read, and 2 messages on other paths are left out" in capsys.readouterr().out


def nested(identity):
    replies = [nested(one["message_id"]) for one in TREE if one["parent_id"] == identity]
    return {**next(one for one in TREE if one["message_id"] == identity), "replies": replies}


def test_a_whole_tree_in_a_record_is_read_alike(capsys):
    (found,) = read(json.dumps({"message_tree_id": "r", "prompt": nested("r")}).encode(), source("oasst"))
    assert found.conversation == BEST and "2 messages on other paths" in capsys.readouterr().out


def test_what_is_no_tree_is_reported_with_its_row():
    rows = [*TREE, message("o", "gone", "assistant", "Lost."), message("r", None, "prompter", "Again?"),
            message("z", None, "prompter", "Rank?", "high")]  # fmt: skip
    found = {one.row: one.error for one in read("\n".join(map(json.dumps, rows)).encode(), source("oasst"))}
    assert found[1] is None and "parent_id is that of no message" in found[7]
    assert "that of another row too" in found[8] and "Expected a number in field `rank`" in found[9]


def test_a_circle_of_messages_ends():
    rows = [*TREE, message("p", "q", "prompter", "a"), message("q", "p", "assistant", "b")]
    assert [one.conversation for one in read("\n".join(map(json.dumps, rows)).encode(), source("oasst"))] == [BEST]


def test_an_unranked_tree_takes_the_first_reply():
    rows = [message("r", None, "prompter", "Open?"), message("a", "r", "assistant", "Yes."),
            message("b", "r", "assistant", "No.")]  # fmt: skip
    (found,) = read(as_csv(list(rows[0]), *([v or "" for v in row.values()] for row in rows)), source("oasst"))
    assert found.conversation.response == "Yes."


def test_trailing_rows_of_delimiters_are_blank_lines():
    raw = b'q,a,\n"Open?","Yes.",\n,,\n"Why?","So.",\n,,\n,,\n\n'
    found = read(raw, source("columns", columns={"user": "q", "assistant": "a"}))
    assert [one.row for one in found] == [2, 3, 4]
    assert [one.error for one in found] == [None, "a blank row between others; remove it", None]


@pytest.mark.parametrize(
    "line, cells",
    [
        (rb'"What is \"lag\"?","a"', ['What is "lag"?', "a"]),
        (rb'"C:\new","a \\ b"', ["C:\\new", "a \\ b"]),
        (rb'"say ""hi""","\"\""', ['say "hi"', '""']),
        (rb'"a \", b","c"', ['a ", b', "c"]),
    ],
)
def test_quotes_after_a_backslash_are_read_where_declared(line, cells):
    RAW.parent.mkdir()
    RAW.write_bytes(b'"q","a"\n' + line + b"\n")
    assert list(readers.rows(RAW, source(escape="backslash"), 10**6))[1:] == [(2, cells)]


def test_the_error_of_a_quote_names_the_option():
    raw = b'"q","a"\n"What is \\"lag\\"?","a"\n'
    with pytest.raises(UserError) as error:
        read(raw, source("columns", columns={"user": "q", "assistant": "a"}))
    assert str(error.value).splitlines()[1] == "escape: backslash" and "under data.sources.*:" in str(error.value)
