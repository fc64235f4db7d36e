"""The verdict of a review: intervals by the parameters, and regressions at their boundaries."""

import sys

import pytest

from stages.commands import review
from stages.commands.comparison import Change
from stages.core.cli import UserError
from stages.metrics import intervals
from tests.commands.test_review import rows
from tests.conftest import set_params
from tests.support.history import TOKENS, commit, predictions, write_run


@pytest.fixture(autouse=True)
def three_are_enough(monkeypatch):
    """Intervals of so few conversations that their numbers can be worked out."""
    monkeypatch.setattr(intervals, "FEWEST", 2)


@pytest.fixture
def reviewed(repository, monkeypatch, capsys):
    """reviewed(**parameters) compares the workspace with the last commit; what is printed."""

    def run(**knobs):
        set_params(**knobs)
        monkeypatch.setattr(sys, "argv", ["review", "HEAD"])
        review.main()
        return capsys.readouterr().out

    return run


def scored(*chrf):
    return predictions([1.0] * len(chrf), [10] * len(chrf), chrf=list(chrf))


@pytest.mark.parametrize("confidence, shown, high", [(0.6, "60%", "2.0"), (0.9, "90%", "3.0"), (0.995, "99.5%", "4.0")])
def test_the_confidence_of_a_difference_is_that_of_the_parameters(reviewed, confidence, shown, high):
    # One of ten conversations gains 10, so the mean of a resample is how often it is drawn: never with probability
    # 0.349, at most once with 0.736, twice with 0.930, three times with 0.987, four times with 0.9984.
    write_run(scored(*[50.0] * 10))
    commit()
    write_run(scored(*[50.0] * 9, 60.0))
    text = reviewed(evaluate__confidence=confidence, evaluate__resamples=20_000)
    assert rows(text)["chrF (higher is better)"] == ["50.0", "51.0", f"1.0 (0.0 to {high})", "within noise"]
    assert shown in text


def bootstraps(monkeypatch):
    """Every bootstrap that is made from here on: its seed, resamples and confidence."""
    made = []
    real = review.Bootstrap
    monkeypatch.setattr(review, "Bootstrap", lambda *given: made.append(given) or real(*given))
    return made


def test_the_seed_and_the_resamples_are_those_of_the_parameters(reviewed, monkeypatch):
    made = bootstraps(monkeypatch)
    reviewed(seed=7, evaluate__resamples=123, evaluate__confidence=0.8)
    assert made == [(7, 123, 0.8)]


def test_another_seed_or_number_of_resamples_gives_another_interval(reviewed):
    gains = [1.37, 9.11, 4.53, 20.29, 7.71, 3.17, 15.83, 11.57]
    # Small values are shown with two decimals.
    write_run(scored(*[5.0] * 8))
    commit()
    write_run(scored(*[5.0 + gain for gain in gains]))

    def interval(**knobs):
        return rows(reviewed(**knobs))["chrF (higher is better)"][2]

    found = [
        interval(seed=seed, evaluate__resamples=resamples)
        for seed, resamples in [(7, 100), (8, 100), (7, 100), (7, 150)]
    ]
    assert found[0] == found[2] and len(set(found)) == 3


def change(name, value, low=None, high=None):
    return Change(name, 1.0, 1.0 + value, {"value": value, "low": low, "high": high})


@pytest.mark.parametrize(
    "found, outcome",
    [
        (None, "not judged: neither run has it"),
        (Change("loss", 1.0, 9.0, obstacle="why not"), "not judged: why not"),
        (change("loss", 0.123456, 0.1, 0.2), "failed: worse by 0.1235"),
        (change("loss", 0.2), "failed: worse by 0.2"),
        (change("loss", 0.05, 0.01, 0.09), "passed"),
        (change("loss", 0.06, -0.01, 0.09), "passed, within noise"),
        (change("loss", 0.05, -0.01, 0.09), "passed"),
        (change("loss", -0.5, -0.6, -0.4), "passed"),
    ],
)
def test_a_metric_passes_at_what_is_allowed_and_fails_above_it(found, outcome):
    assert review._outcome(found, 0.05) == outcome
    assert review._gate([found] if found else [], {"loss": 0.05})[0] == {
        "label": "loss",
        "allowed": "0.05",
        "outcome": outcome,
    }


def test_only_metrics_with_a_tolerance_can_stop_a_change():
    worse = [change("loss", 0.2, 0.1, 0.3), change("chrf", -9.0, -10.0, -8.0)]
    review._stop_at_regressions(worse, {})
    review._stop_at_regressions(worse, {"loss": 0.2, "chrf": 9, "similarity": 0})
    with pytest.raises(UserError) as error:
        review._stop_at_regressions(worse, {"loss": 0.2, "chrf": 8.9})
    first, *rest = str(error.value).splitlines()
    assert first.startswith("1 metric got worse by more than") and rest == ["chrF by 9, allowed is 8.9"]


def test_a_tolerance_of_zero_forbids_any_worsening_but_noise():
    review._stop_at_regressions([change("loss", 0.1, -0.1, 0.3), change("chrf", 0.0, 0.0, 0.0)], {"loss": 0, "chrf": 0})
    with pytest.raises(UserError, match="loss by 0.001, allowed is 0"):
        review._stop_at_regressions([change("loss", 0.001, 0.0005, 0.002)], {"loss": 0})


def test_verdicts_are_in_the_order_of_their_weight():
    changes = [
        change("loss", -1.0, -2.0, -0.5),
        change("perplexity", 1.0, 0.5, 2.0),
        change("chrf", 1.0, 0.5, 2.0),
        change("rouge_l", 1.0, -0.5, 2.0),
        change("similarity", 1.0),
        Change("exact_match", 1.0, 2.0, obstacle="x"),
    ]
    assert list(review._verdicts(changes).items()) == [
        ("worse", "perplexity"),
        ("better", "loss, chrF"),
        ("within noise", "ROUGE-L"),
        ("too few", "similarity"),
        ("not comparable", "exact match"),
    ]


def test_a_change_without_an_interval_is_shown_without_one():
    assert review._row(change("loss", 0.5)) == {
        "label": "loss (lower is better)",
        "old": "1.00",
        "new": "1.50",
        "difference": "0.50",
        "word": "too few",
    }
    unlike = review._row(Change("loss", 1.0, None, obstacle="why not"))
    assert (unlike["new"], unlike["difference"], unlike["word"]) == ("none", "none", "not comparable: why not")


def test_values_that_differ_or_that_one_side_lacks_are_listed_in_order():
    old, new = {"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "4", "d": "5"}
    assert review._differing(old, new) == [("a", "1", "absent"), ("c", "3", "4"), ("d", "absent", "5")]


@pytest.mark.parametrize("old, new, shared", [(3, 3, 2), (3, 2, 2), (2, 3, 2), (3, 3, 0)])
def test_tests_differ_unless_all_conversations_of_both_are_shared(old, new, shared):
    runs = [review.Finished(review.revisions.WORKSPACE, [{}] * count, [], "", {}, {}, {}, {}) for count in (old, new)]
    said = review._different_tests(*runs, shared)
    assert said.endswith(f"workspace has {old} conversations, workspace {new}, {shared} are in both")
    assert review._different_tests(runs[0], runs[0], old) == ""


def test_the_base_s_scores_are_numbers_of_the_run_but_not_of_the_gate():
    part = {"loss": {"value": 2.5, "low": 2.0, "high": 3.0}}
    measures = {
        "test": {"base": part, "tuned": {}},
        "baselines": {"nearest": {"measures": {"chrf": {"value": 59.4}}}},
        "train": {"steps": 1200},
        "counts": {"test": 3},
    }
    assert review._numbers(measures) == {
        "base.loss": "2.5",
        "baselines.nearest.chrf": "59.4",
        "train.steps": "1,200",
        "counts.test": "3",
    }


def test_tokens_weigh_the_loss_of_a_review(reviewed):
    # (10 · 2 + 30 · 2 + 60 · 4) / 100 = 3.2 after (10 · 1 + 30 · 2 + 60 · 4) / 100 = 3.1.
    assert TOKENS == [10, 30, 60]
    write_run(predictions([2.0, 2.0, 4.0]))
    assert rows(reviewed(review__regressions={}))["loss (lower is better)"][:2] == ["3.10", "3.20"]
