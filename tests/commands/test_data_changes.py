import json
from pathlib import Path

import pytest

from stages.commands import data_changes
from stages.commands.data_changes import Rows
from stages.core import revisions
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from tests.conftest import set_params
from tests.support.history import cache, commit, git, write_run

# One prompt stands twice with two responses; "Spa?" gets another response, "Pool?" goes, "Bar?" and "Gym?" come.
BEFORE = [("Pool?", "Here."), ("Spa?", "At 9."), ("Tea?", "Yes."), ("Tea?", "No.")]
AFTER = [("Tea?", "No."), ("Spa?", "At 10."), ("Bar?", "Up."), ("Tea?", "Yes."), ("Gym?", "Down.")]
DIFFERENCE = Rows(old=4, new=5, added=2, removed=1, changed=1)


def jsonl(pairs):
    talks = [Conversation((Message("user", prompt), Message("assistant", response))) for prompt, response in pairs]
    return b"".join(conversations.encode(talk) + b"\n" for talk in talks)


def between():
    return data_changes.between(revisions.HEAD, revisions.WORKSPACE)


def test_rows_are_counted_from_the_cache(repository):
    for pairs in (BEFORE, AFTER):
        cache(jsonl(pairs))
    write_run(conversations=jsonl(BEFORE))
    commit()
    write_run(conversations=jsonl(AFTER), raw=b"other")
    found = between()
    assert found.rows == DIFFERENCE and found.missing == []
    assert found.files == ["data/raw.csv", "data/conversations.jsonl"]


def test_the_order_of_rows_is_no_difference(repository):
    for pairs in (BEFORE, BEFORE[::-1]):
        cache(jsonl(pairs))
    write_run(conversations=jsonl(BEFORE))
    commit()
    write_run(conversations=jsonl(BEFORE[::-1]))
    assert between().rows == Rows(old=4, new=4, added=0, removed=0, changed=0)


def csv(pairs):
    return ("question,answer\n" + "".join(f"{prompt},{response}\n" for prompt, response in pairs)).encode()


@pytest.fixture
def source():
    """source(pairs) puts them into a CSV that Git tracks, and leaves a run on it."""

    def write(pairs):
        path = Path("data/local/mine.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(csv(pairs))
        mine = {"url": path.as_posix(), "sha256": None, "format": "columns"}
        columns = {"columns": {"user": "question", "assistant": "answer"}}
        set_params(data__source="mine", data__sources={"mine": mine | columns})
        write_run(conversations=jsonl(pairs), raw=csv(pairs))

    return write


def test_without_a_cache_rows_are_counted_from_a_source_in_git(repository, source, capsys):
    source(BEFORE)
    commit()
    source(AFTER)
    assert between().rows == DIFFERENCE
    # The review goes to standard output, and what reading says of the file must not stand in it.
    assert capsys.readouterr().out == ""


def test_a_source_that_is_not_what_the_run_had_gives_nothing(repository, source):
    source(BEFORE)
    commit()
    source(AFTER)
    Path("data/local/mine.csv").write_bytes(csv(BEFORE))
    found = between()
    assert found.rows is None and found.missing == ["workspace"]


def test_conversations_that_are_nowhere_are_not_guessed(repository):
    write_run(conversations=jsonl(AFTER))
    found = between()
    assert found.rows is None and found.missing == ["HEAD", "workspace"]
    assert found.files == ["data/conversations.jsonl"]


def test_equal_checksums_are_equal_data(repository):
    found = between()
    assert (found.files, found.rows, found.missing) == ([], None, [])


def test_a_revision_without_dvc_lock_is_not_taken_for_equal(repository):
    git("rm", "-q", "dvc.lock")
    commit()
    assert between().missing == ["HEAD", "workspace"]


def test_a_form_of_params_that_is_unknown_today_gives_nothing(repository, source):
    shipped = Path("params.yaml").read_text()
    source(BEFORE)
    Path("params.yaml").write_text(json.dumps({"data": {"csv": "mine.csv"}}))
    commit()
    Path("params.yaml").write_text(shipped)
    source(AFTER)
    assert between().missing == ["HEAD"]
