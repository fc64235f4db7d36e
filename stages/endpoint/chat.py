"""Chat completions: from a request of the API to a prompt, and from an answer to the API's objects."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from stages.dataset.conversations import Conversation
from stages.endpoint.exchange import Answer, Asked, Served
from stages.endpoint.refusals import RefusedError
from stages.endpoint.store import Json, new_id

if TYPE_CHECKING:
    from stages.endpoint.answers import Answers

_SPOKEN = ("role", "content", "name", "tool_calls", "tool_call_id")
# What would change the answer and is not done here, with the values that ask for nothing.
_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tool_choice": ("none", "auto"),
    "reasoning_effort": (),
    "verbosity": (),
}

# How often to look whether the client still waits.
_LOOK_SECONDS = 1.0


def asked(body: Json) -> Asked:
    """The prompt in a request, and how to answer it.

    Raises:
        RefusedError: it asks for something that is not done here.
    """
    for name, harmless in _NOT_HERE.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise RefusedError(400, f"'{name}' is not available here; leave it out.", name, "unsupported_parameter")
    messages = [_message(message, number) for number, message in enumerate(body["messages"])]
    tools = body.get("tools") if body.get("tool_choice") != "none" else None
    try:
        conversation = msgspec.convert({"messages": messages, "tools": tools or None}, Conversation)
    except msgspec.ValidationError as error:
        raise RefusedError(400, f"Invalid messages: {error}", "messages") from None
    temperature, top_p = body.get("temperature"), body.get("top_p")
    stop = body.get("stop") or ()
    return Asked(
        conversation,
        body.get("max_completion_tokens") or body.get("max_tokens"),
        1.0 if temperature is None else float(temperature),
        1.0 if top_p is None else max(float(top_p), 1e-6),
        tuple(word for word in ([stop] if isinstance(stop, str) else stop) if word),
        body.get("seed"),
    )


def _message(message: Json, number: int) -> Json:
    """A message as conversations have it: a developer's is the system's, and parts of text are one text."""
    kept = {name: message[name] for name in _SPOKEN if message.get(name) is not None}
    if kept["role"] == "developer":
        kept["role"] = "system"
    if isinstance(kept.get("content"), list):
        parts = kept["content"]
        if any(part.get("type") != "text" for part in parts):
            where = f"messages.{number}.content"
            raise RefusedError(400, "The models here read text only.", where, "unsupported_content")
        kept["content"] = "".join(part["text"] for part in parts)
    return kept


class Chat:
    """Answers requests in the order in which they come; `answers` are made when the first comes."""

    def __init__(self, make: Callable[[], "Answers"]) -> None:
        self._make = make
        self._made: Answers | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

    def stop(self) -> None:
        """Answer nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def complete(self, served: Served, body: Json, gone: Callable[[], Any]) -> Json:
        """The whole answer. `gone` tells whether the client is; then its request is dropped.

        Raises:
            RefusedError: see `asked` and `Answers.answer`.
        """
        given, left = asked(body), asyncio.Event()
        work = self._submit(served, given, lambda _: None, left.is_set)
        while not (await asyncio.wait([work], timeout=_LOOK_SECONDS))[0]:
            if await gone():
                left.set()
                work.cancel()
                raise RefusedError(499, "The client is gone.")
        answer: Answer = work.result()
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.reason}
        return _head(served, body, "chat.completion") | {"choices": [choice], "usage": _usage(answer)}

    async def stream(self, served: Served, body: Json) -> AsyncIterator[str]:
        """The answer as server-sent events, the first of which comes with the first text.

        Raises:
            RefusedError: before the first event, as `complete`.
        """
        given, loop = asked(body), asyncio.get_running_loop()
        texts: asyncio.Queue[str | None] = asyncio.Queue()
        left = asyncio.Event()

        def pass_on(text: str | None) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        work = self._submit(served, given, pass_on, left.is_set)
        work.add_done_callback(lambda _: texts.put_nowait(None))
        first = await texts.get()
        if first is None:
            # Raises what the work raised.
            work.result()
        return self._events(served, body, work, texts, first, left)

    async def _events(
        self, served: Served, body: Json, work: Any, texts: Any, first: str | None, left: asyncio.Event
    ) -> AsyncIterator[str]:
        head = _head(served, body, "chat.completion.chunk")
        with_usage = (body.get("stream_options") or {}).get("include_usage")
        try:
            yield _event(head, {"role": "assistant", "content": ""}, None)
            text = first
            while text is not None:
                yield _event(head, {"content": text}, None)
                text = await texts.get()
            answer = work.result()
            yield _event(head, {}, answer.reason)
            if with_usage:
                yield f"data: {json.dumps(head | {'choices': [], 'usage': _usage(answer)})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            # Also if the client left in the middle.
            left.set()

    def _submit(
        self, served: Served, given: Asked, on_text: Callable[[str], Any], left: Callable[[], bool]
    ) -> "asyncio.Future[Any]":
        def work() -> Answer:
            if left():
                raise RefusedError(499, "The client is gone.")
            self._made = self._made or self._make()
            return self._made.answer(served, given, on_text, left)

        return asyncio.get_running_loop().run_in_executor(self._thread, work)


def _head(served: Served, body: Json, kind: str) -> Json:
    """What all objects of an answer begin with; `system_fingerprint` says what the model really is."""
    head = {"id": new_id("chatcmpl-"), "object": kind, "created": int(time.time()), "model": body["model"]}
    return head | {"system_fingerprint": served.said}


def _event(head: Json, delta: Json, reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"


def _usage(answer: Answer) -> Json:
    total = answer.prompt_tokens + answer.tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}
