"""The page, the schema and the comments of the parameters follow from the typed models."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest

from stages import params
from stages.commands import docs
from stages.params import documentation, schema
from tests.conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / documentation.SCHEMA).read_text(encoding="utf-8"))
PAGE = (ROOT / documentation.PAGE).read_text(encoding="utf-8")


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_what_documents_the_parameters_is_up_to_date(here):
    stale = [str(path) for path, text in docs.documents().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def comments(text):
    """The comment above each key, in one line, by the key's full name."""
    found, above, sections = {}, [], []
    for line in text.splitlines():
        if match := re.match(r"( *)# (.*)", line):
            above.append(match[2])
        else:
            if match := re.match(r"( *)(\w+):( |$)", line):
                sections = [*sections[: len(match[1]) // 2], match[2]]
                found[".".join(sections)] = " ".join(above)
            above = []
    return found


def test_the_comment_above_each_parameter_is_its_description():
    found = comments(TEXT)
    for knob in schema.knobs():
        if "*" not in knob.name:
            assert found[knob.name] == knob.description


def test_every_description_is_one_or_two_sentences():
    for knob in schema.knobs():
        assert knob.description.endswith("."), knob.name
        assert len(knob.description.rstrip(".").split(". ")) <= 2, knob.name
        # In a source nothing but the page and the editor shows them.
        assert len(knob.description) <= 260 or "*" in knob.name, knob.name


def test_no_line_of_params_yaml_is_too_long_and_all_values_are_read_as_before():
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []
    bare = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    assert params.parse_yaml(bare) == params.parse_yaml(TEXT)


def test_comments_that_describe_no_parameter_stay_and_a_stale_one_is_replaced():
    text = "# top\n\n# old\n# words\nseed: 1\nsplit:\n  validation: 0.1\n  # mine\n  unknown: 2\n\n# end\n"
    assert documentation.commented(text).splitlines() == [
        "# top",
        "",
        "# Seed of the split, the initial LoRA weights, the order of the data and the bootstrap.",
        "seed: 1",
        "# How the conversations are split; the rest is trained on.",
        "split:",
        "  # Share of the conversations held out to choose the best checkpoint; at least one conversation.",
        "  validation: 0.1",
        "  # mine",
        "  unknown: 2",
        "",
        "# end",
    ]


def test_the_comments_of_a_source_are_its_owners():
    text = "data:\n  sources:\n    mine:\n      # from the front desk\n      url: a.csv\n"
    assert "\n      # from the front desk\n      url: a.csv\n" in documentation.commented(text)


def test_what_dvc_rewrites_for_an_experiment_keeps_its_comments(tmp_path):
    from dvc.utils.serialize import modify_yaml

    copy = tmp_path / "params.yaml"
    copy.write_text(TEXT, encoding="utf-8")
    with modify_yaml(copy) as values:
        values["lr"] = 0.5
    text = copy.read_text(encoding="utf-8")
    assert comments(text) == comments(TEXT) and text.splitlines()[0] == TEXT.splitlines()[0]
    assert params.parse_yaml(text) == params.parse_yaml(TEXT.replace("lr: 0.003", "lr: 0.5"))
    assert documentation.commented(text) == text


def test_an_editor_finds_the_schema_from_the_first_line():
    assert TEXT.splitlines()[0] == f"# yaml-language-server: $schema={documentation.SCHEMA}"


def test_the_schema_is_valid_and_takes_the_shipped_file():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(params.parse_yaml(TEXT), SCHEMA)


@pytest.mark.parametrize(
    "old, new",
    [
        ("lr: 0.003", "lr: 2"),
        ("lr: 0.003", "lrr: 0.003"),
        ("backend: unsloth", "backend: openia"),
        ("format: messages", "format: mesages"),
        ("{loss: 0.05", "{lss: 0.05"),
        ("validate:", "validation:"),
    ],
)
def test_the_schema_refuses_what_loading_refuses(old, new):
    assert old in TEXT
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(params.parse_yaml(TEXT.replace(old, new)), SCHEMA)


def test_the_schema_describes_every_parameter_to_an_editor():
    assert SCHEMA["properties"]["max_grad_norm"]["description"].startswith("Clip gradients to this L2 norm")
    assert SCHEMA["properties"]["validate"]["description"] == "The data gate."
    sections = [*SCHEMA["$defs"].values(), SCHEMA]
    assert all(field["description"] for section in sections for field in section["properties"].values())


def test_the_page_has_a_row_for_every_parameter_with_its_readers():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert list(rows) == [name.replace("*", "NAME") for name in params.names()]
    assert rows["lr"].split(" | ") == [
        "`0.003`",
        "a number > 0 and <= 1",
        "Peak learning rate. Too low and nothing is learned; too high and the loss jumps and the model forgets.",
        "finetune",
        "unsloth",
    ]
    assert rows["seed"].split(" | ")[1:2] == ["a whole number >= 0 and < 4294967296"]
    assert rows["seed"].split(" | ")[3:] == ["split, finetune, evaluate", "all"]
    assert rows["data.sources.NAME.url"].startswith("required | text | ")
    assert rows["data.sources.NAME.label"].startswith("`null` | text or null | ")
    assert rows["review.regressions"].startswith("`{loss: 0.05, chrf: 2.0}` | a section with a number >= 0 for each")
    assert rows["export.formats"].startswith("`[]` | a list of any of safetensors, gguf, ollama | ")


def test_the_command_writes_what_is_missing_and_leaves_the_values_alone(project):
    text = TEXT.replace("# Peak learning rate.", "# A rate.").replace("lr: 0.003", "lr: 0.002")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    (project / "docs").mkdir()
    docs.main()
    assert (project / "params.yaml").read_text(encoding="utf-8") == TEXT.replace("lr: 0.003", "lr: 0.002")
    assert "| `lr` | `0.002` |" in (project / documentation.PAGE).read_text(encoding="utf-8")
    assert json.loads((project / documentation.SCHEMA).read_text(encoding="utf-8")) == SCHEMA


def test_the_command_says_so_where_params_yaml_is_wrong(project):
    (project / "params.yaml").write_text("lr: 5\n", encoding="utf-8")
    command = [sys.executable, "-m", "stages.commands.docs"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "lr: 5 is not allowed; expected a number > 0 and <= 1" in done.stderr
    assert not (project / documentation.PAGE).exists()
