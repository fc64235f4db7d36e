"""Answers of a hosted model are asked for once and kept apart by endpoint, model and request."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace as Some

import httpx
import openai
import pytest

from stages.backends.openai.answers import HostedPair, Kept
from stages.command import UserError
from stages.conversations import Conversation, Message

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
    return HostedPair(service, endpoint, **given | changes)


def test_a_request_has_the_prompt_and_all_that_decides_the_answer(project):
    service = Service()
    tools = [{"type": "function", "function": {"name": "book"}}]
    turns = (Message("assistant", "Hello!", weight=0), Message("user", "Pool?"), Message("assistant", "At 7."))
    assert pair(service).answers([Conversation(turns, tools=tools)], True, 64) == (["Yes."], 0)
    (request,) = service.requests
    assert request == {
        "model": "ft:gpt-3.5-turbo-0125:x",
        # What the model is to answer is no part of it, and only training knows weights.
        "messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Pool?"}],
        "temperature": 0,
        "seed": 42,
        "max_tokens": 64,
        "tools": tools,
    }


def test_the_base_is_asked_as_the_base_and_without_tools_where_there_are_none(project):
    service = Service()
    pair(service).answers([TALK], False, 64)
    assert service.requests[0]["model"] == "gpt-3.5-turbo-0125" and "tools" not in service.requests[0]


@pytest.mark.parametrize("seed, sent", [(0, 0), (2**31 - 1, 2**31 - 1), (2**31, 0), (2**32 - 1, 2**31 - 1)])
def test_a_seed_is_sent_as_the_31_bits_that_the_service_takes(project, seed, sent):
    service = Service()
    pair(service, seed=seed).answers([TALK], True, 64)
    assert service.requests[0]["seed"] == sent


def test_an_equal_request_is_paid_once(project):
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
def test_every_part_of_what_is_asked_keeps_answers_apart(project, change, call):
    service = Service()
    pair(service).answers([TALK], True, 64)
    talk, tuned, most = call
    pair(service, **change).answers([talk], tuned, most)
    assert len(service.requests) == 2


def test_another_reference_to_the_same_prompt_is_the_same_request(project):
    service = Service()
    pair(service).answers([TALK], True, 64)
    pair(service).answers([Conversation((*TALK.prompt, Message("assistant", "At 8.")))], True, 64)
    assert len(service.requests) == 1


def test_the_name_of_the_cache_has_the_endpoint_and_the_model(project):
    Kept("http://a/v1", "m").add({"q": 1}, {"text": "one"})
    assert Kept("http://a/v1", "m").get({"q": 1}) == {"text": "one"}
    assert Kept("http://b/v1", "m").get({"q": 1}) is None and Kept("http://a/v1", "n").get({"q": 1}) is None
    names = [path.name for path in (project / ".state/openai/answers").iterdir()]
    assert len(names) == 1 and len(names[0]) == 32 + len(".jsonl")


def test_the_order_of_a_request_s_keys_does_not_matter(project):
    Kept(URL, "m").add({"a": 1, "b": {"c": 2, "d": 3}}, {"text": "x"})
    assert Kept(URL, "m").get({"b": {"d": 3, "c": 2}, "a": 1}) == {"text": "x"}


def test_a_line_that_a_killed_run_left_open_spoils_no_other(project):
    Kept(URL, "m").add({"q": 1}, {"text": "é"})
    (path,) = (project / ".state/openai/answers").iterdir()
    with path.open("a") as out:
        out.write('\n{"request": "ab')
    Kept(URL, "m").add({"q": 2}, {"text": "two"})
    kept = Kept(URL, "m")
    assert (kept.get({"q": 1}), kept.get({"q": 2})) == ({"text": "é"}, {"text": "two"})


def test_a_failed_request_keeps_the_answers_before_it(project):
    fault = openai.APIConnectionError(request=httpx.Request("POST", URL))
    answers = [completion("One."), fault]

    def answer():
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(UserError, match=f"^{URL}: the connection broke"):
        pair(Service(answer), parallel=1).answers([TALK, OTHER, TOOLS], True, 64)
    assert answers == []
    again = Service()
    assert pair(again, parallel=1).answers([TALK, OTHER], True, 64)[0] == ["One.", "Yes."]
    assert len(again.requests) == 1


def test_answers_come_in_the_order_of_the_prompts_and_cut_ones_are_counted(project):
    texts = iter([completion(" One. ", "length"), completion("Two."), completion("Three.", "length")])
    found = pair(Service(lambda: next(texts)), parallel=1).answers([TALK, OTHER, TOOLS], True, 64)
    assert found == (["One.", "Two.", "Three."], 2)


@pytest.mark.parametrize("text", [None, ""])
def test_an_answer_that_calls_tools_is_its_calls(project, text):
    calls = [Some(to_dict=lambda: {"id": "c1"}), Some(to_dict=lambda: {"id": "c2"})]
    found, _ = pair(Service(lambda: completion(text, calls=calls))).answers([TALK], True, 64)
    assert json.loads(found[0]) == [{"id": "c1"}, {"id": "c2"}]


def test_an_answer_of_nothing_is_an_empty_text(project):
    assert pair(Service(lambda: completion(None))).answers([TALK], True, 64) == ([""], 0)


def test_text_beside_calls_is_the_answer(project):
    assert pair(Service(lambda: completion("Hm.", calls=[Some()]))).answers([TALK], True, 64)[0] == ["Hm."]


def test_facts_add_up_requests_tokens_and_price(project):
    hosted = pair(Service(lambda: completion(usage=(1_000_000, 500_000))), base="gpt-4o-mini", tuned="ft:x")
    hosted.answers([TALK, OTHER], True, 64)
    hosted.answers([TALK], False, 64)
    # gpt-4o-mini: tuned 0.3 and 1.2 dollars for a million tokens in and out, as base 0.15 and 0.6.
    assert hosted.facts() == {
        "tuned": {"requests": 2, "prompt_tokens": 2_000_000, "answer_tokens": 1_000_000, "price_usd": 1.8},
        "base": {"requests": 1, "prompt_tokens": 1_000_000, "answer_tokens": 500_000, "price_usd": 0.45},
    }


def test_without_counted_tokens_or_a_known_price_there_is_none(project):
    uncounted = pair(Service(lambda: completion(usage=None)))
    uncounted.answers([TALK], True, 64)
    assert uncounted.facts() == {"tuned": {"requests": 1}}
    unknown = pair(Service(), base="house-model", tuned="ft:house")
    unknown.answers([TALK], True, 64)
    assert unknown.facts() == {"tuned": {"requests": 1, "prompt_tokens": 10, "answer_tokens": 3}}


def test_one_answer_without_counts_leaves_no_sum_of_the_others(project):
    answers = iter([completion(), completion(usage=None)])
    hosted = pair(Service(lambda: next(answers)), parallel=1)
    hosted.answers([TALK, OTHER], True, 64)
    assert hosted.facts() == {"tuned": {"requests": 2}}


def chunk(text):
    return Some(choices=[Some(delta=Some(content=text))])


@pytest.mark.parametrize("tuned, model", [(True, "ft:gpt-3.5-turbo-0125:x"), (False, "gpt-3.5-turbo-0125")])
def test_a_spoken_answer_comes_in_pieces_and_whole(project, tuned, model):
    heard = []
    service = Service(lambda: [chunk(""), chunk(" At"), Some(choices=[]), chunk(None), chunk(" 7. ")])
    assert pair(service).say(TALK.prompt, tuned, 9, heard.append) == "At 7."
    assert heard == [" At", " 7. "]
    (request,) = service.requests
    assert request["stream"] is True and request["model"] == model and request["max_tokens"] == 9
    assert [one["content"] for one in request["messages"]] == ["Be kind.", "Pool?"]
    assert not Path(".state").exists()


def test_likelihoods_of_given_texts_are_not_to_be_had(project):
    assert pair(Service()).likelihoods([TALK], True) is None
    assert pair(Service()).perturbed([TALK], True, 1.0) is None


def test_after_a_failure_what_is_not_begun_is_not_asked_for(project):
    fault = openai.APIConnectionError(request=httpx.Request("POST", URL))
    service = Service()

    def answer():
        if len(service.requests) == 1:
            raise fault
        # The others take a moment, in which the failure is seen.
        threading.Event().wait(0.002)
        return completion()

    service.answer = answer
    talks = [Conversation((Message("user", f"Room {n}?"), Message("assistant", "Yes."))) for n in range(300)]
    with pytest.raises(UserError):
        pair(service, parallel=1).answers(talks, True, 64)
    assert len(service.requests) < 300
