"""Following a hosted job until it ends, with an in-memory service."""

from types import SimpleNamespace as Some

import openai
import pytest

from stages.backends.openai.base.replies import Optional
from stages.backends.openai.training import following, jobs
from stages.core.cli import UserError
from tests.support.service import LIMIT, LOST, SERVER, URL, Clock, Service, made, status

ORDER = jobs.Order(URL, "gpt", {}, 42, None, 1, {})
CANCEL = f'curl -X POST {URL}/fine_tuning/jobs/mine/cancel -H "Authorization: Bearer $OPENAI_API_KEY"'


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(following, "time", clock)
    return clock


class Passing(Service):
    """A job that takes the next of some statuses each time it is retrieved; the last one stays."""

    def __init__(self, *statuses):
        super().__init__()
        self.listed, self.statuses = [made("mine", statuses[0])], list(statuses)

    def retrieve(self, name):
        job = super().retrieve(name)
        job.status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return job


def follow(service, hours=1.0, poll=10):
    return following.follow(service, ORDER, service.listed[0], hours, poll)


def event(name, message="", data=None):
    return Some(id=name, message=message, type="metrics" if data is not None else "message", data=data)


def test_a_job_is_polled_until_it_has_succeeded(clock):
    service = Passing("validating_files", "queued", "running", "succeeded")
    assert follow(service, poll=7).status == "succeeded"
    assert clock.slept == [7, 7, 7] and service.count("retrieve") == 4 == service.count("events")
    assert service.asked[1] == ("events", "mine", 100)


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
def test_an_unsuccessful_job_is_reported_with_its_last_five_events(clock, ended):
    service = Passing("running", ended)
    service.listed[0].error = Some(message="bad file", code="c1", param="p1")
    service.events = [event(f"e{n}", f"event {n}") for n in range(7, 0, -1)]
    with pytest.raises(UserError) as error:
        follow(service)
    first, *events, last = str(error.value).splitlines()
    assert first == f"job mine is {ended}: bad file (code c1, parameter p1)"
    assert events == [f"event {n}" for n in range(3, 8)] and "increase openai.attempt by one" in last


@pytest.mark.parametrize("error", [None, Some(message=None, code=None, param=None)])
def test_an_unsuccessful_job_without_a_reason_is_reported_without_one(clock, error):
    service = Passing("failed")
    service.listed[0].error = error
    with pytest.raises(UserError, match=r"^job mine is failed\n"):
        follow(service)


def test_each_event_is_shown_once_and_in_order(clock, capsys):
    service = Passing("running", "running", "succeeded")
    listed = [[event("a", "one")], [event("b", "two"), event("a", "one")], [event("c", "three"), event("b", "two")]]
    service.list_events = lambda name, limit: listed.pop(0)
    follow(service)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("openai: ")] == [
        "openai: one",
        "openai: two",
        "openai: three",
    ]


def test_only_new_events_are_requested():
    def listed():
        yield event("b", "two")
        yield event("a", "one")
        raise AssertionError("older pages are asked for")

    bar = Some(n=0, total=None, update=lambda steps: None)
    client = Some(fine_tuning=Some(jobs=Some(list_events=lambda job, limit: listed())))
    events = following.Events(client, "mine", bar, Optional())
    events._seen.add("a")
    events.show()
    assert events.messages == ["two"]


def test_metrics_advance_the_bar_and_are_not_printed():
    moved = []

    class Bar:
        n, total = 0, None

        def update(self, steps):
            moved.append(steps)
            self.n += steps

    bar = Bar()
    found = [
        event("c", "Step 5", {"step": 5, "total_steps": 9}),
        event("b", "Step 2", {"step": 2, "total_steps": 8}),
        Some(id="a", message="odd metrics", type="metrics", data=[1]),
    ]
    client = Some(fine_tuning=Some(jobs=Some(list_events=lambda job, limit: found)))
    events = following.Events(client, "mine", bar, Optional())
    events.show()
    events.show()
    assert moved == [2, 3] and bar.total == 9 and events.messages == ["odd metrics"]


@pytest.mark.parametrize("fault", [LOST, SERVER, LIMIT])
def test_a_temporary_error_is_reported_once_and_waited_out(clock, capsys, fault):
    service = Passing("running", "running", "succeeded")
    service.faults["retrieve"] = [None, fault, fault, fault]
    assert follow(service).status == "succeeded" and len(clock.slept) == 5
    assert capsys.readouterr().out.count("Still waiting for mine") == 1


def test_a_rejected_request_ends_the_wait_and_says_how_to_reconnect(clock):
    service = Passing("running")
    service.faults["events"] = [status(401, openai.AuthenticationError)]
    with pytest.raises(UserError) as error:
        follow(service)
    reconnect = f"job mine is still running; run again to reconnect, or cancel it: {CANCEL}"
    assert str(error.value).splitlines()[1] == reconnect


def test_the_wait_ends_after_the_timeout(clock):
    service = Passing("running")
    with pytest.raises(UserError, match=r"openai.timeout: 0.01 hours exceeded; job mine is still running; .*cancel"):
        follow(service, hours=0.01, poll=12)
    # 0.01 hours are 36 seconds, which are not exceeded at 36.
    assert clock.slept == [12] * 4


@pytest.mark.parametrize("known", ["validating_files", "queued", "running"])
def test_a_known_status_is_not_reported(clock, capsys, known):
    follow(Passing(known, "succeeded"))
    assert "API lacks" not in capsys.readouterr().out


def test_an_unknown_status_is_reported_once(clock, capsys):
    follow(Passing("thinking", "thinking", "succeeded"))
    assert capsys.readouterr().out.count("mine has the status 'thinking', which OpenAI's API lacks; still waiting") == 1


def test_ctrl_c_leaves_the_job_running_and_says_how_to_reconnect(clock, capsys):
    service = Passing("running")
    service.faults["retrieve"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        follow(service)
    assert CANCEL in capsys.readouterr().out and service.count("cancel") == 0
