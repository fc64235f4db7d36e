"""What the typed models declare of their readers, against dvc.yaml and what is known of each training."""

import pytest
import yaml

from stages import backends, params
from stages.params import schema
from tests.conftest import ROOT
from tests.support.commands import STAGES

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
# All of data.sources.NAME is watched at once; what was downloaded by these is a dependency of its own.
WATCHED_WITHOUT_NEED = {
    (stage, f"data.sources.*.{key}") for stage in ("parse", "validate") for key in ("url", "sha256")
}


def watched(stage, backend):
    """The keys of params.yaml that dvc.yaml names for a stage."""
    keys = [key for key in PIPELINE[stage].get("params", []) if isinstance(key, str)]
    return [key.replace("${backend}", backend).replace("${data.source}", "*") for key in keys]


def covered(keys):
    return {name for name in params.names() for key in keys if name == key or name.startswith(f"{key}.")}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "report"])
def test_dvc_yaml_watches_the_parameters_that_a_stage_reads_and_no_others(stage):
    for backend in params.BACKENDS:
        assert set(params.read_by(stage, backend)) - covered(watched(stage, backend)) == set()
    keys = {key for backend in params.BACKENDS for key in watched(stage, backend)}
    idle = {(stage, name) for name in covered(keys) - set(params.read_by(stage))}
    assert idle == {pair for pair in WATCHED_WITHOUT_NEED if pair[0] == stage}
    assert all(covered([key]) for key in keys)


def test_the_report_shows_all_parameters():
    assert {"params.yaml": None} in PIPELINE["report"]["params"]
    assert params.read_by("report") == params.names()
    assert params.read_by("report", decides=["cost"]) == ["gradient_checkpointing", "packing", "evaluate.batch_size"]


def test_every_parameter_is_read_by_a_stage_that_exists_with_a_backend_that_exists():
    for knob in schema.knobs():
        assert set(knob.read_by.stages) <= set(STAGES)
        assert set(knob.read_by.backends) <= set(params.BACKENDS)
        # The command that compares two runs reads these, and no stage.
        assert knob.read_by.stages or knob.name.startswith("review")
    assert sorted(params.BACKENDS) == backends.names()


def test_the_names_are_those_of_params_yaml():
    values = params.read_yaml(ROOT / "params.yaml")
    sources = values["data"].pop("sources")
    prices = values["openai"].pop("prices")
    flat = [f"{key}.{inner}" for key, value in values.items() if isinstance(value, dict) for inner in value]
    flat += [f"openai.prices.{name}" for name in prices]
    flat += [key for key, value in values.items() if not isinstance(value, dict)]
    assert {name for name in params.names() if not name.startswith("data.sources.")} == set(flat)
    declared = {name.removeprefix("data.sources.*.") for name in params.names() if "*" in name}
    assert set(sources["sample"]) < declared and "columns.system_prompt" in declared


def test_a_training_here_is_decided_by_these_parameters():
    decides = params.read_by("finetune", "unsloth", ("result",))
    assert params.grouped(decides) == [
        "backend", "seed", "lr", "epochs", "early_stopping_patience", "batch_size", "dropout", "attention_dropout",
        "weight_decay", "scheduler", "warmup_ratio", "label_smoothing_factor", "optim", "max_grad_norm", "method",
        "schedule", "lora", "layers", "adversarial", "unsloth",
    ]  # fmt: skip
    computed = params.read_by("finetune", "unsloth", ("cost",))
    assert computed == ["gradient_checkpointing", "packing"]
    # How often a checkpoint is written decides neither, so a training resumes from one after a change of it.
    assert params.read_by("finetune", "unsloth", ("nothing",)) == ["checkpoint.every"]


def test_a_hosted_training_ignores_these_parameters():
    assert params.grouped(params.ignored_by("finetune", "openai")) == [
        "lr", "early_stopping_patience", "dropout", "attention_dropout", "weight_decay", "scheduler", "warmup_ratio",
        "label_smoothing_factor", "optim", "max_grad_norm", "gradient_checkpointing", "packing", "method", "schedule",
        "lora", "layers", "adversarial", "checkpoint",
    ]  # fmt: skip
    assert params.ignored_by("finetune", "unsloth") == []
    assert params.ignored_by("evaluate", "openai") == ["evaluate.epsilon"]


def test_the_values_of_some_parameters_are_nested_as_in_the_file(project):
    knobs = params.load()
    assert params.select(knobs, ["lora.alpha", "seed", "lora.r"]) == {"seed": 42, "lora": {"r": 16, "alpha": 32}}
    assert params.select(knobs, ["validate.on_error", "layers.lr"]) == {
        "layers": {"lr": {}},
        "validate": {"on_error": "stop"},
    }
    assert params.select(knobs, ["data.sources.*.format"]) == {
        "data": {"sources": {"sample": {"format": "messages"}, "hotel": {"format": "messages"}}}
    }
    assert params.select(knobs, ["data.sources.*.columns.user"])["data"]["sources"]["sample"] == {"columns": None}
    assert params.select(knobs, params.names()) == knobs.model_dump(by_alias=True)


def test_a_section_replaces_its_parameters_only_where_all_are_named():
    assert params.grouped(["split.test", "seed"]) == ["seed", "split.test"]
    assert params.grouped(["split.test", "seed", "split.validation"]) == ["seed", "split"]
