"""Source files for tests, and reading them."""

import csv
import io
import json

from stages.core.paths import RAW
from stages.dataset import formats, readers
from stages.dataset.conversations import Conversation, Message
from stages.params import Source

MESSAGES = Source(url="x", sha256=None, format="messages")


def record(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}, ensure_ascii=False)


def as_csv(*rows):
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def source(shape="messages", **given):
    return Source(url="x", sha256=None, format=shape, **given)


def read(raw, given=MESSAGES, limit=10_000_000):
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_bytes(raw)
    return list(formats.read(readers.rows(RAW, given, limit), given))


TALK = (("user", "Is “breakfast”, served\nat 7?"), ("assistant", "Yes — naïve café, 日本語, \u2019quoted\u2019"))


def talk(*turns):
    return Conversation(tuple(Message(*turn) for turn in turns))


LINES = "".join(
    record(("user", f"Où est l'hôtel {n} ?"), ("assistant", "Près du café, à côté.")) + "\n" for n in range(9)
)


FREE = {"name": "free", "arguments": "{}"}


# Not in the key order of OpenAI's documentation: it is passed through unchanged.
CALL = {"function": FREE, "type": "function", "id": "1"}


KEY = "sk-" + "a1B2" * 8


class Failing:
    """A reader that does not support tool calls."""

    context, special_tokens, control_tokens = 100, ("<s>",), ("<s>",)

    def counts(self, talks):
        return [f"no place for {KEY}" if any(one.tool_calls for one in talk.messages) else 7 for talk in talks]

    def lengths(self, texts):
        return [7] * len(texts)
