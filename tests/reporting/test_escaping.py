"""Text from data, models and settings stays text in the reports, wherever a template shows it."""

import re
from pathlib import Path

import pytest
from jinja2 import DictLoader

from stages import report
from stages.core.paths import HTML
from stages.metrics.facts import Fact
from stages.metrics.registry import Measure
from stages.report import Row
from stages.reporting import charts, templates
from stages.reporting.examples import Answer, Answered, Ranking, Score, Turn

EVIL = "<img src=x>\"'&|[l](http://evil.example) @someone #12"
STAGES = Path(report.__file__).parent


def row(text):
    one = Measure(text, text)
    return Row(text, text, one, [one, None], one, one, text)


def talk(text, label, title="Another?"):
    prompt = (Turn(text, text), Turn(text, text)) if title != text else (Turn(text, text),)
    number = text if label == text else "1"
    scores = (Score(label, number, number, text, text),)
    # The text is the invented fact, or it is before one.
    end = len(text)
    invented = (
        Answer(text, (Fact("name", text, 0, end),)),
        Answer(f"{text} so", (Fact("name", "so", end + 1, end + 3),)),
    )
    return Answered(number, title, prompt, text, *invented, scores, 1.0, False)


def paths(text):
    kinds = ("page", "markdown", "predictions", "data_docs", "weights", "slices", "validation_history", "raw", "base")
    return dict.fromkeys((*kinds, "tuned"), HTML.parent / text.replace("/", ""))


def facts(text, plain):
    """Everything that the templates show; `plain` is for what can be no text from outside (see `report.read_facts`)."""
    group = {"lr": text, "weight_decay": text, "layers": text, "parameters": "5", "example": text}
    split = {"conversations": plain, "tokens": plain}
    nearest = {"median": plain, "p90": plain, "max": plain}
    moved = {"module": text, "mean": plain, "most": plain, "where": plain}
    finding = {"rule": text, "severity": text, "rows": plain, "advice": text}
    where, label = paths(plain), "chrF" if plain == "1" else text
    return {
        "verdict": text,
        "confidence": plain,
        "groups_of_rows": [(plain, [row(plain)])],
        "baselines": [text],
        "comparison_chart": "<svg>",
        "model": text,
        "source": text,
        "date": plain,
        "slices": [{"label": text, "conversations": plain, "rows": [row(plain)]}],
        "slices_left": plain,
        "history": [{"step": plain, "epoch": plain, "validation_loss": plain}],
        "chart": "<svg>",
        "rate_chart": "<svg>",
        "length_chart": "<svg>",
        "groups": [group, group],
        "movement": {"table": [moved], "chart": "<svg>", "left": plain},
        "train": {text: text},
        "counts": {text: text},
        "changed": {text: text},
        "unchanged": {text: text},
        "run": {text: text},
        "splits": {text: split, "train": split, "overlap": plain, "nearest": nearest, "changed_split": plain},
        "split_names": [text],
        "validation": {"rows": plain, "rules": plain, "quarantined": plain, "findings": [finding]},
        "lengths": {text: [plain]},
        "longest": 10**6,
        "system": text,
        "count": plain,
        "answers": Ranking([(plain, talk(text, label))], [talk(text, label, text), *[talk(text, label)] * 60]),
        "checksums": {where["raw"].as_posix(): text},
        "paths": where,
        "object": plain,
    }


def review(text):
    return {
        "old": text,
        "new": text,
        "warning": text,
        "conversations": 2,
        "confidence": "95%",
        "verdict": text,
        "runs": [(text, text)],
        "verdicts": {"better": "loss"},
        "rows": [{"label": "loss", "old": "1", "new": "2", "difference": "1", "word": "worse"}],
        "gate": [{"label": "loss", "allowed": "0.1", "outcome": "fails"}],
        "params": [(text, text, text)],
        "sizes": [(text, text, text)],
        "numbers": [(text, text, text)],
        "data": {"files": ["data/raw.csv"], "rows": None, "missing": [text, text]},
        "answers": [{"question": text, "reference": text, "old": text, "new": text, "chrf": "1 → 2"}],
        "differing": 3,
    }


def template(name):
    (path,) = STAGES.rglob(name)
    return path.read_text(encoding="utf-8")


def rendered(name, values, source=None, seen=None):
    environment = report._environment()
    environment.loader = DictLoader({name: source or template(name)})
    environment.filters["seen"] = seen
    return environment.get_template(name).render(values, shown=50, limit=2000, most=50)


def outputs(name):
    """A template's source, and each of its outputs as a match whose first group is the expression."""
    source = template(name)
    return source, list(re.finditer(r"\{\{-?(.*?)-?\}\}", source, re.DOTALL))


def unseen(name, values, chosen):
    """Outputs of a template, of those `chosen`, that never have a text with a tag in it; and how many are chosen."""
    source, found = outputs(name)
    texts, parts, done, shown = [], [], 0, set()

    def seen(value, number):
        if "<img" in str(value):
            shown.add(number)
        return value

    for output in found:
        if chosen(text := output[1].strip()):
            # What comes before the escape is looked at.
            before, cell, _ = text.partition("|cell")
            parts += [source[done : output.start(1)], f" ({before})|seen({len(texts)}){cell} "]
            done = output.end(1)
            texts.append(text)
    rendered(name, values, "".join([*parts, source[done:]]), seen)
    return [text for number, text in enumerate(texts) if number not in shown], len(texts)


# What gives no text from outside: the project's own charts, what a macro made of it, numbers, words of the template.
SAFE = re.compile(
    r"(chart|rate_chart|length_chart|comparison_chart|movement\.chart)\|safe|\"[^\"]*\" if .*|"
    r"(whole|pairs|file|talk|texts|answer)\(.*|\"%\.1f\"\|format.*|4 \+ baselines\|length|fewest|unchanged\|length|"
    r"score\.word\[0\]|group\.parameters\|int\|number|(findings|group)\|length.*|(limit|left)\|number|"
    r"(part\.left|found\[1\]|prompt\.omitted)\|number|paths\.data_docs\.parent\.as_posix\(\)"
)


# What is written without an escape: numbers, the project's own names, words and paths, and what macros made.
OWN = re.compile(
    r"\"[^\"]*\" if .*|.*\|number|.*\|length( or \"no\")?|paths\.[\w.]+\.as_posix\(\)|(fold|invented|table)\(.*|"
    r"row\.\w+(\.(value|interval))?|one\.value if one else \"\"|score\.(base|tuned)|\"These are the .*|"
    r"one\.(interval|line|mean|most|value|where|allowed|chrf|label|outcome)|"
    r"confidence|most|fewest|title|heading|name|names|word|splits\.overlap or \"No\""
)


def test_the_page_shows_any_text_as_text():
    # Whatever a value comes from, the page escapes it.
    page = rendered("report.html.jinja", facts(EVIL, EVIL))
    assert "&lt;img src=x&gt;&#34;&#39;&amp;" in page and "<img" not in page
    # In attributes the quote is what would end them.
    assert 'src=x>"' not in page


def test_every_output_of_the_page_is_tried_with_such_a_text():
    missed, count = unseen("report.html.jinja", facts(EVIL, EVIL), lambda text: not SAFE.fullmatch(text))
    assert missed == [] and count > 60


MARKDOWN = {"report.md.jinja": facts(EVIL, "1"), "review.md.jinja": review(EVIL)}


@pytest.mark.parametrize("name", MARKDOWN)
def test_the_markdown_shows_any_text_as_text(name):
    text = rendered(name, MARKDOWN[name])
    assert "&lt;img src=x&gt;" in text and "@<!-- -->someone" in text and "#<!-- -->12" in text
    assert "<img" not in text and "@someone" not in text and not re.search(r"(?<!\\)\]\(", text)


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_cell_of_the_markdown_is_tried_with_such_a_text(name):
    missed, count = unseen(name, MARKDOWN[name], lambda text: "|cell" in text)
    assert set(missed) <= {"path.as_posix()|cell"} and count >= 15


@pytest.mark.parametrize("name", MARKDOWN)
def test_what_the_markdown_shows_without_an_escape_is_a_closed_list(name):
    """A new output is escaped, or it is known that no text from outside is in it."""
    texts = {output[1].strip() for output in outputs(name)[1]}
    assert {text for text in texts if "|cell" not in text and not OWN.fullmatch(text)} == set()


def test_charts_show_names_of_modules_as_text():
    for chart in (charts.movement([EVIL], [0, 1], [[0.1, 0.2]]), charts.lengths({"reference": [1], EVIL: [2, 3]})):
        assert "<img" not in chart and "<svg" in chart


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a|b", r"a\|b"),
        ("`c` *d* _e_ ~f~ $g$", r"\`c\` \*d\* \_e\_ \~f\~ \$g\$"),
        ("[l](u) ![i](u)", r"\[l\](u) !\[i\](u)"),
        ("a\\b", r"a\\b"),
        ("<b> & >", "&lt;b&gt; &amp; &gt;"),
        ("\"q\" 'q'", "\"q\" 'q'"),
        ("@me a@b", "@<!-- -->me a@<!-- -->b"),
        ("#12 # 12", "#<!-- -->12 # 12"),
        ("GH-12 gh-12 GH-x", "GH<!-- -->-12 gh<!-- -->-12 GH-x"),
        ("http://a www.a", "http:<!-- -->//a www<!-- -->.a"),
        (":tada: 10:30", ":<!-- -->tada: 10:30"),
        ("a" * 40, "aaa<!-- -->" + "a" * 37),
        ("a" * 39, "a" * 39),
        ("A" * 40, "AAA<!-- -->" + "A" * 37),
        (" a \n b \r\n\n c ", "a<br>b<br><br>c"),
        ("a\0b", "a\ufffdb"),
        ("", "(empty)"),
        (" \n", "(empty)"),
        (1234.5678, "1235"),
        (None, "none"),
    ],
)
def test_a_cell_of_markdown(text, shown):
    assert templates.cell(text) == shown


@pytest.mark.parametrize(
    "value, text",
    [
        (True, "True"),
        (False, "False"),
        (None, "none"),
        ("text", "text"),
        (0, "0"),
        (1234567, "1,234,567"),
        (-1234, "-1,234"),
        (9999.4, "9999"),
        (9_999.9, "1e+04"),
        (10_000.0, "10,000"),
        (-10_000.4, "-10,000"),
        (12_345.6, "12,346"),
        (0.123456, "0.1235"),
        (1.0, "1"),
    ],
)
def test_a_number_as_text(value, text):
    assert templates.number(value) == text


@pytest.mark.parametrize(
    "text, limit, shown", [("abc", 3, "abc"), ("abcd", 3, "abc…"), ("ab cd", 3, "ab…"), ("", 0, ""), ("a", 0, "…")]
)
def test_a_text_is_clipped(text, limit, shown):
    assert templates.clip(text, limit) == shown


def test_the_first_size_that_fits_is_taken():
    template = templates.environment(STAGES).from_string("{{ 'x' * n }}{{ head }}")
    sizes = [{"n": 9}, {"n": 5}, {"n": 2}]
    for limit, text in ((10, "x" * 9 + "h"), (9, "x" * 5 + "h"), (6, "x" * 5 + "h"), (5, "xxh"), (3, "xxh")):
        assert templates.fitted(template, {"head": "h"}, sizes, limit) == text


def test_where_no_size_fits_whole_lines_are_kept_and_a_line_says_so():
    template = templates.environment(STAGES).from_string("{% for _ in range(n) %}0123456789\n{% endfor %}")
    rest = "\nThe rest does not fit into one comment on GitHub.\n"
    for spare, lines in ((11, 1), (21, 1), (22, 2), (33, 3)):
        limit = len(rest) + spare
        text = templates.fitted(template, {}, [{"n": 100}, {"n": 50}], limit)
        assert text == "0123456789\n" * lines + rest and len(text) <= limit


def test_a_template_with_an_unknown_name_is_an_error_and_not_a_gap():
    with pytest.raises(Exception, match="'nothing' is undefined"):
        templates.environment(STAGES).from_string("{{ nothing }}").render()
