"""Answers of a hosted model, requested in parallel; each is paid for once."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
import openai
from tqdm import tqdm

from stages.backends.openai import reader
from stages.backends.openai.base.client import describe, message, readable_errors
from stages.backends.openai.base.replies import field as read
from stages.backends.openai.base.replies import number
from stages.backends.openai.common.prices import Prices
from stages.backends.openai.inference.kept import Answer, AnswerCache, key
from stages.backends.protocol import Likelihoods, UnavailableError
from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message

Kind = Literal["base", "tuned"]
Request = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Prices of the service, the most that training and answers may cost in US dollars, and what training has cost."""

    prices: Prices
    limit: float | None = None
    spent: float = 0.0


@dataclass(frozen=True)
class HostedPair:
    """The base model, if the service chats with it, and the tuned model behind an endpoint."""

    # Called when the first answer is missing: whoever has all of them needs no key.
    connect: Callable[[], openai.OpenAI]
    endpoint: str
    base: str | None
    tuned: str
    parallel: int
    seed: int
    budget: Budget
    used: dict[str, list[Answer]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def client(self) -> openai.OpenAI:
        """The connection to the service."""
        return self.connect()

    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """Return the greedy answer to each prompt, and how many were truncated at `max_new_tokens`.

        Raises:
            UnavailableError: the service does not chat with the model, or no more.
            UserError: a request failed after all retries, or the answers that are missing would cost too much; the next
                run requests only the missing ones.
        """
        model, kind = self._model(tuned), "tuned" if tuned else "base"
        requests = [self._request(conversation, model, max_new_tokens) for conversation in conversations]
        cache = AnswerCache(self.endpoint, model)
        missing = [one for one, request in zip(conversations, requests, strict=True) if cache.get(request) is None]
        if missing:
            self._check_cost(missing, tuned, max_new_tokens)
            # Here rather than in many threads at once.
            _ = self.client
        with ExitStack() as stack:
            stack.enter_context(readable_errors(self.endpoint))
            pool = stack.enter_context(ThreadPoolExecutor(self.parallel))
            # After an error or Ctrl-C, send no further requests.
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            found = pool.map(lambda request: cache.get(request) or cache.add(request, self._ask(request)), requests)
            answers = list(tqdm(found, f"{kind} answers", len(requests), unit="answer", disable=None))
        self.used[kind] = answers
        for request, answer in zip(requests, answers, strict=True):
            record = {"endpoint": self.endpoint, "model": model, "request": key(request), "answer": answer}
            self.records[record["request"]] = record
        return [one["text"] for one in answers], sum(one["cut"] for one in answers)

    def _model(self, tuned: bool) -> str:
        if tuned:
            return self.tuned
        if self.base is None:
            raise UnavailableError("openai.base_chat_model is null, so the base is not asked")
        return self.base

    def _check_cost(self, missing: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> None:
        limit = self.budget.limit
        if limit is None:
            return
        price = self.price(missing, tuned, max_new_tokens)
        answered = sum(self._cost(kind, answers).get("price_usd", 0.0) for kind, answers in self.used.items())
        if price is not None and self.budget.spent + answered + price > limit:
            raise UserError(
                f"openai.max_cost_usd: {len(missing)} answers of the {'tuned' if tuned else 'base'} model cost about"
                f" ${price:.2f}, after ${self.budget.spent + answered:.2f} for training and other answers; the limit is"
                f" {limit:g}: raise it, or lower evaluate.max_new_tokens"
            )

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Every answer that was given, once, in the order of the requests."""
        return list(self.records.values())

    @property
    def varies(self) -> bool:
        """Never: answers are paid for once, and kept."""
        return False

    def price(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> float | None:
        """Estimate the most that `answers` would cost, in US dollars; None if the price is unknown."""
        # The responses, which are counted too but not sent, make up for what a template adds.
        prompts = sum(int(count) for count in reader.load().counts(conversations))
        kind: Kind = "tuned" if tuned else "base"
        return self.budget.prices.of_answers(kind, prompts, max_new_tokens * len(conversations))

    def likelihoods(self, conversations: Sequence[Conversation], tuned: bool) -> Likelihoods | None:
        """None: the API does not return the likelihood of a given response."""
        return None

    def perturbed(self, conversations: Sequence[Conversation], tuned: bool, epsilon: float) -> Likelihoods | None:
        """None: the API accepts text, not embeddings."""
        return None

    def say(self, messages: Sequence[Message], tuned: bool, max_new_tokens: int, on_text: Callable[[str], Any]) -> str:
        """Stream the greedy answer to `on_text`, then return it whole.

        Raises:
            UserError: the request failed, or the stream broke off.
        """
        model, parts = self._model(tuned), list[str]()
        # The request is the conversation without its last message.
        request = self._request(Conversation((*messages, Message("assistant", ""))), model, max_new_tokens)
        with readable_errors(self.endpoint):
            for chunk in self.client.chat.completions.create(**request, stream=True):
                if text := chunk.choices[0].delta.content if chunk.choices else None:
                    parts.append(text)
                    on_text(text)
        return "".join(parts).strip()

    def facts(self) -> dict[str, Any]:
        """Requests, tokens and price of each model's answers, including cached ones.

        Tokens and price are absent if the service does not report token usage.
        """
        return {kind: {"requests": len(answers), **self._cost(kind, answers)} for kind, answers in self.used.items()}

    def _cost(self, kind: str, answers: list[Answer]) -> dict[str, Any]:
        if any("prompt" not in answer for answer in answers):
            return {}
        prompt, answer = (sum(one[name] for one in answers) for name in ("prompt", "answer"))
        price = self.budget.prices.of_answers("tuned" if kind == "tuned" else "base", prompt, answer)
        return {"prompt_tokens": prompt, "answer_tokens": answer} | ({} if price is None else {"price_usd": price})

    def _request(self, conversation: Conversation, model: str, max_new_tokens: int) -> dict[str, Any]:
        messages = [msgspec.to_builtins(turn) for turn in conversation.prompt]
        tools = {"tools": conversation.tools} if conversation.tools else {}
        for turn in messages:
            turn.pop("weight", None)
        return {"model": model, "messages": messages, "temperature": 0, "seed": self.seed % 2**31,
                "max_tokens": max_new_tokens, **tools}  # fmt: skip

    def _ask(self, request: Request) -> Answer:
        try:
            done = self.client.chat.completions.create(**request)
        except (openai.NotFoundError, openai.BadRequestError, openai.APIStatusError) as error:
            if not _is_gone(error):
                raise
            raise UnavailableError(self._gone(request["model"], error)) from error
        choices = read(done, "choices", list)
        if not choices or getattr(choices[0], "message", None) is None:
            raise openai.OpenAIError(f"an answer of {request['model']} has no choices")
        return _answer(choices[0], getattr(done, "usage", None))

    def _gone(self, model: str, error: openai.APIStatusError) -> str:
        what = f"{model} does not answer ({describe(error, self.endpoint)})"
        if model != self.tuned:
            return what
        return (
            f"{what}; if the service needs a deployment, create it there and set openai.chat_model to its name; if the"
            " model was shut down, `dvc pull` brings the answers of an earlier run. The training is not paid again"
        )


def _is_gone(error: openai.APIStatusError) -> bool:
    """Whether the service says that it does not have the model, as opposed to a request that it rejects."""
    if error.status_code in (404, 410) or error.code in ("model_not_found", "DeploymentNotFound"):
        return True
    said = message(error).lower()
    gone = ("not exist", "not found", "shut down", "deprecated", "no longer", "not available", "unknown model")
    return error.status_code in (400, 403, 422) and "model" in said and any(word in said for word in gone)


def _answer(choice: Any, usage: Any) -> Answer:
    calls = read(choice.message, "tool_calls", list)
    text = read(choice.message, "content", str) or (json.dumps([call.to_dict() for call in calls]) if calls else "")
    prompt, answer = number(usage, "prompt_tokens"), number(usage, "completion_tokens")
    tokens = {} if prompt is None or answer is None else {"prompt": int(prompt), "answer": int(answer)}
    return {"text": text.strip(), "cut": read(choice, "finish_reason", str) == "length", **tokens}
