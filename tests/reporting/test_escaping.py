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
from stages.reporting import charts
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
    kinds = ("page", "markdown", "predictions", "gate", "weights", "slices", "validation_history", "raw", "base")
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
    r"style\|safe|"
    r"(chart|rate_chart|length_chart|comparison_chart|movement\.chart)\|safe|\"[^\"]*\" if .*|"
    r"(whole|pairs|file|talk|texts|answer)\(.*|\"%\.1f\"\|format.*|4 \+ baselines\|length|fewest|unchanged\|length|"
    r"score\.word\[0\]|group\.parameters\|int\|number|(findings|group)\|length.*|(limit|left)\|number|"
    r"(part\.left|found\[1\]|prompt\.omitted)\|number|paths\.gate\.parent\.as_posix\(\)"
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
