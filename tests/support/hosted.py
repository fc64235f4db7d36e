"""Data for hosted trainings, and the commands that run them."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq

from stages import base, evaluate, finetune
from stages.core import files
from stages.core.paths import SIGNALS, SPLIT_REPORT, SPLITS, TEST_LABELS
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message

MODEL = "gpt-3.5-turbo-0125"


def talk(number):
    question, answer = f"Where is room {number}?", f"Room {number} is on floor {number // 10}, to the left."
    return Conversation((Message("system", "Be kind."), Message("user", question), Message("assistant", answer)))


def write_splits(**talks):
    SPLITS["train"].parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, path in SPLITS.items():
        conversations.write_jsonl(path, talks[name])
        rows += talks[name]
    hashes = [conversations.identity(conversations.encode(one)) for one in rows]
    SIGNALS.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"row": list(range(2, len(rows) + 2)), "conversation_hash": hashes}), SIGNALS)
    files.write_json(SPLIT_REPORT, {name: {"conversations": len(talks[name]), "tokens": 1} for name in SPLITS})
    files.write_json(TEST_LABELS, [])


def run_all():
    base.main()
    finetune.main()
    evaluate.main()


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
