"""What a stage writes, the next ones read, whatever a backend does not report."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

from stages import backends, evaluate, finetune, params, report
from stages.backends.openai.training import HISTORY as HOSTED
from stages.backends.openai.training import VALIDATION_HISTORY as HOSTED_VALIDATION
from stages.backends.protocol import Likelihoods, Result
from stages.backends.unsloth.training import HISTORY as LOCAL
from stages.backends.unsloth.training import VALIDATION_HISTORY as LOCAL_VALIDATION
from stages.commands import comparison
from stages.core import files
from stages.core.paths import (
    GENERAL,
    HISTORY,
    HTML,
    MARKDOWN,
    MEASURES,
    PREDICTIONS,
    SPLIT_REPORT,
    SPLITS,
    TEST_LABELS,
    VALIDATION,
)
from stages.dataset import conversations
from stages.metrics import intervals
from stages.metrics.intervals import Bootstrap
from stages.reporting import predictions
from tests.conftest import set_params, talks

COLUMNS = {"unsloth": (LOCAL, LOCAL_VALIDATION), "openai": (HOSTED, HOSTED_VALIDATION)}
NOTHING = Result({}, {})
SPLIT = {"conversations": 3, "tokens": 30}


def values(columns, missing):
    return {name: None if name in missing else 1.5 for name in columns}


def likely(count):
    """Likelihoods of so many conversations, each 2 nats a token."""
    return Likelihoods(np.full(count, 8.0), np.full(count, 3.0), np.full(count, 4))


@pytest.fixture
def pipeline(project, monkeypatch):
    """pipeline(backend, ...) runs finetune, evaluate and report with what a backend gives; returns the Markdown."""

    def run(backend, rows=(), result=NOTHING, likelihoods=False, labels=()):
        set_params(backend=backend)
        history, validation_history = COLUMNS[backend]

        def train(knobs, log):
            for row in rows:
                log(row)
            return result

        pair = SimpleNamespace(
            answers=lambda test, tuned, limit: (["It is 1."] * len(test), 0),
            likelihoods=lambda asked, tuned: likely(len(asked)) if likelihoods else None,
            price=lambda *_: 0.0,
            varies=False,
            perturbed=lambda *_: None,
            facts=dict,
            kept=[],
        )
        training = SimpleNamespace(HISTORY=history, VALIDATION_HISTORY=validation_history, finetune=train)
        monkeypatch.setattr(backends, "training", lambda knobs: training)
        monkeypatch.setattr(backends, "inference", lambda knobs: SimpleNamespace(pair=lambda knobs: pair))
        SPLITS["test"].parent.mkdir(parents=True)
        conversations.write_jsonl(SPLITS["test"], talks(3))
        conversations.write_jsonl(SPLITS["train"], talks(5))
        nearest = {"median": 0.0, "p90": 0.0, "max": 0.0}
        files.write_json(
            SPLIT_REPORT, {**dict.fromkeys(SPLITS, SPLIT), "overlap": 0, "nearest": nearest, "changed_split": None}
        )
        files.write_json(VALIDATION, {"rows": 3, "rules": 9, "quarantined": 0, "findings": []})
        files.write_json(TEST_LABELS, list(labels))
        finetune.main()
        evaluate.main()
        report.main()
        return MARKDOWN.read_text(encoding="utf-8")

    return run


@pytest.mark.parametrize("backend", COLUMNS)
def test_a_training_that_reports_nothing_is_reported(pipeline, backend):
    assert "Too little" not in pipeline(backend) and HTML.exists()


@pytest.mark.parametrize("backend", COLUMNS)
@pytest.mark.parametrize("missing", [{"epoch"}, {"epoch", "lr"}, {"train_loss", "validation_loss"}, {"step"}])
def test_an_empty_cell_of_the_history_is_left_out(pipeline, backend, missing):
    rows = [values(columns, missing) for columns in COLUMNS[backend]]
    text = pipeline(backend, rows)
    with HISTORY.open(encoding="utf-8") as file:
        (written,) = csv.DictReader(file)
    assert {name for name, cell in written.items() if cell == ""} == missing & set(COLUMNS[backend][0])
    assert ("Validation loss, 1 measurements" in text) == ("validation_loss" not in missing)


@pytest.mark.parametrize("backend", COLUMNS)
def test_facts_that_are_null_are_shown_as_none(pipeline, backend):
    result = Result({"steps": None, "validation_loss": None}, {"seconds": None, "hyperparameters": {"n_epochs": None}})
    assert "| steps | none |" in pipeline(backend, result=result)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("labels", [(), ("pool", "", "pool")])
def test_predictions_are_read_with_and_without_likelihoods_and_labels(pipeline, monkeypatch, given, labels):
    pipeline("unsloth", likelihoods=given, labels=labels)
    monkeypatch.setattr(intervals, "FEWEST", 2)
    general = predictions.read_general(GENERAL.read_text(encoding="utf-8"), str(GENERAL))
    lines = predictions.read(PREDICTIONS.read_text(encoding="utf-8"), str(PREDICTIONS))
    own = {
        name: one["value"] for name, one in json.loads(MEASURES.read_text(encoding="utf-8"))["test"]["tuned"].items()
    }
    knobs = params.load()
    bootstrap = Bootstrap(knobs.seed, knobs.evaluate.resamples, knobs.evaluate.confidence)
    shared = comparison.Shared(comparison.pairs(lines, lines), comparison.pairs(general, general))
    found = {one.name: one.word for one in comparison.changes(shared, own, own, bootstrap)}
    assert ("loss" in found) == ("retention" in found) == given
    assert {word for name, word in found.items() if not name.startswith("fact")} == {"within noise"}
