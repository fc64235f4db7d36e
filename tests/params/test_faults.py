"""Whatever is wrong in params.yaml ends in a sentence of this project that names the key."""

from pathlib import Path

import pytest

from stages import params
from stages.core.cli import UserError
from stages.params import schema
from stages.report import _parameters
from tests.conftest import ROOT, set_params

# Values that no parameter takes.
ODD = [object, [[]], {"a": {"b": 1}}, -1e400, "\n\x1b[31m", [None], {1: 2}]
TEXT = ("text", "text or null", "a list or text", "a list or text or null")
TAKES_ANY_TEXT = {name for name in params.names() if schema.allowed(name) in TEXT}


def refused(text=None):
    if text is not None:
        Path("params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        params.load()
    assert all(line.isprintable() for line in str(error.value).splitlines())
    return str(error.value).splitlines()


@pytest.mark.parametrize("name", params.names())
def test_an_odd_value_is_refused_with_the_key_and_what_is_expected(project, name):
    text = Path("params.yaml").read_text(encoding="utf-8")
    place = name.replace("*", "sample")
    if ".columns." in name:
        set_params(data__sources__sample__columns={"user": "q", "assistant": "a"})
    if ".turns." in name:
        set_params(data__sources__sample__turns={"conversation": "c", "role": "r", "content": "t"})
    for odd in ODD[1:]:
        if isinstance(odd, str) and name in TAKES_ANY_TEXT:
            continue
        set_params(**{place.replace(".", "__"): odd})
        first, *lines = refused()
        assert first.startswith("params.yaml has ") and first.endswith("; fix it, or the -S that set it")
        assert any(line.startswith(place) and ": " in line for line in lines), lines
        assert all("[" not in line.split(": ")[0] and "function" not in line for line in lines), lines
        if ".columns." not in name and ".turns." not in name:
            Path("params.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("section", ["", *(knob.name for knob in schema.knobs() if knob.is_section)])
def test_an_unknown_key_anywhere_hints_at_the_nearest_known_one(project, section):
    if section.endswith("columns"):
        set_params(data__sources__sample__columns={"user": "q", "assistant": "a"})
    if section.endswith("turns"):
        set_params(data__sources__sample__turns={"conversation": "c", "role": "r", "content": "t"})
    # Keys of data.sources are names; those of a source are known.
    place = f"{section}." if section else ""
    place = place.replace("*", "sample") + ("sample." if section == "data.sources" else "")
    known = next(iter(schema.at(place.rstrip("."))["properties"]))
    set_params(**{f"{place}{known}x".replace(".", "__"): 1})
    assert f"{place}{known}x: unknown key; did you mean '{place}{known}'?" in refused()


def test_a_key_with_control_characters_is_printed_in_one_line(project):
    set_params(**{"epochs\n\x1b": 1})
    assert refused()[1:] == [r"epochs\n\x1b: unknown key; did you mean 'epochs'?"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("seed: 42", "seed: 2020-13-45", "not valid YAML: a value cannot be read"),
        ("seed: 42", "seed: " + "9" * 5000, "not valid YAML: a value cannot be read"),
        ("seed: 42", "seed: !!timestamp now", "not valid YAML: a value cannot be read"),
        ("seed: 42", "seed: !!bool maybe", "not valid YAML: a value cannot be read"),
        ("seed: 42", "seed: !!python/name:os.system", "not valid YAML: could not determine a constructor"),
        ("seed: 42", "? [a]\n: 1", "not valid YAML: a key must be text"),
        ("seed: 42", "? {a: 1}\n: 1", "not valid YAML: a key must be text"),
        ("seed: 42", "seed: " + "[" * 5000, "not valid YAML"),
        ("seed: 42", "seed: " + "[" * 3000 + "]" * 3000, "not valid YAML: it is nested too deeply"),
        ("seed: 42", "7: 42", "7: a key must be text"),
        ("seed: 42", "seed: &a [*a]", "seed: "),
        ("    sample:", "    7:", "data.sources.7: a key must be text; put it in quotes"),
        ("  lr: {}", "  lr: {'(': 1}", "layers.lr.(: '(' is not a regular expression"),
        ("backend: unsloth", "backend: openia", "backend: 'openia' is not allowed; expected one of unsloth, openai"),
    ],
)
def test_what_yaml_or_a_key_makes_of_it_is_said_in_a_sentence(project, old, new, message):
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert old in text
    assert message in "\n".join(refused(text.replace(old, new, 1)))


def test_a_long_value_is_cut_in_its_message(project):
    set_params(seed="x" * 10_000)
    assert len(max(refused(), key=len)) < 200


def test_params_yaml_that_is_a_folder_cannot_be_read(project):
    Path("params.yaml").unlink()
    Path("params.yaml").mkdir()
    assert refused() == ["params.yaml cannot be read (Is a directory); it must be a readable file"]


@pytest.mark.parametrize("text", ["", "[]", "lr", "5"])
def test_a_file_without_keys_is_refused(project, text):
    assert refused(text) == ["params.yaml must hold keys and values, such as `lr: 0.001`"]


BROKEN = "https://[broken/a.csv"


def test_an_address_that_cannot_be_parsed_is_refused_where_it_is_used(project):
    set_params(data__sources__hotel__url=BROKEN, data__source="hotel")
    (_, line) = refused()
    assert line.startswith("data.sources.hotel.url: 'https://...' is not an address; expected a path, http(s)://")


def test_an_address_that_cannot_be_parsed_in_another_source_stops_nothing(project):
    set_params(data__sources__hotel__url=BROKEN)
    # The report shows the source in use alone.
    shown = _parameters(params.load())
    assert "data.sources.sample.url" in shown["unchanged"] and "hotel" not in str(shown)


def test_a_source_knows_its_name():
    sources = params.load(ROOT / "params.yaml").data.sources
    assert sources["hotel"].key("encoding") == "data.sources.hotel.encoding"
    # It is no key of the file, and no value that a report or a fingerprint has.
    assert "name" not in str(sources["hotel"].model_dump())


@pytest.mark.parametrize("key", ["name", "_name"])
def test_a_source_takes_its_name_from_its_key_alone(project, key):
    set_params(**{f"data__sources__sample__{key}": "x"}) if key == "name" else refused(
        Path("params.yaml").read_text().replace("      url: data/sample.csv", "      url: a\n      _name: x")
    )
    assert f"data.sources.sample.{key}: unknown key" in "\n".join(refused())
