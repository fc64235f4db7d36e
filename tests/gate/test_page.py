"""The gate's page: what it says, that it needs no other file, and that text from outside stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from justhtml import JustHTML

from stages import validate
from stages.core.cli import UserError
from stages.core.paths import DATA_DOCS, QUARANTINE, VALIDATION_PAGE
from stages.gate import page
from stages.gate.findings import Description, Seen
from tests.conftest import TALK, good_records
from tests.support.gates import ABOUT, outcome

KEY = "sk-" + "a1B2" * 8


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def links(self):
        return [value for tag, name, value in self.values if name in ("href", "src")]


def dead(path):
    """Links of a page to places of this folder that do not exist."""
    parsed = Parsed(path.read_text(encoding="utf-8"))
    for link in parsed.links():
        file, _, part = link.partition("#")
        if re.match(r"https?:|data:", link):
            continue
        target = path.parent / file if file else path
        if not target.exists() or (part and not re.search(rf'id="?{part}\b', target.read_text(encoding="utf-8"))):
            yield link


def test_the_page_says_what_the_terminal_says(gate, capsys):
    records = [*good_records(8), '{"messages": 5}', (TALK % 9).replace("At 7", f"Use {KEY}")]
    with pytest.raises(UserError) as error:
        gate([*records, *[(TALK % n).replace("At 7.", "open until") for n in range(20, 30)]])
    parsed = Parsed(VALIDATION_PAGE.read_text(encoding="utf-8"))
    printed = [*str(error.value).splitlines(), *capsys.readouterr().out.splitlines()]
    places = [re.fullmatch(r" +row (\d+), column (\w+): (.*)", line) for line in printed]
    assert sum(place is not None for place in places) >= 7
    for place in filter(None, places):
        assert f"{place[1]} {place[2]} {' '.join(place[3].split())}" in parsed.text
    assert "Stopped: 2 critical findings." in parsed.text
    assert "parses critical 1 row: fix the record in the source" in parsed.text
    # Ten responses are unfinished, of which the terminal names five.
    assert "unfinished_response warning 10 rows:" in parsed.text and "And 5 further rows." in parsed.text
    assert KEY not in parsed.text and "sk•••" in parsed.text
    assert "expect_column_values_to_be_null: column error critical 1 row fix the record in the source" in parsed.text
    assert re.search(r"card_numbers .* critical passed a payment card", parsed.text)
    assert list(dead(VALIDATION_PAGE)) == [] == list(dead(DATA_DOCS))


def test_rows_that_are_set_aside_are_counted_and_linked(gate):
    gate([*good_records(20), "{}", "[]"], on_error="quarantine", max_quarantined=0.5)
    text = VALIDATION_PAGE.read_text(encoding="utf-8")
    assert "Passed: 22 rows, 2 of them quarantined, 5 findings." in text and "../../data/quarantine.csv" in text
    assert list(dead(VALIDATION_PAGE)) == [] and QUARANTINE.exists()
    with pytest.raises(UserError):
        gate([*good_records(2), "{}", "[]", "5"], on_error="quarantine", max_quarantined=0.1)
    text = VALIDATION_PAGE.read_text(encoding="utf-8")
    assert "Stopped: 3 of 5 rows would be quarantined, more than validate.max_quarantined 0.1 allows." in text


def test_without_findings_the_page_says_so_and_links_no_quarantine(gate):
    gate([line.replace("Pool", word) for line, word in zip(good_records(3), ("Pool", "Sauna", "Garage"), strict=True)])
    text = VALIDATION_PAGE.read_text(encoding="utf-8")
    assert "Passed: 3 rows, no findings." in text and "quarantine.csv" not in text
    assert Parsed(text).text.count(" passed ") == 40


def test_the_terminal_names_the_page(gate, capsys):
    gate([*good_records(5), (TALK % 9).replace("At 7.", "open until")])
    assert "reports/validation/index.html shows all findings\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verdict, changes",
    [
        ("Stopped: it.", {"stopped": "it"}),
        ("Passed: 1,200 rows, 3 of them quarantined, 3 findings.", {"stopped": None}),
        ("Passed: 1,200 rows, 3 findings.", {"stopped": None, "quarantined": 0}),
    ],
)
def test_the_verdict(verdict, changes):
    assert page.verdict(outcome(**changes)) == verdict


def test_any_text_stays_text():
    text = page.render(outcome(), ABOUT)
    assert "<img" not in text and "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;" in text
    assert not [sign for sign in text if not sign.isprintable() and sign != "\n"]
    assert r"\x1b[2J\u202eevil\x00\n" in text


def test_the_page_loads_nothing_and_is_valid_and_accessible():
    text = page.render(outcome(), ABOUT)
    parsed = Parsed(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    assert sorted(link for link in parsed.links() if not link.startswith("#")) == [
        "../../data/quarantine.csv",
        "data_docs.html",
    ]
    JustHTML(text, strict=True, sanitize=False)
    assert ("html", "lang", "en") in parsed.values
    assert parsed.tags.count("th") == sum((tag, name) == ("th", "scope") for tag, name, _ in parsed.values)
    levels = [int(tag[1]) for tag in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 == levels.count(1)
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_long_texts_and_long_suites_are_cut_and_say_so():
    long = "x" * 100_000
    short = page.render(outcome(long), ABOUT)
    assert len(short) < 30_000 and "x…" in short
    one = outcome()
    rules = {f"rule {n}": one.rules["table"] for n in range(600)}
    found = [{**one.found[2], "rule": name} for name in rules]
    described = [Description("", [Seen(None, None, "asked")], 0)] * 600
    text = Parsed(page.render(one._replace(rules=rules, found=found, described=described), ABOUT)).text
    assert "And 100 further rules." in text and "And 100 further findings." in text


def test_the_page_is_written_where_the_suite_is_broken_too(gate):
    with pytest.raises(UserError):
        gate(good_records(5), edit=("column: n_over", "column: n_ovr"))
    text = Parsed(VALIDATION_PAGE.read_text(encoding="utf-8")).text
    assert "within_context critical fix this rule in data/expectations.yaml" in text
    assert "the signals have no column &#39;n_ovr&#39;" in text or "the signals have no column 'n_ovr'" in text


def test_a_label_is_shown_to_the_terminal_as_text_and_without_secrets(gate, capsys):
    rows = [["topic", "chat"], *([f"\x1b[2J {KEY}", record] for record in good_records(5))]
    edit = ("    value_set:\n    - ''\n", "    value_set:\n    - ''\n    - \"\\e[2J " + KEY + '"\n')
    with pytest.raises(UserError):
        gate(rows, edit=edit, form="messages\n      label: topic")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and KEY not in shown and "column topic: label: " in shown


def test_great_expectations_page_is_beside_it_without_dead_links(gate):
    gate(good_records(5))
    text = DATA_DOCS.read_text(encoding="utf-8")
    assert "<html" in text.lower() and "../" not in text and "index.html#rules" in text
    assert validate.DATA_DOCS.parent == VALIDATION_PAGE.parent == Path("reports/validation")
