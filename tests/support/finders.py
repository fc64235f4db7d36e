"""How well the gate's finders do on labelled cells, as the table in docs/data-gate.md.

    python -m tests.support.finders

It writes the table. The cells are our own. Those that are held out were written before the finders were tried on any,
and no finder was changed because of them.
"""

import json
from collections import Counter
from pathlib import Path

from stages.dataset.conversations import Conversation, Message
from stages.dataset.inspector import Inspector

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "tests/dataset/labelled_cells.jsonl"
PAGE = ROOT / "docs/data-gate.md"
FINDERS = (
    *("card", "api_key", "email", "phone", "mojibake", "control", "replacement"),
    *("template", "placeholder", "no_value", "special_token", "token_name", "unfinished"),
)
PARTS = ("own", "held out")
_BEGIN, _END = "<!-- Written by `python -m tests.support.finders`. -->\n", "<!-- End. -->\n"
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_INSPECTOR = Inspector(_CONTROL, [*_CONTROL, "<filename>", "<repo_name>", "<file_sep>"])
_HEAD = """| finder | cells with it | precision | recall | held out: cells with it | precision | recall |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def cells():
    """The labelled cells: `part`, `has` (names of finders) and `text`; in the file a ¦ hides keys from scanners."""
    rows = [json.loads(line) for line in CELLS.read_text(encoding="utf-8").splitlines()]
    return [{**row, "text": row["text"].replace("¦", "")} for row in rows]


def found(text):
    """Names of the finders that find something in an answer with this text."""
    faults = _INSPECTOR.faults(Conversation((Message("user", "Tell me about it."), Message("assistant", text))))
    return set(faults) & set(FINDERS)


def counts(part):
    """For each finder how many cells have what it looks for (`has`), how many it names (`names`), and both (`both`)."""
    counted = {name: Counter() for name in FINDERS}
    for cell in cells():
        if cell["part"] == part:
            has, names = set(cell["has"]), found(cell["text"])
            for name in FINDERS:
                counted[name].update({"has": name in has, "names": name in names, "both": name in has & names})
    return counted


def precision_and_recall(counted):
    """Share of the named cells that have it, and of the cells that have it that are named."""
    return counted["both"] / max(1, counted["names"]), counted["both"] / max(1, counted["has"])


def table():
    """The table in Markdown."""
    each = {part: counts(part) for part in PARTS}
    lines = []
    for name in FINDERS:
        figures = [(one[name]["has"], *precision_and_recall(one[name])) for one in each.values()]
        shown = " | ".join(f"{has} | {precision:.2f} | {recall:.2f}" for has, precision, recall in figures)
        lines.append(f"| `{name}` | {shown} |\n")
    parts = Counter(cell["part"] for cell in cells())
    return f"{parts.total()} cells, of which {parts['held out']} are held out:\n\n{_HEAD}{''.join(lines)}"


def page(text):
    """The page with the table of today."""
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + table() + _END + rest.split(_END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
