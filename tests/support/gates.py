"""An outcome of the data gate with every kind of finding, in hostile words."""

from stages.gate.findings import Description, Seen
from stages.gate.page import Outcome

EVIL = "<img src=x onerror=alert(1)>\"'&\x1b[2J\u202eevil\x00\n"


def _rule(severity, advice="do this"):
    return {
        "type": "expect_column_values_to_be_null",
        "kwargs": {"column": "error"},
        "severity": severity,
        "advice": advice,
    }


def _finding(rule, severity, rows, reason="why"):
    return {"rule": rule, "severity": severity, "columns": [], "rows": rows, "reason": reason, "advice": f"fix {EVIL}"}


def outcome(text=EVIL, stopped="2 critical findings", quarantined=3):
    """Four rules, of which one passed and one is invalid; a finding with rows, one without, and the invalid rule."""
    rules = {f"rows {text}": _rule("critical", text), "table": _rule("warning"), "kept": _rule("info", "never mind")}
    found = [
        _finding("broken", "critical", [], f"expected the keys {text}"),
        _finding(f"rows {text}", "critical", list(range(1, 13))),
        _finding("table", "warning", []),
    ]
    described = [
        Description("", [Seen(None, None, f"expected the keys {text}")], 0),
        Description("", [Seen(row, text, f"saw ‹sk•••› {row} {text}") for row in (1, 2)], 10),
        Description("", [Seen(None, None, "what was asked")], 0),
    ]
    return Outcome(rules, found, described, 1200, quarantined, stopped)


ABOUT = {"Source": "desk", "Format": "messages", "SHA-256 of data/raw.csv": "ab" * 32}
