"""parse: from the source's own format to conversations in OpenAI's chat format, and a row of signals for each record.

One streaming pass. Nothing is repaired and nothing is dropped silently: a record that is not a conversation gets a
row of signals that says why, and the gate (`validate`) stops the run.
"""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages import backends, conversations, files, params, reading, shapes
from stages.command import notice, run
from stages.paths import CONVERSATIONS, RAW, SIGNALS
from stages.signals import SCHEMA, Signaller

CHUNK = 2_000


def main() -> None:
    knobs = params.load()
    data = knobs.data
    signaller = Signaller(backends.chosen(knobs).reader())
    records = shapes.read(reading.rows(RAW, data.chosen, data.max_bytes), data.chosen)
    total = valid = 0
    # disable=None: a bar on a terminal, nothing in a log.
    with (
        files.replacing(CONVERSATIONS) as jsonl,
        files.replacing(SIGNALS) as parquet,
        tqdm(desc="parse", unit="record", disable=None) as bar,
        jsonl.open("wb") as out,
        pq.ParquetWriter(parquet, SCHEMA) as table,
    ):
        for chunk in iter(lambda: list(itertools.islice(records, CHUNK)), []):
            rows = signaller.rows(chunk)
            pairs = zip(chunk, rows, strict=True)
            # The base model may be unable to read what is a conversation in itself.
            good = [one.conversation for one, row in pairs if one.conversation is not None and row["error"] is None]
            out.writelines(conversations.encode(conversation) + b"\n" for conversation in good)
            table.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            total, valid = total + len(chunk), valid + len(good)
            bar.update(len(chunk))
    notice(f"parsed {total} records: {valid} conversations, {total - valid} that are none")


if __name__ == "__main__":
    run(main)
