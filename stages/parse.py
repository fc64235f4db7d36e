"""parse: from the source's own format to conversations in OpenAI's chat format, and a row of signals for each record.

One streaming pass. Nothing is repaired and nothing is dropped silently: a record that is not a conversation gets a
row of signals that says why, and the gate (`validate`) stops the run.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages import backends, conversations, files, params, reading, shapes
from stages.command import notice, run
from stages.paths import CONVERSATIONS, RAW, SIGNALS
from stages.signals import SCHEMA, Signaller

# What is worked on at once, in records and in bytes of their conversations; the signals of a byte take about 100 bytes.
CHUNK = 2_000
_CHUNK_BYTES = 2_000_000
# Records, and the lines of those that are conversations.
_Chunk = tuple[list[shapes.Record], list[bytes]]


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
        for chunk, lines in chunks(records):
            out.writelines(lines)
            table.write_table(pa.Table.from_pylist(signaller.rows(chunk), schema=SCHEMA))
            total, valid = total + len(chunk), valid + len(lines)
            bar.update(len(chunk))
    notice(f"parsed {total} records: {valid} conversations, {total - valid} that are none")


def chunks(records: Iterable[shapes.Record]) -> Iterator[_Chunk]:
    """Records in chunks of bounded size; a conversation that is longer is alone in its chunk."""
    chunk, lines, size = list[shapes.Record](), list[bytes](), 0
    for record in records:
        line = conversations.encode(record.conversation) + b"\n" if record.conversation is not None else b""
        if chunk and (len(chunk) == CHUNK or size + len(line) > _CHUNK_BYTES):
            yield chunk, lines
            chunk, lines, size = [], [], 0
        chunk.append(record)
        if line:
            lines.append(line)
        size += len(line)
    if chunk:
        yield chunk, lines


if __name__ == "__main__":
    run(main)
