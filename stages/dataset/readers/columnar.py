"""Parquet: decoded records, a few at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.cli import UserError
from stages.dataset.readers import limits
from stages.dataset.readers.limits import too_large
from stages.dataset.source import Content

# Rows and bytes that are unpacked at once.
_BATCH = 64
_BATCH_BYTES = 64_000_000


def rows(file: Any, path: Path, limit: int) -> Iterator[tuple[int, Content]]:
    """The records with their numbers.

    Raises:
        UserError: the file is damaged or packed, unpacks to more than `limit` bytes, or has too long a record.
    """
    # Parquet is read from its end, so what is packed has to be unpacked by its owner.
    if not file.seekable():
        raise UserError("a Parquet file must not be gzipped; unpack it first (it is compressed inside)")
    try:
        parquet = pq.ParquetFile(file)
        groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > limit:
            raise too_large(path, limit)
        number = unpacked = 0
        for batch in batches(parquet):
            unpacked += batch.nbytes
            # What the file says of its size counts a value once, however many rows share it.
            if unpacked > limit:
                raise too_large(path, limit)
            _refuse_long(batch, number)
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except pa.ArrowException as error:
        raise UserError(f"the source is a damaged Parquet file: {error}; fetch it again") from None


def batches(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches of so few rows that each is small, even where all rows share the longest value that there can be."""
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        longest = max((group.column(at).total_uncompressed_size for at in range(group.num_columns)), default=0)
        rows = min(_BATCH, max(1, _BATCH_BYTES // max(1, longest)))
        yield from parquet.iter_batches(rows, row_groups=[number])


def _refuse_long(batch: pa.RecordBatch, before: int) -> None:
    """Stop at a record beyond the limit; `before` is the number of rows before the batch."""
    if batch.nbytes <= limits.RECORD_LIMIT:
        return
    for row in range(batch.num_rows):
        sizes = {
            name: column.slice(row, 1).nbytes for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        if sum(sizes.values()) > limits.RECORD_LIMIT:
            longest = max(sizes, key=lambda name: sizes[name])
            raise UserError(
                f"row {before + row + 1} of the source has more than {limits.RECORD_LIMIT:,} bytes in '{longest}'"
            )
