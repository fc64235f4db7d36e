"""The report page: valid, accessible, self-contained, and of bounded size."""

import json
import re
import subprocess
from html.parser import HTMLParser

import pytest
from justhtml import JustHTML

from stages import report
from stages.core import files
from tests.support.history import git
from tests.support.reports import HOSTILE, outputs, prediction, talk, with_all_parts, write_inputs


def test_model_text_stays_text(project):
    write_inputs(predictions=[prediction(HOSTILE)])
    page, markdown = outputs()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<script" not in markdown and "&lt;script&gt;" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| A good answer"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    assert "<br>b \\`c\\`" in row and "![i]" not in row and "@someone" not in row and "#12" not in row


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.values = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, name, value) for name, value in attrs]


def test_the_page_loads_nothing(project):
    write_inputs(predictions=[prediction(HOSTILE)])
    text, _ = outputs()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not [value for value in page.values if re.search(r"https?://", value[2] or "")]
    loaded = [value for _, name, value in page.values if name in ("src", "srcset", "data", "xlink:href")]
    assert loaded and all(value.startswith("#") for value in loaded)
    assert "url(http" not in text and "@import" not in text


def test_links_lead_to_files_beside_the_page_and_to_its_own_parts(project):
    write_inputs()
    page = Page(outputs()[0])
    links = [value for tag, name, value in page.values if (tag, name) == ("a", "href")]
    ids = {value for _, name, value in page.values if name == "id"}
    parts = [link[1:] for link in links if link.startswith("#")]
    assert len(parts) == 8 and set(parts) <= ids
    others = {link for link in links if not link.startswith("#")}
    assert others == {"eval/predictions.jsonl", "validation/index.html", "report.md"}


def elements(node):
    """Names of the elements below a node, in the order of their start tags."""
    for child in getattr(node, "children", None) or ():
        if not child.name.startswith(("#", "!")):
            yield child.name.lower()
        yield from elements(child)


def test_the_page_is_valid_html(project):
    with_all_parts()
    text, _ = outputs()
    parsed = JustHTML(text, strict=True, sanitize=False)
    # What is where HTML does not allow it would be moved, doubled or dropped.
    assert list(elements(parsed.root)) == Page(text).tags
    ids = [value for _, name, value in Page(text).values if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_is_accessible(project):
    with_all_parts()
    text, _ = outputs()
    page = Page(text)
    assert ("html", "lang", "en") in page.values
    assert page.tags.count("svg") == 5 == text.count('role="img"') == text.count("<svg class=")
    assert "#010203" not in text and "Loss by epoch: training from 2.20 to 1.20" in text
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 == levels.count(1)
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert {"main", "header", "nav"} <= set(page.tags)
    assert page.tags.count("th") == sum((tag, name) == ("th", "scope") for tag, name, _ in page.values)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_contrast(project, scheme):
    """WCAG 2.2 asks for 4.5 between text and ground, and for 3 between lines of a chart and ground."""
    write_inputs()
    blocks = re.findall(r":root \{(.*?)\}", outputs()[0], flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    for ground in ("paper", "card"):
        for text in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["plain"], colours["paper"]) >= 3


def contrast(one, other):
    """WCAG 2.2's ratio of two colours such as #1d1f21, from 1 to 21."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_what_varies_between_runs_is_in_the_page_alone(project):
    write_inputs()
    page, markdown = outputs()
    assert "71.3" in page and "versions.torch" in page
    assert "71.3" not in markdown and "versions" not in markdown


def test_a_thousand_conversations_fit_whole_into_under_a_megabyte(project):
    write_inputs(predictions=[talk(number) for number in range(1000)])
    page, markdown = outputs()
    assert 900_000 < len(page.encode()) < 1_000_000
    assert "cut after" not in page and "more characters" not in page
    assert all(f"in room {number}, please?" in page for number in range(1000))
    # The system prompt, the parameters as shipped, 997 conversations that are not on top, and 20 groups of them.
    assert page.count("<details") == 1 + 1 + 997 + 20 and "50 conversations, chrF 0.1 to 5.0" in page
    assert len(markdown) < 65_536 and "A typical answer (line 500)" in markdown


def test_longer_ones_are_cut_and_the_page_says_so(project):
    write_inputs(predictions=[prediction("long answer " * 100)] * 1000)
    page, _ = outputs()
    assert len(page.encode()) < 1_000_000 and page.count("<details") == 1 + 1 + 997 + 20
    note = re.search(r"To keep this page under 1 MB, texts are cut after (\d+) characters and say so\.", page)
    assert f"({1200 - int(note[1]):,} more characters)" in page and 'href="eval/predictions.jsonl"' in page
    assert page.count("long answer " * 99) == 3 * 4


def test_what_does_not_fit_at_all_is_left_out_and_counted(project):
    write_inputs(predictions=[prediction("<" * 3000)] * 3000)
    page, _ = outputs()
    assert len(page.encode()) < 1_000_000
    left = re.search(r"the ([\d,]+) best of them are left out", page)
    assert int(left[1].replace(",", "")) + page.count("<li>facts right") == 3000


def test_a_long_prompt_keeps_its_last_messages(project):
    one = prediction()
    one["prompt"] += [{"role": role, "content": "z" * 900} for role in ("assistant", "user")] * 1000
    write_inputs(predictions=[one] * 20)
    page, _ = outputs()
    assert len(page.encode()) < 1_000_000
    # 4,000 characters hold the last four of 2,001 messages and 400 characters of the one before.
    assert "texts are cut after 4,000" in page
    assert "(1,996 earlier messages)" in page and "(500 more characters)" in page


def test_the_page_names_the_commit_that_holds_the_result(repository):
    write_inputs()
    page, _ = outputs()
    checkout = re.search(r"git checkout \$\((git log .*?)\)\n", page)[1]
    found = subprocess.run(checkout, shell=True, capture_output=True, text=True, check=True).stdout
    assert found == ""
    git("add", "-A")
    git("commit", "-qm", "result")
    commit = git("rev-parse", "HEAD")
    report.MARKDOWN.write_text("another\n")
    git("commit", "-qam", "another result")
    found = subprocess.run(checkout, shell=True, capture_output=True, text=True, check=True).stdout
    assert found.strip() == commit.strip()


def test_a_shared_system_prompt_is_shown_once(project):
    write_inputs(predictions=[prediction("one"), prediction("two")])
    for text in outputs():
        assert text.count("Be kind.") == 1


def test_odd_characters_do_not_stop_the_report(project):
    write_inputs()
    text = json.dumps(prediction("a\ud800b\u2028c\x00d"))
    files.write_text(report.PREDICTIONS, text + "\n")
    assert "a?b" in outputs()[0]
