"""Parameters that exclude each other, and params.yaml as a file."""

import pytest
import yaml

from stages import params
from stages.core.cli import UserError
from tests.conftest import ROOT
from tests.params.test_params_bounds import check, refused


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_ratio": 0.8, "schedule__decay_ratio": 0.2, "scheduler": "warmup_stable_decay"},
        {"warmup_ratio": 0.9, "schedule__decay_ratio": 0.9, "scheduler": "cosine"},
        {"lora__init_lora_weights": "orthogonal", "lora__r": 6},
        {"lora__init_lora_weights": "gaussian", "lora__r": 7},
        {"lora__layers_to_transform": [0], "lora__target_modules": ["q_proj"]},
        {"lora__layers_to_transform": None, "lora__target_modules": ".*_proj"},
        {"lora__layers_to_transform": [0], "lora__target_modules": "all-linear"},
        {"lora__layers_to_transform": "upper_half", "lora__target_modules": "attention"},
        {"lora__layers_to_transform": "upper_half", "method": "full"},
        {"method": "full"},
        {"method": "qlora", "lora__init_lora_weights": "gaussian"},
        {"method": "dora", "lora__bias": "all"},
        {"lora__bias": "all", "lora__init_lora_weights": "orthogonal"},
        {"backend": "openai", "epochs": "auto", "batch_size": "auto"},
        {"backend": "openai", "epochs": 2.0},
        {"backend": "unsloth", "epochs": 2.5},
        {"split__validation": 0.5, "split__test": 0.49},
    ],
)
def test_what_goes_together(changes):
    check(**changes)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (
            {"warmup_ratio": 0.81, "schedule__decay_ratio": 0.2, "scheduler": "warmup_stable_decay"},
            "warmup_ratio + schedule.decay_ratio exceed 1",
        ),
        ({"lora__init_lora_weights": "orthogonal", "lora__r": 7}, "orthogonal needs an even r, not 7"),
        ({"lora__layers_to_transform": [0], "lora__target_modules": ".*_proj"}, "a pattern, which names layers itself"),
        ({"lora__layers_to_transform": "upper_half", "lora__target_modules": ".*x"}, "set layers_to_transform to null"),
        ({"method": "full", "dropout": 0.1}, "dropout: for the adapters of LoRA"),
        ({"method": "full", "lora__bias": "all"}, "lora.bias: for the adapters of LoRA"),
        ({"method": "full", "lora__use_rslora": True}, "lora.use_rslora: for"),
        ({"method": "full", "lora__init_lora_weights": "pissa"}, "lora.init_lora_weights: for"),
        ({"method": "full", "lora__layers_to_transform": [0]}, "lora.layers_to_transform: for"),
        ({"method": "full", "lora__loraplus_lr_ratio": 16}, "lora.loraplus_lr_ratio: for"),
        ({"method": "full", "dropout": 0.1, "lora__bias": "all"}, "dropout, lora.bias: for"),
        ({"method": "qlora", "lora__init_lora_weights": "pissa"}, "pissa changes the base's weights"),
        ({"method": "dora", "lora__init_lora_weights": "olora"}, "olora changes the base's weights"),
        ({"lora__bias": "all", "lora__init_lora_weights": "pissa"}, "lora.bias: all is not allowed with"),
        ({"lora__bias": "lora_only", "lora__init_lora_weights": "olora"}, "lora.bias: lora_only is not allowed with"),
        ({"epochs": "auto"}, "epochs: auto is for backend: openai"),
        ({"batch_size": "auto"}, "batch_size: auto is for backend: openai"),
        ({"backend": "openai", "epochs": 2.5}, "epochs: 2.5 is not allowed with backend: openai"),
        ({"split__validation": 0.5, "split__test": 0.5}, "leave nothing to train on"),
        ({"data__source": "nowhere"}, "source: 'nowhere' is not in data.sources; known: hotel, sample"),
        ({"review__regressions": {"chr": 1}}, "'chr' is not a metric; did you mean 'chrf'?"),
    ],
)
def test_what_does_not_go_together(changes, reason):
    assert reason in refused(**changes)


def test_parameters_cannot_be_changed_once_they_are_read():
    with pytest.raises(ValueError, match="frozen"):
        check().lr = 1


def test_numbers_for_a_local_and_for_a_hosted_run():
    assert check(epochs=2.5, batch_size=3).numbers == (2.5, 3)
    hosted = check(backend="openai", epochs=2.0, batch_size="auto")
    assert hosted.whole_epochs == 2 and isinstance(hosted.whole_epochs, int)
    assert check(backend="openai", epochs="auto").whole_epochs == "auto"
    for auto in ({"epochs": "auto"}, {"batch_size": "auto"}):
        with pytest.raises(AssertionError):
            check(backend="openai", **auto).numbers  # noqa: B018


def test_megabytes_are_millions_of_bytes():
    assert check(data__max_mb=1.5).data.max_bytes == 1_500_000
    assert check(data__max_mb=0.0000006).data.max_bytes == 1


def test_only_quarantine_quarantines():
    assert (
        check(validate__on_error="quarantine").gate.quarantines
        and not check(validate__on_error="stop").gate.quarantines
    )


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-05", 1e-05),
        ("-1E+5", -1e5),
        (".5e3", 500.0),
        ("2.e1", 20.0),
        ("1e5x", "1e5x"),
        ("e5", "e5"),
        ("'1e5'", "1e5"),
    ],
)
def test_numbers_with_an_exponent_are_read_as_in_yaml_1_2(text, value):
    found = params.parse_yaml(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


def test_a_key_that_is_repeated_is_refused_at_any_depth(tmp_path):
    for text in ("a: 1\na: 2", "a: {b: 1, b: 2}", "a: [{b: 1, b: 2}]"):
        with pytest.raises(yaml.YAMLError, match="the key '[ab]' is repeated"):
            params.parse_yaml(text)
    assert params.parse_yaml("a: {b: 1}\nb: {a: 1}") == {"a": {"b": 1}, "b": {"a": 1}}


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"- a\n", "must hold keys and values"),
        (b"", "must hold keys and values"),
        (b"\xff", "is not valid YAML: 'utf-8' codec"),
        (b"a: !!python/object:os.system x", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_holds_no_parameters(tmp_path, content, reason):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        params.load(path)
    assert "\n" not in str(error.value)


def test_errors_are_counted_and_each_is_listed_once(tmp_path):
    path = tmp_path / "params.yaml"
    shipped = (ROOT / "params.yaml").read_text()
    path.write_text(shipped.replace("\nlr: 0.003", "\nlr: 0"))
    with pytest.raises(UserError, match=r" has 1 error; fix it.*\nlr: 0 is not allowed"):
        params.load(path)
    # A key of several kinds has a fault for each of them, and is one error all the same.
    path.write_text(shipped.replace("\nlr: 0.003", "\nlr: 0").replace("\n  checkpoint: last", "\n  checkpoint: 0"))
    with pytest.raises(UserError) as error:
        params.load(path)
    assert str(error.value).splitlines()[0].startswith(f"{path} has 2 errors; ")
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == ["lr", "openai.checkpoint"]


@pytest.mark.parametrize("name", ["my.file", "a b", "", "a/b", "*"])
def test_a_source_has_a_name_by_which_dvc_finds_it(tmp_path, name):
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("    hotel:\n", f"    '{name}':\n"), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"\ndata.sources: '.*' is not a name of a source; use letters, digits, _ and -$"
    ):
        params.load(path)
