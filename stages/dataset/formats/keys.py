"""One rule for all formats: what becomes of keys and columns that a format does not read.

A key that changes the conversation is never ignored: the record is refused. Any other is metadata: ignored, and named
once with its count, unless the source's `ignore` lists it.
"""

import collections
import json
from collections.abc import Iterable
from typing import Any

import msgspec

from stages.core.cli import notice
from stages.dataset.masking import excerpt
from stages.dataset.source import Source

_PREFERENCES = "preferences are not trained on; docs/conversions.md#preferences keeps the chosen answers"
_MEDIA = "only text is trained on; docs/conversions.md#images-and-sound leaves such records out"
_TOOLS = "formats messages and sharegpt read it beside a list of messages"
_SYSTEM = "declare its column in columns, as system"
_HISTORY = "format alpaca reads it, and so does format columns with history in columns"
# Keys that change a conversation, where a format does not read them, with what to do.
CHANGING = {
    "history": _HISTORY,
    **dict.fromkeys(("system", "system_prompt", "system_instruction", "systemInstruction"), _SYSTEM),
    **dict.fromkeys(("tools", "functions", "function_call", "tool_calls"), _TOOLS),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_responses"), _PREFERENCES),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _MEDIA),
    "refusal": "move its text to content",
}
# In sets of single answers with a verdict each, as KTO takes them.
_UNDESIRED = "false says that the answer is a bad one; leave such records out, as `jq -c 'select(.label)'` does"
# Texts that say as much as an empty list.
_NOTHING = ("", "[]", "{}", "null", "None", "nan", "NaN")
# Different names that are counted, named, and characters of a name that are shown.
_COUNTED, _NAMED = 1_000, 20


class Keys:
    """What a source's unread keys were, by name."""

    def __init__(self, source: Source) -> None:
        self._source, self._declared = source, frozenset(source.ignore)
        self._counts = collections.Counter[str]()
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a line for the report."""
        self._notes.append(text)

    def leave(self, extras: Iterable[tuple[str, Any]], within: str = "") -> None:
        """Leave out the keys of a record, or of what is called `within` in it; empty ones say nothing.

        Raises:
            msgspec.ValidationError: one of them changes the conversation.
        """
        for name in self.refuse(extras):
            full = f"{within}{name}"
            if name not in self._declared and (full in self._counts or len(self._counts) < _COUNTED):
                self._counts[full] += 1

    def refuse(self, extras: Iterable[tuple[str, Any]]) -> list[str]:
        """The names of keys that say something.

        Raises:
            msgspec.ValidationError: one of them changes the conversation.
        """
        names = []
        for name, value in extras:
            if _says_nothing(value):
                continue
            advice = _UNDESIRED if name == "label" and value is False else CHANGING.get(name)
            if advice:
                raise msgspec.ValidationError(
                    f"The key `{name}` changes the conversation and is never ignored: {advice}"
                )
            names.append(name)
        return names

    def report(self) -> None:
        """Name what was left out, and how to declare it."""
        for text in self._notes:
            notice(text)
        if not self._counts:
            return
        found = self._counts.most_common()
        shown = [f"{excerpt(name) or 'a column without a name'} ({count:,})" for name, count in found[:_NAMED]]
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        names = ", ".join(
            json.dumps(excerpt(name.rpartition(".")[2]), ensure_ascii=False) for name, _ in found[:_NAMED]
        )
        notice(
            f"ignored as metadata, with the number of records: {', '.join(shown)}{more}; if that is right, declare it:"
            f" {self._source.key('ignore')}: [{names}]"
        )


def _says_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in _NOTHING
    return value is None or value == [] or value == {} or value != value
