"""The registry of formats: what follows from an entry."""

import shutil
import subprocess
import sys

import pytest

from stages import params
from stages.core.cli import UserError
from stages.dataset import formats
from tests.conftest import ROOT

ENTRY = '    Format("qa", "question and answer", ("q", "a"), columns={"user": ["q"], "assistant": ["a"]}),\n'
USE = """
from pathlib import Path
from stages import params
from stages.commands import docs
from stages.core.cli import UserError
from stages.dataset import formats

text = Path("params.yaml").read_text()
Path("params.yaml").write_text(text.replace("format: messages", "format: qa", 1))
source = params.load().data.chosen
(record,) = formats.read(iter([(1, {"q": "Open?", "a": "Yes."})]), source)
assert [message.content for message in record.conversation.messages] == ["Open?", "Yes."], record

alpaca = source.model_copy(update={"format": "alpaca"})
for rows in ([(1, {"q": "Open?", "a": "Yes."})], [(1, ["q", "a"])]):
    try:
        list(formats.read(iter(rows), alpaca))
    except UserError as error:
        assert "looks like qa" in str(error), error
    else:
        raise AssertionError("not refused")

Path("params.yaml").write_text(text.replace("format: messages", "format: qaa", 1))
try:
    params.load()
except UserError as error:
    assert "sharegpt, alpaca, prompt_completion, turns, oasst, qa" in str(error), error
else:
    raise AssertionError("not refused")

Path("params.yaml").write_text(text)
docs.main()
assert "qa (question and answer)" in Path("docs/params.md").read_text()
assert '"qa"' in Path("docs/params.schema.json").read_text()
"""


def test_one_entry_adds_a_format_to_reading_parameters_errors_schema_and_page(tmp_path):
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "docs").mkdir()
    path = tmp_path / "stages/dataset/formats/registry.py"
    before, after = path.read_text(encoding="utf-8").split(")\nREGISTRY")
    path.write_text(f"{before}{ENTRY})\nREGISTRY{after}", encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [form.name for form in formats.REGISTRY.values() if form.marks])
def test_a_record_of_one_format_is_refused_under_every_other_that_has_marks(name):
    record = dict.fromkeys(formats.REGISTRY[name].marks, "x")
    for other in (form.name for form in formats.REGISTRY.values() if form.marks and form.name != name):
        source = params.Source(url="x", sha256=None, format=other)
        with pytest.raises(UserError, match=f"declared as format: {other}, and its first record looks like {name}; "):
            list(formats.read(iter([(1, record)]), source))


def test_a_table_with_named_columns_may_look_like_another_format():
    source = params.Source(
        url="x", sha256=None, format="columns", columns={"user": "instruction", "assistant": "output"}
    )
    (record,) = formats.read(iter([(1, {"instruction": "Open?", "output": "Yes."})]), source)
    assert record.conversation.response == "Yes."


def test_only_a_format_without_columns_of_its_own_has_them_named():
    assert [form.name for form in formats.REGISTRY.values() if form.of_named_columns] == ["columns"]
    for form in formats.REGISTRY.values():
        assert not (form.record and form.columns)
        assert form.meaning and not form.meaning.endswith(".")


def test_the_columns_of_each_role_are_named_for_the_reader():
    def of(form, **given):
        return formats.columns(params.Source(url="x", sha256=None, format=form, **given))

    assert of("alpaca") == {"system": "system", "user": "instruction and input", "assistant": "output"}
    assert of("prompt_completion") == {"system": "system", "user": "prompt", "assistant": "completion"}
    named = {"user": "q", "assistant": "a"}
    assert of("columns", columns=named) == named
    assert of("columns", columns={**named, "system": "s"}) == {"system": "s", **named}
    assert of("columns", columns={**named, "system_prompt": "Be kind."}) == named
