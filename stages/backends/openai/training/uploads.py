"""The splits at the service: each is uploaded once, and waited for until it can be trained on."""

import time
from collections.abc import Iterator
from typing import Any, Literal

import openai

from stages.backends.openai.base.client import describe, not_offered
from stages.backends.openai.base.replies import Optional, field, listed, number
from stages.backends.openai.training.order import Order
from stages.core.cli import UserError, notice
from stages.core.paths import SPLITS

PURPOSE: Literal["fine-tune"] = "fine-tune"
LIST = "list of files"
_TRIES = 3
_PAUSE_SECONDS = 2.0
# How long to wait for a file that the service still reads, and for one whose status says nothing of it: OpenAI's may
# stay `uploaded`.
_READ_SECONDS, _UNCLEAR_SECONDS = 1800.0, 30.0
_READ = ("processed", "succeeded", "ready", "completed")
_READING = ("pending", "running", "processing", "queued", "notrunning", "validating", "importing")
_UNREADABLE = ("error", "failed", "deleted", "cancelled")


def upload(client: openai.OpenAI, order: Order, split: str, offers: Optional) -> str:
    """Upload a split and return its id, reusing an earlier upload of the same content.

    Raises:
        UserError: the service cannot read the file.
        openai.OpenAIError: it cannot be uploaded.
    """
    for tries_left in reversed(range(_TRIES)):
        for file in named(client, order.file_name(split), offers):
            if _status(file) not in _UNREADABLE and number(file, "bytes") == SPLITS[split].stat().st_size:
                return _when_read(client, file, split)
        try:
            with SPLITS[split].open("rb") as content:
                sender = client.with_options(max_retries=0)
                return _when_read(
                    client, sender.files.create(file=(order.file_name(split), content), purpose=PURPOSE), split
                )
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            if not tries_left:
                raise
            notice(f"openai: {describe(error, order.endpoint)}. Retrying the upload of {split}")
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def named(client: openai.OpenAI, name: str, offers: Optional) -> Iterator[Any]:
    """The uploaded files of this name; none where files are not listed."""
    found = offers.ask(LIST, lambda: client.files.list(purpose=PURPOSE), "every file is uploaded anew")
    return (
        file
        for file in listed(found or [])
        if field(file, "filename", str) == name and field(file, "id", str) is not None
    )


def _status(file: Any) -> str:
    """The file's status; a service that gives none has read it."""
    return (field(file, "status", str) or "processed").lower()


def _when_read(client: openai.OpenAI, file: Any, split: str) -> str:
    """The file's id, once the service has read it, as far as it says so."""
    waited, name = 0.0, file.id
    while (status := _status(file)) not in _READ:
        if status in _UNREADABLE:
            why = field(file, "status_details", str)
            raise UserError(
                f"the service cannot read {SPLITS[split]}: its file {name} is {status}{f' ({why})' if why else ''}; fix"
                " the data, or delete the file there and run again"
            )
        if status not in _READING and waited >= _UNCLEAR_SECONDS:
            return str(name)
        if waited >= _READ_SECONDS:
            raise UserError(f"the service still has file {name} as {status} after {waited / 60:.0f} minutes; run again")
        if not waited:
            notice(f"openai: waiting until the service has read {SPLITS[split]} ({status})")
        time.sleep(_PAUSE_SECONDS)
        waited += _PAUSE_SECONDS
        try:
            file = client.files.retrieve(name)
        except openai.APIStatusError as error:
            if not not_offered(error):
                raise
            return str(name)
    return str(name)
