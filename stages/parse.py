"""parse: from the source's own format to conversations in OpenAI's chat format, and a row of signals for each record.

One streaming pass. Nothing is repaired and nothing is dropped silently: a record that is not a conversation gets a
row of signals that says why, and the gate (`validate`) stops the run.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages import backends, params
from stages.core import files
from stages.core.cli import notice, run
from stages.core.paths import CONVERSATIONS, RAW, SIGNALS
from stages.dataset import conversations, formats, readers
from stages.dataset.signals import SCHEMA, Signaller

# What is worked on at once, in records and in bytes of their conversations; the signals of a byte take about 100 bytes.
CHUNK = 2_000
_CHUNK_BYTES = 2_000_000
# Records, each with its line of JSONL where it is a conversation.
_Chunk = list[tuple[formats.Record, bytes]]


def main() -> None:
    knobs = params.load()
    data = knobs.data
    signaller = Signaller(backends.reader(knobs).load())
    records = formats.read(readers.rows(RAW, data.chosen, data.max_bytes), data.chosen)
    total = valid = 0
    with files.replacing(CONVERSATIONS) as jsonl, files.replacing(SIGNALS) as parquet:
        # disable=None: a bar on a terminal, nothing in a log.
        with (
            tqdm(desc="parse", unit="record", disable=None) as bar,
            jsonl.open("wb") as out,
            pq.ParquetWriter(parquet, SCHEMA) as table,
        ):
            for chunk in chunks(records):
                rows = signaller.rows([record for record, _ in chunk])
                # The base model may be unable to read what is a conversation in itself.
                lines = [line for (_, line), row in zip(chunk, rows, strict=True) if line and row["error"] is None]
                out.writelines(lines)
                table.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                total, valid = total + len(chunk), valid + len(lines)
                bar.update(len(chunk))
        shared = signaller.compare_without_shared(parquet, jsonl)
    notice(f"{total} records: {valid} valid, {total - valid} invalid")
    if shared:
        notice(f"{shared} prompts share a long text, such as an instruction; they are compared without it")


def chunks(records: Iterable[formats.Record]) -> Iterator[_Chunk]:
    """Records in chunks of bounded size; a longer conversation is alone in its chunk."""
    chunk, size = _Chunk(), 0
    for record in records:
        line = conversations.encode(record.conversation) + b"\n" if record.conversation is not None else b""
        if chunk and (len(chunk) == CHUNK or size + len(line) > _CHUNK_BYTES):
            yield chunk
            chunk, size = _Chunk(), 0
        chunk.append((record, line))
        size += len(line)
    if chunk:
        yield chunk


if __name__ == "__main__":
    run(main)
