"""Follows a job until it ends: shows its events, survives what the service lacks, and cancels a job created twice."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob
from tqdm import tqdm

from stages.backends.openai.base.client import describe, one_line
from stages.backends.openai.base.replies import Optional, field, listed, number
from stages.backends.openai.training import jobs, status
from stages.backends.openai.training.order import Order
from stages.core.cli import UserError, notice

_LAST_EVENTS = 5
# How often a job that has succeeded is asked for the name of its model, which some services add a moment later.
_NAME_LOOKS = 3
# Longest line of an event that is shown, in characters.
_LONGEST = 500
_PASSING = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)


def follow(
    client: openai.OpenAI,
    order: Order,
    job: FineTuningJob,
    hours: float,
    poll_seconds: float,
    offers: Optional | None = None,
) -> FineTuningJob:
    """Wait until the job has succeeded; print its events and show a progress bar.

    Raises:
        UserError: the job failed or was cancelled, the timeout expired, or the endpoint rejects requests.
        KeyboardInterrupt: on Ctrl-C, after printing how to reconnect to the job or cancel it.
    """
    begin, offers, notice_once, unnamed = time.monotonic(), offers or Optional(), _NoticeOnce(), 0
    try:
        with tqdm(desc="openai", unit="step", disable=None) as bar:
            events = Events(client, job.id, bar, offers)
            while True:
                try:
                    job = client.fine_tuning.jobs.retrieve(job.id)
                    events.show()
                except _PASSING as error:
                    notice_once(f"openai: {describe(error, order.endpoint)}. Still waiting for {job.id}")
                outcome, raw = status.outcome(job), one_line(status.of(job))
                if not status.is_documented(raw):
                    notice_once(f"openai: {job.id} has the status '{raw}', which OpenAI's API lacks; {_TAKEN[outcome]}")
                if outcome == "succeeded":
                    unnamed += 1
                    if field(job, "fine_tuned_model", str) or unnamed >= _NAME_LOOKS:
                        return job
                if outcome == "unsuccessful":
                    raise UserError(_failure(job, events.messages))
                waited = time.monotonic() - begin
                if outcome == "waiting" and waited < jobs.SETTLE_SECONDS:
                    job = _first(client, order, job, offers, events)
                if waited > hours * 3600:
                    raise UserError(f"openai.timeout: {hours:g} hours exceeded; {_running(order, job)}")
                time.sleep(poll_seconds)
    except KeyboardInterrupt:
        notice(f"openai: {_running(order, job)}")
        raise
    except openai.OpenAIError as error:
        raise UserError(f"{describe(error, order.endpoint)}\n{_running(order, job)}") from error


_TAKEN: dict[status.Outcome, str] = {
    "waiting": "still waiting",
    "succeeded": "taken as succeeded",
    "unsuccessful": "taken as failed",
}


def _running(order: Order, job: FineTuningJob) -> str:
    paused = "paused: resume it, and " if status.of(job) == "paused" else ""
    return (
        f"job {job.id} is {paused or 'still running; '}run again to reconnect, or cancel it:"
        f" {jobs.cancelling(order, job.id)}"
    )


def _first(
    client: openai.OpenAI, order: Order, job: FineTuningJob, offers: Optional, events: "Events"
) -> FineTuningJob:
    """The job, or an older one of another machine that lists did not show when this one was created."""
    oldest = jobs.first(client, order, job, offers)
    if oldest.id != job.id:
        events.job = oldest.id
    return oldest


class _NoticeOnce:
    """Prints each distinct text once."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            notice(text)


class Events:
    """Shows each of the job's events once: messages as lines, metrics as progress; nothing if the service has none."""

    def __init__(self, client: openai.OpenAI, job: str, bar: Any, offers: Optional) -> None:
        self._client, self.job, self._bar, self._offers = client, job, bar, offers
        self._seen: set[str] = set()
        self.messages: list[str] = []

    def show(self) -> None:
        """Show the events that are new.

        Raises:
            openai.OpenAIError: the service cannot be reached, or rejects the key.
        """
        try:
            found = self._offers.ask(
                "events",
                lambda: self._client.fine_tuning.jobs.list_events(self.job, limit=100),
                "only the status is shown",
            )
        except openai.AuthenticationError:
            raise
        except _PASSING:
            raise
        except openai.OpenAIError as error:
            self._offers.missing.add("events")
            notice(f"openai: events cannot be read ({describe(error, 'events')}); only the status is shown")
            return
        for event in reversed(list(_until(found or [], self._is_old))):
            self._seen.add(_identity(event))
            data = field(event, "data", dict)
            if field(event, "type", str) == "metrics" and data is not None:
                self._bar.total = number(data, "total_steps")
                self._bar.update((number(data, "step") or 0) - self._bar.n)
            elif said := field(event, "message", str):
                self.messages.append(one_line(said, _LONGEST))
                tqdm.write(f"openai: {self.messages[-1]}")

    def _is_old(self, event: Any) -> bool:
        return _identity(event) in self._seen


def _identity(event: Any) -> str:
    """What tells events apart: the id, or else the whole event."""
    return field(event, "id", str) or repr(event)


def _until(events: Iterable[Any], is_old: Callable[[Any], bool]) -> Iterator[Any]:
    for event in listed(events):
        if is_old(event):
            return
        yield event


def _failure(job: FineTuningJob, messages: list[str]) -> str:
    error = one_line(status.error_of(job), _LONGEST)
    first = f"job {job.id} is {one_line(status.of(job))}{f': {error}' if error else ''}"
    lines = [first, *messages[-_LAST_EVENTS:]]
    return "\n".join([*lines, "it is not resubmitted; fix the cause, or increase openai.attempt by one"])
