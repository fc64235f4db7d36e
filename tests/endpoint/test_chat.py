"""Requests whose clients leave while they wait."""

import asyncio
import threading
from pathlib import Path

import pytest

from stages.endpoint import chat
from stages.endpoint.exchange import Answer, Served
from stages.endpoint.refusals import RefusedError

SERVED = Served(Path("base"), None, "a model")
BODY = {"model": "m", "messages": [{"role": "user", "content": "Room 3?"}]}


class Waiting:
    """A model that answers once it may, or once it knows that nobody waits."""

    def __init__(self):
        self.may, self.asked, self.abandoned = threading.Event(), 0, threading.Event()

    def answer(self, served, asked, on_text, abandoned):
        self.asked += 1
        while not self.may.wait(0.001):
            if abandoned():
                self.abandoned.set()
                break
        return Answer("yes", "stop", 5, 2)


def test_an_answer_that_nobody_waits_for_is_cut_short_and_those_behind_it_are_not_begun(monkeypatch):
    monkeypatch.setattr(chat, "_LOOK_SECONDS", 0.001)
    model = Waiting()

    async def gone():
        return True

    async def here():
        return False

    async def run():
        answers = chat.Chat(lambda: model)
        left = [answers.complete(SERVED, BODY, gone) for _ in range(3)]
        assert [type(error) for error in await asyncio.gather(*left, return_exceptions=True)] == [RefusedError] * 3
        assert model.abandoned.wait(5)
        model.may.set()
        answer = await answers.complete(SERVED, BODY, here)
        answers.stop()
        return answer

    answer = asyncio.run(run())
    assert answer["choices"][0]["message"]["content"] == "yes" and answer["system_fingerprint"] == "a model"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert model.asked == 2


def test_a_refusal_of_the_model_reaches_the_client_before_a_stream_begins():
    class Refusing:
        def answer(self, *_):
            raise RefusedError(400, "too long", "messages", "context_length_exceeded")

    async def run():
        return await chat.Chat(Refusing).stream(SERVED, BODY | {"stream": True})

    with pytest.raises(RefusedError, match="too long"):
        asyncio.run(run())
