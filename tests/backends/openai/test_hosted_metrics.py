"""The reports of a finished hosted job."""

from types import SimpleNamespace as Some

import openai
import pytest

from stages.backends.openai import training as backend
from stages.backends.openai.common.prices import Prices

CURVES = [
    {"step": 1, "epoch": 0.5, "train_loss": 2.0},
    {"step": 2, "epoch": 1.0, "train_loss": 1.5, "validation_loss": 1.7},
    {"step": 4, "epoch": 2.0, "train_loss": 1.0, "validation_loss": 1.9},
]


@pytest.mark.parametrize(
    "step, metrics",
    [
        (None, {"steps": 4, "tokens": 9, "validation_loss": 1.9}),
        (4, {"steps": 4, "tokens": 9, "validation_loss": 1.9}),
        (3, {"steps": 2, "tokens": 9, "validation_loss": 1.7}),
        (2, {"steps": 2, "tokens": 9, "validation_loss": 1.7}),
        (1, {"steps": 1, "tokens": 9}),
        (0, {"tokens": 9}),
    ],
)
def test_metrics_are_those_at_the_selected_checkpoint(step, metrics):
    assert backend._metrics(CURVES, 9, step) == metrics


def test_each_row_is_logged_with_training_and_validation_loss():
    logged = []
    backend._log(CURVES[:2], logged.append)
    assert logged == [
        {"step": 1, "epoch": 0.5, "train_loss": 2.0},
        {"step": 2, "epoch": 1.0, "train_loss": 1.5},
        {"step": 2, "epoch": 1.0, "validation_loss": 1.7},
    ]


def job(**changes):
    settled = Some(to_dict=lambda: {"n_epochs": 3})
    given = {"trained_tokens": 2_000_000, "finished_at": 160, "hyperparameters": settled}
    return Some(id="job1", model="gpt-3.5-turbo-0125", created_at=100, **given | changes)


def test_the_facts_of_a_job():
    assert backend._facts(job(), "ft:x", Prices("openai.prices", training=8.0), 12.345) == {
        "seconds": 12.3,
        "job": "job1",
        "model": "ft:x",
        "trained_tokens": 2_000_000,
        "price_usd": 16.0,
        "job_seconds": 60,
        "hyperparameters": {"n_epochs": 3},
        "versions": {"openai": openai.__version__},
    }


def test_facts_that_a_service_does_not_report_are_null():
    facts = backend._facts(
        job(trained_tokens=None, finished_at=None, hyperparameters=None), "ft:x", Prices("unknown prices"), 1
    )
    assert [facts[name] for name in ("trained_tokens", "price_usd", "job_seconds", "hyperparameters")] == [None] * 4
