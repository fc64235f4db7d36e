"""Answers of a hosted model are requested once and cached by endpoint, model and request."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace as Some

import httpx
import openai
import pytest

from stages.backends.openai.common.prices import Prices
from stages.backends.openai.inference.hosted import Budget, HostedPair
from stages.backends.openai.inference.kept import AnswerCache
from stages.core.cli import UserError
from stages.dataset.conversations import Conversation, Message

URL = "http://service/v1"
TALK = Conversation((Message("system", "Be kind."), Message("user", "Pool?"), Message("assistant", "At 7.")))


def completion(text="Yes.", reason="stop", usage=(10, 3), calls=None):
    counted = Some(prompt_tokens=usage[0], completion_tokens=usage[1]) if usage else None
    message = Some(content=text, tool_calls=calls)
    return Some(choices=[Some(message=message, finish_reason=reason)], usage=counted)


class Service:
    def __init__(self, answer=completion):
        self.requests, self.answer = [], answer
        self._lock = threading.Lock()
        self.chat = Some(completions=Some(create=self._create))

    def _create(self, **request):
        with self._lock:
            self.requests.append(request)
        return self.answer() if not request.get("stream") else iter(self.answer())


def pair(service, endpoint=URL, **changes):
    given = {"base": "gpt-3.5-turbo-0125", "tuned": "ft:gpt-3.5-turbo-0125:x", "parallel": 2, "seed": 42}
    given["budget"] = Budget(Prices("unknown prices"))
    return HostedPair(lambda: service, endpoint, **given | changes)


def test_a_request_has_the_prompt_and_everything_that_determines_the_answer(project):
    service = Service()
    tools = [{"type": "function", "function": {"name": "book"}}]
    turns = (Message("assistant", "Hello!", weight=0), Message("user", "Pool?"), Message("assistant", "At 7."))
    assert pair(service).answers([Conversation(turns, tools=tools)], True, 64) == (["Yes."], 0)
    (request,) = service.requests
    assert request == {
        "model": "ft:gpt-3.5-turbo-0125:x",
        # Without the expected answer, and without weights, which are for training only.
        "messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Pool?"}],
        "temperature": 0,
        "seed": 42,
        "max_tokens": 64,
        "tools": tools,
    }


def test_a_request_to_the_base_names_it_and_has_no_tools_if_there_are_none(project):
    service = Service()
    pair(service).answers([TALK], False, 64)
    assert service.requests[0]["model"] == "gpt-3.5-turbo-0125" and "tools" not in service.requests[0]


@pytest.mark.parametrize("seed, sent", [(0, 0), (2**31 - 1, 2**31 - 1), (2**31, 0), (2**32 - 1, 2**31 - 1)])
def test_a_seed_is_reduced_to_the_31_bits_that_the_service_accepts(project, seed, sent):
    service = Service()
    pair(service, seed=seed).answers([TALK], True, 64)
    assert service.requests[0]["seed"] == sent


def test_an_identical_request_is_paid_once(project):
    first, second = Service(), Service()
    assert pair(first).answers([TALK], True, 64) == pair(second).answers([TALK], True, 64)
    assert len(first.requests) == 1 and second.requests == []


OTHER = Conversation((Message("user", "Bar?"), Message("assistant", "At 7.")))
TOOLS = Conversation(TALK.messages, tools=[{"type": "function", "function": {"name": "book"}}])


@pytest.mark.parametrize(
    "change, call",
    [
        ({"endpoint": "http://other/v1"}, (TALK, True, 64)),
        ({"tuned": "ft:other"}, (TALK, True, 64)),
        ({"seed": 43}, (TALK, True, 64)),
        ({}, (OTHER, True, 64)),
        ({}, (TOOLS, True, 64)),
        ({}, (TALK, False, 64)),
        ({}, (TALK, True, 65)),
    ],
    ids=["endpoint", "model", "seed", "prompt", "tools", "base", "length"],
)
def test_answers_are_cached_by_every_part_of_the_request(project, change, call):
    service = Service()
    pair(service).answers([TALK], True, 64)
    talk, tuned, most = call
    pair(service, **change).answers([talk], tuned, most)
    assert len(service.requests) == 2


def test_the_reference_answer_is_not_part_of_the_request(project):
    service = Service()
    pair(service).answers([TALK], True, 64)
    pair(service).answers([Conversation((*TALK.prompt, Message("assistant", "At 8.")))], True, 64)
    assert len(service.requests) == 1


def given(text):
    return {"text": text, "cut": False}


def test_the_cache_is_specific_to_endpoint_and_model(project):
    AnswerCache("http://a/v1", "m").add({"q": 1}, given("one"))
    assert AnswerCache("http://a/v1", "m").get({"q": 1}) == given("one")
    assert (
        AnswerCache("http://b/v1", "m").get({"q": 1}) is None and AnswerCache("http://a/v1", "n").get({"q": 1}) is None
    )
    names = [path.name for path in (project / ".state/openai/answers").iterdir()]
    assert len(names) == 1 and len(names[0]) == 32 + len(".jsonl")


def test_the_order_of_a_request_s_keys_does_not_matter(project):
    AnswerCache(URL, "m").add({"a": 1, "b": {"c": 2, "d": 3}}, given("x"))
    assert AnswerCache(URL, "m").get({"b": {"d": 3, "c": 2}, "a": 1}) == given("x")


def test_a_line_truncated_by_a_killed_run_does_not_spoil_others(project):
    AnswerCache(URL, "m").add({"q": 1}, given("é"))
    (path,) = (project / ".state/openai/answers").iterdir()
    with path.open("a") as out:
        out.write('\n{"request": "ab')
    AnswerCache(URL, "m").add({"q": 2}, given("two"))
    kept = AnswerCache(URL, "m")
    assert (kept.get({"q": 1}), kept.get({"q": 2})) == (given("é"), given("two"))


def test_a_failed_request_does_not_lose_earlier_answers(project):
    fault = openai.APIConnectionError(request=httpx.Request("POST", URL))
    answers = [completion("One."), fault]

    def answer():
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(UserError, match=f"^{URL}: connection lost"):
        pair(Service(answer), parallel=1).answers([TALK, OTHER, TOOLS], True, 64)
    assert answers == []
    again = Service()
    assert pair(again, parallel=1).answers([TALK, OTHER], True, 64)[0] == ["One.", "Yes."]
    assert len(again.requests) == 1


def test_answers_are_in_the_order_of_the_prompts_and_truncated_ones_are_counted(project):
    texts = iter([completion(" One. ", "length"), completion("Two."), completion("Three.", "length")])
    found = pair(Service(lambda: next(texts)), parallel=1).answers([TALK, OTHER, TOOLS], True, 64)
    assert found == (["One.", "Two.", "Three."], 2)


@pytest.mark.parametrize("text", [None, ""])
def test_the_text_of_an_answer_with_tool_calls_is_the_calls(project, text):
    calls = [Some(to_dict=lambda: {"id": "c1"}), Some(to_dict=lambda: {"id": "c2"})]
    found, _ = pair(Service(lambda: completion(text, calls=calls))).answers([TALK], True, 64)
    assert json.loads(found[0]) == [{"id": "c1"}, {"id": "c2"}]


def test_an_answer_without_content_is_empty(project):
    assert pair(Service(lambda: completion(None))).answers([TALK], True, 64) == ([""], 0)


def test_text_takes_precedence_over_tool_calls(project):
    assert pair(Service(lambda: completion("Hm.", calls=[Some()]))).answers([TALK], True, 64)[0] == ["Hm."]


MINI = Prices("openai.prices", base_input=0.15, base_output=0.6, tuned_input=0.3, tuned_output=1.2)


def test_facts_sum_requests_tokens_and_price(project):
    hosted = pair(Service(lambda: completion(usage=(1_000_000, 500_000))), budget=Budget(MINI))
    hosted.answers([TALK, OTHER], True, 64)
    hosted.answers([TALK], False, 64)
    # gpt-4o-mini, dollars per million tokens in and out: tuned 0.3 and 1.2, base 0.15 and 0.6.
    assert hosted.facts() == {
        "tuned": {"requests": 2, "prompt_tokens": 2_000_000, "answer_tokens": 1_000_000, "price_usd": 1.8},
        "base": {"requests": 1, "prompt_tokens": 1_000_000, "answer_tokens": 500_000, "price_usd": 0.45},
    }


def test_without_token_counts_or_a_known_price_there_is_no_price(project):
    uncounted = pair(Service(lambda: completion(usage=None)))
    uncounted.answers([TALK], True, 64)
    assert uncounted.facts() == {"tuned": {"requests": 1}}
    unknown = pair(Service(), base="house-model", tuned="ft:house")
    unknown.answers([TALK], True, 64)
    assert unknown.facts() == {"tuned": {"requests": 1, "prompt_tokens": 10, "answer_tokens": 3}}


def test_one_answer_without_token_counts_means_no_sums(project):
    answers = iter([completion(), completion(usage=None)])
    hosted = pair(Service(lambda: next(answers)), parallel=1)
    hosted.answers([TALK, OTHER], True, 64)
    assert hosted.facts() == {"tuned": {"requests": 2}}


def chunk(text):
    return Some(choices=[Some(delta=Some(content=text))])


@pytest.mark.parametrize("tuned, model", [(True, "ft:gpt-3.5-turbo-0125:x"), (False, "gpt-3.5-turbo-0125")])
def test_a_streamed_answer_arrives_in_pieces_and_is_returned_whole(project, tuned, model):
    heard = []
    service = Service(lambda: [chunk(""), chunk(" At"), Some(choices=[]), chunk(None), chunk(" 7. ")])
    assert pair(service).say(TALK.prompt, tuned, 9, heard.append) == "At 7."
    assert heard == [" At", " 7. "]
    (request,) = service.requests
    assert request["stream"] is True and request["model"] == model and request["max_tokens"] == 9
    assert [one["content"] for one in request["messages"]] == ["Be kind.", "Pool?"]
    assert not Path(".state").exists()


def test_there_are_no_likelihoods(project):
    assert pair(Service()).likelihoods([TALK], True) is None
    assert pair(Service()).perturbed([TALK], True, 1.0) is None


def test_no_further_requests_are_sent_after_a_failure(project):
    fault = openai.APIConnectionError(request=httpx.Request("POST", URL))
    service = Service()

    def answer():
        if len(service.requests) == 1:
            raise fault
        # The others take a moment, during which the failure is noticed.
        threading.Event().wait(0.002)
        return completion()

    service.answer = answer
    talks = [Conversation((Message("user", f"Room {n}?"), Message("assistant", "Yes."))) for n in range(300)]
    with pytest.raises(UserError):
        pair(service, parallel=1).answers(talks, True, 64)
    assert len(service.requests) < 300
