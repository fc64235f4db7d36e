"""The price of a job, and what the service would reject, are checked before the upload."""

import json

import pytest

from stages import finetune, params
from stages.backends.openai.common import prices
from stages.backends.openai.reader import HostedChat
from stages.backends.openai.training import preflight
from stages.core.cli import UserError
from stages.core.paths import EVAL_RUN, RUN
from stages.dataset.conversations import Conversation, Message
from tests.conftest import set_params
from tests.support.hosted import MODEL, run_all, talk, write_splits


def test_a_price_above_the_limit_stops_before_the_upload(hosted):
    set_params(openai__max_cost_usd=0.0001)
    with pytest.raises(UserError, match=r"openai.max_cost_usd: .* above the limit of 0.0001.*Nothing was uploaded"):
        finetune.main()
    assert not hosted.files and not hosted.jobs


def test_a_job_that_is_already_paid_is_not_stopped_by_the_limit(hosted):
    finetune.main()
    set_params(openai__max_cost_usd=0)
    finetune.main()
    assert len(hosted.jobs) == 1


def test_an_unknown_price_needs_a_limit_of_null(hosted, monkeypatch):
    # It would be free on this machine.
    monkeypatch.setattr(prices, "is_here", lambda url: False)
    hosted.models["house-model"] = 1
    set_params(openai__model="house-model")
    nothing = dict.fromkeys(params.load().openai.prices.model_dump())
    set_params(openai__prices=nothing, openai__max_cost_usd=None)
    finetune.main()
    assert json.loads(RUN.read_text())["price_usd"] is None


@pytest.mark.parametrize(
    "epochs, examples, expected",
    # 100 / 10 examples = 10 epochs; at most 25; normally 3; 25,000 / 20,000 = 1.
    [(4, 10, 4), ("auto", 10, 10), ("auto", 2, 25), ("auto", 100, 3), ("auto", 20_000, 1)],
)
def test_epochs_chosen_by_the_service_are_estimated(epochs, examples, expected):
    assert prices.estimated_epochs(epochs, examples) == expected


def test_tokens_are_counted_as_in_the_cookbook():
    # In cl100k_base (encoded separately): "Be kind." 3, "Pool?" 2, "At 7." 4 tokens. Each role is one token, and there
    # are three per message and three for the reply.
    talk = Conversation((Message("system", "Be kind."), Message("user", "Pool?"), Message("assistant", "At 7.")))
    assert HostedChat(MODEL).count(talk) == 3 * (3 + 1) + 3 + 2 + 4 + 3
    assert HostedChat(MODEL).counts([Conversation(())]) == [0]
    assert HostedChat(MODEL).context == 16_385


TOOL = {"type": "function", "function": {"name": "book"}}


def call(name="book", **changes):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}, **changes}


def with_call(tool_call, tools=(TOOL,), answers="c1"):
    turns = (
        Message("user", "Book it."),
        Message("assistant", tool_calls=[tool_call]),
        Message("tool", "done", tool_call_id=answers),
        Message("assistant", "It is booked."),
    )
    return Conversation(turns, tools=list(tools))


@pytest.mark.parametrize(
    "bad, fault",
    [
        (Conversation((Message("user", "a"),)), "the last message is not the assistant's"),
        (
            Conversation((Message("user", "a", weight=0), Message("assistant", "b"))),
            r"message 1 \(user\): only assistant",
        ),
        (Conversation((Message("user", "a"), Message("assistant", "b", weight=0))), "there is nothing to learn"),
        (Conversation((Message("user", "a <|im_end|>"), Message("assistant", "b"))), "a special token"),
        (Conversation((Message("user", "word " * 20_000), Message("assistant", "b"))), "exceed the 16385 that"),
        (with_call(call("cancel")), "the called tool 'cancel' is not among"),
        (with_call(call(id=None)), "needs an id"),
        (with_call(call(id=["c1"])), "needs an id"),
        (with_call(call(["book"])), "needs an id"),
        (with_call(call(), tools=[{"type": "function", "function": {"name": ["book"]}}]), "a tool is not of the form"),
        (Conversation((Message("user", "a"), Message("assistant"))), "neither content nor tool calls"),
        (with_call(call(), answers="c2"), "tool_call_id 'c2' does not match an earlier call"),
        (with_call(call(), tools=[{"name": "book"}]), "a tool is not of the form"),
    ],
)
def test_what_the_service_would_reject_is_reported_with_its_row(hosted, bad, fault):
    write_splits(train=[*(talk(n) for n in range(11)), bad], validation=[talk(50)], test=[talk(51)])
    with pytest.raises(UserError, match=f"row 13: .*{fault}"):
        finetune.main()
    assert not hosted.files


def test_a_valid_tool_call_is_accepted(hosted):
    good = [*(talk(n) for n in range(10)), with_call(call())]
    write_splits(train=good, validation=[talk(50)], test=[talk(51)])
    assert preflight.check(params.load(), HostedChat(MODEL))[0] == 11
    finetune.main()


def test_nine_conversations_are_too_few(hosted):
    write_splits(train=[talk(n) for n in range(9)], validation=[talk(50)], test=[talk(51)])
    with pytest.raises(UserError, match="9 conversations; the service requires at least 10"):
        finetune.main()


def test_usage_is_absent_if_the_service_does_not_report_it(hosted):
    hosted.counts_tokens = False
    run_all()
    facts = json.loads(EVAL_RUN.read_text())
    assert facts["base"] == {"requests": 3} and facts["tuned"] == {"requests": 3}
