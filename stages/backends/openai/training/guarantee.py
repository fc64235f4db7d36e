"""How well an endpoint protects against paying twice, found out from what it lists before a job is paid."""

import time
from collections.abc import Iterable
from typing import Any, Literal

import openai

from stages.backends.openai.base.replies import Optional, field, listed
from stages.backends.openai.training import uploads
from stages.backends.openai.training.order import Order

JOBS = "list of jobs"
# From where a job is found whose creation got no answer.
Guarantee = Literal["any machine", "this machine", "none"]
MEANINGS: dict[Guarantee, str] = {
    "any machine": "a job is found from any machine by what the service lists; of two that machines create at once, the"
    " later one is cancelled as soon as it lists both",
    "this machine": "a job is found from this machine, which knows its training file; another machine cannot find it",
    "none": "the service lists nothing by which a job is found; if its creation gets no answer, no other is created",
}


def found_out(client: openai.OpenAI, order: Order, offers: Optional, looks: int, pause: float) -> Guarantee:
    """Which guarantee holds for an order whose files are uploaded; nothing is paid for that."""
    jobs = all_jobs(client, offers)
    if JOBS in offers.missing:
        return "none"
    if any(field(job, "metadata", dict) for job in jobs):
        return "any machine"
    # Jobs that name no file cannot be found by theirs.
    if jobs and not any(field(job, "training_file", str) for job in jobs):
        return "none"
    if _lists_upload(client, order, offers, looks, pause):
        return "any machine"
    return "this machine" if jobs else "none"


def all_jobs(client: openai.OpenAI, offers: Optional, **query: Any) -> list[Any]:
    """The jobs that the service lists; none where it lists no jobs."""
    instead = "a job is found only by what this machine and the last commit know"
    found: Iterable[Any] | None = offers.ask(JOBS, lambda: client.fine_tuning.jobs.list(limit=100, **query), instead)
    return [job for job in listed(found or []) if field(job, "id", str)]


def _lists_upload(client: openai.OpenAI, order: Order, offers: Optional, looks: int, pause: float) -> bool:
    """Whether the service lists the training file that was just uploaded; lists may lag."""
    for look in range(looks):
        if uploads.LIST in offers.missing:
            return False
        if look:
            time.sleep(pause)
        if any(True for _ in uploads.named(client, order.file_name("train"), offers)):
            return True
    return False
