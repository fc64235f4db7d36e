"""How much of a file is read or held at once."""

import zlib
from pathlib import Path

from stages.core.cli import UserError

# Longest record that is read, in bytes or characters: a larger one is no conversation. csv's own limit is 131,072.
RECORD_LIMIT = 4_000_000
# More columns than this are no table of conversations, and would take their toll on every row.
COLUMN_LIMIT = 10_000
# Longest JSON document, in bytes: it is held whole.
ARRAY_LIMIT = 64_000_000
# What a file's kind, encoding and delimiter are seen from.
HEAD = 64_000
# What reading a damaged file raises.
DAMAGE = (OSError, EOFError, zlib.error)


def too_large(path: Path, limit: int) -> UserError:
    """The error for a file that unpacks to more than `limit` bytes."""
    return UserError(f"{path} unpacks to more than data.max_mb allows ({limit / 1e6:g} MB)")
