"""The tables of docs/shapes.md and docs/conversions.md, line by line: what is said to be read or converted is."""

import contextlib
import random
import re
import shutil

import pytest
import yaml

from stages import params
from stages.core.cli import UserError
from stages.dataset import conversations, formats, readers
from stages.dataset.formats import suggest
from stages.dataset.source import Tried
from tests.conftest import ROOT

SHAPES = ROOT / "tests/support/shapes"
LIMIT = 10**8
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| `([\w.]+)` \|$", re.MULTILINE)
TABLE = ROW.findall((ROOT / "docs/shapes.md").read_text(encoding="utf-8"))
READ = {file: yaml.safe_load(f"{{{what.split('`')[1]}}}") for _, _, what, file in TABLE if what.startswith("read: ")}
CONVERTED = {file: what.split("#")[1][:-1] for _, _, what, file in TABLE if what.startswith("[converted]")}
PAGE = (ROOT / "docs/conversions.md").read_text(encoding="utf-8")
# Under which name the lines on the page look for the file.
EXPECTED_NAME = {"slack.json": "channel/2026-11-25.json"}


def read(path, source):
    return list(formats.read(readers.rows(path, source, LIMIT), source))


def declared(**given):
    return params.Source(url="x", sha256=None, **given)


def test_the_table_has_a_row_for_each_file_and_says_what_happens():
    files = [file for *_, file in TABLE]
    assert sorted(files) == sorted(path.name for path in SHAPES.iterdir())
    assert len(READ) + len(CONVERTED) == len(TABLE) >= 50
    assert all(example.strip() for _, example, _, _ in TABLE)


@pytest.mark.parametrize("file", READ)
def test_a_shape_is_read_as_declared(file):
    found = read(SHAPES / file, declared(**READ[file]))
    assert found and [one.error for one in found if one.error] == []
    assert all([one.conversation.messages[-1].role for one in found]) and len(found[0].conversation.messages) > 1
    assert {one.conversation.messages[-1].role for one in found} == {"assistant"}


@pytest.mark.parametrize("file", READ)
def test_the_declaration_of_a_shape_is_found_and_reads_as_much(file):
    form = READ[file]["format"]
    given = {name: READ[file][name] for name in ("escape", "sheet") if name in READ[file]}
    rows = list(readers.rows(SHAPES / file, Tried(**given), LIMIT))[:10]
    found = suggest.declaration(rows, Tried(**given))
    assert found.format == form
    pasted = declared(**yaml.safe_load("\n".join(suggest.as_yaml(suggest.settings(found)))))
    known = [(one.row, one.conversation) for one in read(SHAPES / file, declared(**READ[file]))]
    assert [(one.row, one.conversation) for one in read(SHAPES / file, pasted)] == known


@pytest.mark.parametrize("file", READ)
def test_a_wrong_declaration_ends_in_the_right_one(file):
    form = READ[file]["format"]
    given = {name: READ[file][name] for name in ("escape", "sheet") if name in READ[file]}
    wrong = "alpaca" if form != "alpaca" else "oasst"
    with pytest.raises(UserError) as error:
        read(SHAPES / file, declared(format=wrong, **given))
    first, put, *lines = str(error.value).splitlines()
    assert put.endswith("in params.yaml, put under data.sources.*:") and "fix data.sources" in first
    assert yaml.safe_load("\n".join(lines))["format"] == form


def section(anchor):
    """The Python lines under a heading of docs/conversions.md."""
    for part in PAGE.split("\n## ")[1:]:
        if re.sub(r"\W+", "-", part.splitlines()[0]).lower() == anchor:
            return re.search(r"```python\n(.*?)```", part, re.DOTALL)[1]
    raise AssertionError(anchor)


@pytest.mark.parametrize("file", CONVERTED)
def test_an_error_links_the_lines_that_convert_the_file(file):
    source, said = declared(format="messages"), []
    with contextlib.suppress(UserError):
        said += [one.error for one in read(SHAPES / file, source) if one.error]
    try:
        read(SHAPES / file, source)
    except UserError as error:
        said.append(str(error))
    assert any(f"docs/conversions.md#{CONVERTED[file]} " in one for one in said), said


@pytest.mark.parametrize("file", CONVERTED)
def test_the_lines_of_the_page_convert_the_file(file, here, tmp_path):
    code = section(CONVERTED[file])
    (opened,) = re.findall(r'open\("([\w.]+)", encoding|glob\("(channel)/', code)[:1]
    target = tmp_path / (EXPECTED_NAME.get(file) or opened[0])
    target.parent.mkdir(exist_ok=True)
    shutil.copy(SHAPES / file, target)
    (tmp_path / "data/local").mkdir(parents=True)
    exec(compile(code, file, "exec"), {})
    found = read(tmp_path / "data/local/mine.jsonl", declared(format="messages"))
    assert [one.error for one in found if one.error] == []
    assert {one.conversation.messages[-1].role for one in found} == {"assistant"}
    texts = " ".join(map(str, (conversations.encode(one.conversation) for one in found)))
    assert "Hold the green button for five seconds." in texts and "Yes, rinse it under cold water" in texts
    assert "A first try" not in texts and "Look at this one" not in texts and "No idea" not in texts


@pytest.mark.parametrize("file", [*READ, *CONVERTED])
def test_no_torn_file_of_a_shape_crashes_the_reader(file, tmp_path):
    rng, path = random.Random(file), tmp_path / "torn"
    for _ in range(4):
        raw = bytearray((SHAPES / file).read_bytes())
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(len(raw))] = rng.choice(b'"\\{}[],\n\x00\xff;')
        path.write_bytes(raw[: rng.randrange(1, len(raw))] if rng.random() < 0.3 else raw)
        form = READ.get(file, {}).get("format", "messages")
        for source in (Tried(format="messages"), Tried(format=form if form not in ("columns", "turns") else "oasst")):
            try:
                for one in read(path, source):
                    assert (one.conversation is None) == bool(one.error)
                    assert one.error is None or (one.error + one.snippet).isprintable()
            except UserError as error:
                assert all(line.isprintable() for line in str(error).splitlines())


def test_every_conversion_is_in_the_table():
    headings = {re.sub(r"\W+", "-", one).lower() for one in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    assert headings == set(CONVERTED.values())
