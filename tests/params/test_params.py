from pathlib import Path

import pytest

from stages import params
from stages.core.cli import UserError
from tests.conftest import ROOT


def edited(project: Path, *changes: tuple[str, str]) -> params.Params:
    text = Path("params.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("params.yaml").write_text(text)
    return params.load()


def test_the_shipped_file_is_valid(project):
    assert params.load().data.chosen.url == "data/sample.csv"


def test_scientific_notation_without_a_dot_is_a_number(project):
    assert edited(project, ("lr: 0.001", "lr: 1e-05")).lr == 0.00001


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("lr: 0.001", "lr: abc", "lr: 'abc' is not allowed; expected a number > 0 and <= 1"),
        ("lr: 0.001", "lr: .nan", "lr: nan is not allowed; expected a number > 0 and <= 1"),
        ("lr: 0.001", "lr: true", "lr: True is not allowed"),
        ("epochs: 3", "epochs: 0", "epochs: 0 is not allowed; expected a number > 0 and <= 1000"),
        (
            "epochs: 3",
            "epochs: many",
            "epochs: 'many' is not allowed; expected a number > 0 and <= 1000 or auto",
        ),
        ("epochs: 3", "epochs: auto", "epochs: auto is for backend: openai; give a number"),
        (
            "multiplier: auto",
            "multiplier: -1",
            "multiplier: -1 is not allowed; expected a number > 0 and <= 100 or auto",
        ),
        ("epochs: 3", "epoch: 3", "epoch: unknown key; did you mean 'epochs'?"),
        ("  r: 16", "  rank: 16", "lora.rank: unknown key; known: alpha, bias, init_lora_weights, layers_to_transform"),
        ("  alpha: 32", "  alhpa: 32", "lora.alhpa: unknown key; did you mean 'lora.alpha'?"),
        ("scheduler: cosine", "scheduler: cosin", "expected one of constant, linear, cosine"),
        ("source: sample", "source: smple", "'smple' is not in data.sources; did you mean 'sample'?"),
        ("  test: 0.15", "  test: 0.9", "split: validation + test leave nothing to train on"),
        ("{loss: 0.05", "{lss: 0.05", "review.regressions: 'lss' is not a metric; did you mean 'loss'?"),
        ("{loss: 0.05", "{loss: -1", "review.regressions.loss: -1 is not allowed; expected a number >= 0"),
        ("seed: 42", "seed: 42\nseed: 43", "the key 'seed' is repeated"),
        ("seed: 42", "seed: [42", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(project, old, new, message):
    with pytest.raises(UserError) as error:
        edited(project, (old, new))
    assert message in str(error.value)


def test_a_hosted_run_may_leave_epochs_to_the_service(project):
    knobs = edited(project, ("backend: unsloth", "backend: openai"), ("epochs: 3", "epochs: auto"))
    assert knobs.epochs == "auto" and knobs.openai.learning_rate_multiplier == "auto"


def test_all_errors_are_listed_at_once(project):
    with pytest.raises(UserError) as error:
        edited(
            project, ("lr: 0.001", "lr: abc"), ("\ndropout: 0.0", "\ndropout: 1.5"), ("overlong: stop", "overlong: no")
        )
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == ["lr", "dropout", "unsloth.overlong"]


@pytest.mark.parametrize("name", ["params.yaml", "data/expectations.yaml"])
def test_files_that_dvc_rewrites_for_an_experiment_keep_their_values(tmp_path, name):
    from dvc.utils.serialize import modify_yaml

    copy = tmp_path / "copy.yaml"
    copy.write_bytes((ROOT / name).read_bytes())
    # What `dvc exp run -S` does to a file.
    with modify_yaml(copy) as values:
        values.update(values)
    assert params.read_yaml(copy) == params.read_yaml(ROOT / name)


def test_a_missing_file_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run from the project's top folder"):
        params.load()
