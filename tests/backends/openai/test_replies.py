"""Replies of services: fields of other kinds, lists that repeat, parts that are not offered."""

from types import SimpleNamespace as Some

import openai
import pytest

from stages.backends.openai.base.replies import Optional, field, listed, number
from stages.backends.openai.training import status
from tests.support.service import made
from tests.support.service import status as refused


class Pages:
    """A list of the SDK that gives these pages, then the last one for ever."""

    def __init__(self, *pages):
        self.pages, self.read = pages, 0

    def iter_pages(self):
        while True:
            yield self.pages[min(self.read, len(self.pages) - 1)]
            self.read += 1


def items(*names):
    return [Some(id=name) for name in names]


@pytest.mark.parametrize(
    "pages, names, read",
    [
        # A service that ignores `after` gives its first page again.
        (Pages(items("a", "b")), ["a", "b"], 2),
        (Pages(items("a", "b"), items("c"), items("c")), ["a", "b", "c"], 3),
        # A page that overlaps with the one before brings something new.
        (Pages(items("a", "b"), items("b", "c"), items("b", "c")), ["a", "b", "c"], 3),
        # It swings between two pages.
        (Pages(items("a"), items("b"), items("a"), items("b")), ["a", "b"], 3),
        (Pages([]), [], 1),
    ],
)
def test_a_list_ends_at_a_page_that_brings_nothing_new(pages, names, read):
    assert [item.id for item in listed(pages)] == names and pages.read + 1 == read


def test_a_list_that_always_brings_something_new_ends_too():
    endless = Some(iter_pages=lambda: (items(f"i{number}") for number in range(10**9)))
    assert len(list(listed(endless))) == 1000


def test_items_without_names_are_all_kept_and_end_a_list_that_repeats_them(monkeypatch):
    assert len(list(listed([Some(), Some(id=None), {"id": 5}]))) == 3
    monkeypatch.setattr("stages.backends.openai.base.replies._MOST_PAGES", 3)
    assert len(list(listed(Pages([Some()])))) == 3


@pytest.mark.parametrize(
    "given, found",
    [("x", "x"), ("", ""), (None, None), (5, None), (["x"], None), (True, None)],
)
def test_a_field_of_another_kind_is_missing(given, found):
    assert field(Some(a=given), "a", str) == found == field({"a": given}, "a", str)
    assert field(Some(), "a", str) is None and field(None, "a", str) is None


@pytest.mark.parametrize(
    "given, found",
    [(0.0, 0.0), (0, 0), ("1.5", 1.5), ("", None), ("auto", None), (None, None), (True, None), ([], None),
     (float("nan"), None), (float("inf"), None), ("nan", None), ("-inf", None), (1e301, None)],
)  # fmt: skip
def test_numbers_may_be_text_and_must_be_finite(given, found):
    assert number(Some(a=given), "a") == found


@pytest.mark.parametrize(
    "code, missing", [(404, True), (405, True), (410, True), (501, True), (400, False), (403, False)]
)
def test_a_part_that_is_not_offered_is_asked_for_once(capsys, code, missing):
    offers, asked = Optional(), []

    def request():
        asked.append(1)
        raise refused(code)

    for _ in range(2):
        if missing:
            assert offers.ask("events", request, "nothing is shown") is None
        else:
            with pytest.raises(openai.APIStatusError):
                offers.ask("events", request, "nothing is shown")
    assert len(asked) == (1 if missing else 2) and offers.missing == ({"events"} if missing else set())
    said = f"openai: the service has no events ({code}: refused); nothing is shown\n"
    assert capsys.readouterr().out == (said if missing else "")


@pytest.mark.parametrize(
    "job, outcome",
    [
        *((made("a", word), "waiting") for word in ("validating_files", "queued", "running", "paused", "pending")),
        *((made("a", word), "waiting") for word in ("Running", "cancelling", "thinking")),
        *((made("a", word), "succeeded") for word in ("succeeded", "Succeeded", "completed", "done")),
        *((made("a", word), "unsuccessful") for word in ("failed", "cancelled", "canceled", "expired", "timed-out")),
        # Of words that nobody documents the job's other fields decide.
        (made("a", "odd", finished_at=5), "succeeded"),
        (made("a", "odd", finished_at=5, model=None), "unsuccessful"),
        (made("a", "odd", finished_at=0, model=None), "waiting"),
        (made("a", None), "waiting"),
        (made("a", 7, finished_at=5), "succeeded"),
    ],
)
def test_whether_a_status_is_an_end(job, outcome):
    assert status.outcome(job) == outcome


def test_an_error_ends_a_job_of_an_undocumented_status():
    job = made("a", "odd", finished_at=5)
    job.error = Some(message="Out of memory.", code="oom", param=None)
    assert status.outcome(job) == "unsuccessful" and status.error_of(job) == "Out of memory (code oom)"
    job.error = "Out of memory."
    assert status.error_of(job) == "Out of memory."
