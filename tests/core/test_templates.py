"""The filters of templates, and what becomes of a text that does not fit."""

from pathlib import Path

import pytest

from stages.core import templates

HERE = Path(__file__).parent


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
    template = templates.environment(HERE).from_string("{{ 'x' * n }}{{ head }}")
    sizes = [{"n": 9}, {"n": 5}, {"n": 2}]
    for limit, text in ((10, "x" * 9 + "h"), (9, "x" * 5 + "h"), (6, "x" * 5 + "h"), (5, "xxh"), (3, "xxh")):
        assert templates.fitted(template, {"head": "h"}, sizes, limit) == text


def test_where_no_size_fits_whole_lines_are_kept_and_a_line_says_so():
    template = templates.environment(HERE).from_string("{% for _ in range(n) %}0123456789\n{% endfor %}")
    rest = "\nThe rest does not fit into one comment on GitHub.\n"
    for spare, lines in ((11, 1), (21, 1), (22, 2), (33, 3)):
        limit = len(rest) + spare
        text = templates.fitted(template, {}, [{"n": 100}, {"n": 50}], limit)
        assert text == "0123456789\n" * lines + rest and len(text) <= limit


def test_a_template_with_an_unknown_name_is_an_error_and_not_a_gap():
    with pytest.raises(Exception, match="'nothing' is undefined"):
        templates.environment(HERE).from_string("{{ nothing }}").render()
