"""Answers of a hosted model, requested in parallel; each is paid for once and cached outside DVC's outs."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import openai
from tqdm import tqdm

from stages.backends.openai import reader
from stages.backends.openai.base.client import readable_errors
from stages.backends.openai.common import prices
from stages.backends.protocol import Likelihoods
from stages.core import files
from stages.dataset.conversations import Conversation, Message

Answer = dict[str, Any]


@dataclass(frozen=True)
class HostedPair:
    """The base model and the tuned model behind an endpoint."""

    client: openai.OpenAI
    endpoint: str
    base: str
    tuned: str
    parallel: int
    seed: int
    used: dict[str, list[Answer]] = field(default_factory=dict)

    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """Return the greedy answer to each prompt, and how many were truncated at `max_new_tokens`.

        Raises:
            UserError: a request failed after all retries; the next run requests only the missing answers.
        """
        model, kind = (self.tuned, "tuned") if tuned else (self.base, "base")
        requests = [self._request(conversation, model, max_new_tokens) for conversation in conversations]
        cache = AnswerCache(self.endpoint, model)
        with ExitStack() as stack:
            stack.enter_context(readable_errors(self.endpoint))
            pool = stack.enter_context(ThreadPoolExecutor(self.parallel))
            # After an error or Ctrl-C, send no further requests.
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            found = pool.map(lambda request: cache.get(request) or cache.add(request, self._ask(request)), requests)
            answers = list(tqdm(found, f"{kind} answers", len(requests), unit="answer", disable=None))
        self.used[kind] = answers
        return [one["text"] for one in answers], sum(one["cut"] for one in answers)

    @property
    def varies(self) -> bool:
        """Never: answers are paid for once, and kept."""
        return False

    def price(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> float | None:
        """Estimate the most that `answers` would cost, in US dollars; None if the price is unknown."""
        # The responses, which are counted too but not sent, make up for what a template adds.
        prompts = sum(int(count) for count in reader.load().counts(conversations))
        return prices.answers(self.base, "tuned" if tuned else "base", prompts, max_new_tokens * len(conversations))

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
        model, parts = self.tuned if tuned else self.base, []
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
        price = prices.answers(self.base, kind, prompt, answer)
        return {"prompt_tokens": prompt, "answer_tokens": answer} | ({} if price is None else {"price_usd": price})

    def _request(self, conversation: Conversation, model: str, max_new_tokens: int) -> dict[str, Any]:
        messages = [msgspec.to_builtins(message) for message in conversation.prompt]
        tools = {"tools": conversation.tools} if conversation.tools else {}
        for message in messages:
            message.pop("weight", None)
        return {"model": model, "messages": messages, "temperature": 0, "seed": self.seed % 2**31,
                "max_tokens": max_new_tokens, **tools}  # fmt: skip

    def _ask(self, request: dict[str, Any]) -> Answer:
        done = self.client.chat.completions.create(**request)
        choice, usage = done.choices[0], done.usage
        calls = choice.message.tool_calls
        text = choice.message.content or (json.dumps([call.to_dict() for call in calls]) if calls else "")
        tokens = {"prompt": usage.prompt_tokens, "answer": usage.completion_tokens} if usage else {}
        return {"text": text.strip(), "cut": choice.finish_reason == "length", **tokens}


class AnswerCache:
    """Answers by request, in a file to which each is appended at once, so that a killed run pays for none twice."""

    def __init__(self, endpoint: str, model: str) -> None:
        name = hashlib.sha256(f"{endpoint} {model}".encode()).hexdigest()[:32]
        self._path: Path = files.state_dir("openai", "answers") / f"{name}.jsonl"
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line truncated by a killed run
                continue
            self._answers[record["request"]] = record["answer"]

    def get(self, request: dict[str, Any]) -> Answer | None:
        """Return the answer to an identical request."""
        return self._answers.get(_key(request))

    def add(self, request: dict[str, Any], answer: Answer) -> Answer:
        """Store an answer and return it."""
        line = json.dumps({"request": _key(request), "answer": answer})
        with self._lock, self._path.open("a", encoding="utf-8") as out:
            # The newline comes first, to end a line truncated by a killed run.
            out.write(f"\n{line}")
        return answer


def _key(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
