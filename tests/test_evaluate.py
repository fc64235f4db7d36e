import json
from types import SimpleNamespace

import numpy as np
import pytest

from stages import backends, evaluate, params
from stages.backends.protocol import Likelihoods
from stages.core import files
from stages.core.paths import MEASURES, PREDICTIONS, SPLIT_REPORT, SPLITS, TEST_LABELS, TRAIN_METRICS
from stages.dataset import conversations
from stages.metrics import intervals
from stages.metrics.intervals import Mean
from tests.conftest import ROOT, talks

KNOBS = params.load(ROOT / "params.yaml")


def measures(*losses):
    return {"loss": Mean(np.array(losses), np.ones(len(losses)))}


def test_each_label_has_the_metrics_of_its_own_conversations(monkeypatch):
    monkeypatch.setattr(intervals, "FEWEST", 2)
    labels = ["pool", "", "pool", "spa", "pool"]
    found = evaluate.slices(labels, measures(1.0, 5.0, 2.0, 3.0, 6.0), measures(0.5, 5.0, 1.0, 4.0, 3.0), {}, KNOBS)
    assert list(found) == ["(no label)", "pool", "spa"]
    assert [found[label]["conversations"] for label in found] == [1, 3, 1]
    pool = found["pool"]
    # (1 + 2 + 6) / 3, (0.5 + 1 + 3) / 3; the gains are -0.5, -1 and -3, so no resample of them reaches zero.
    assert (pool["base"]["loss"]["value"], pool["tuned"]["loss"]["value"]) == (3.0, 1.5)
    assert -3 <= pool["gain"]["loss"]["low"] < -1.5 < pool["gain"]["loss"]["high"] <= -0.5
    assert found["spa"]["gain"]["loss"] == {"value": 1.0, "low": None, "high": None}


def test_a_label_that_reads_like_the_lack_of_one_is_kept_apart():
    labels = ["(no label)", "", "((no label))", "(no label)"]
    found = evaluate.slices(labels, measures(1.0, 5.0, 2.0, 3.0), measures(0.5, 5.0, 1.0, 4.0), {}, KNOBS)
    sizes = {label: one["conversations"] for label, one in found.items()}
    assert sizes == {"(no label)": 2, "((no label))": 1, "(((no label)))": 1}
    assert found["(((no label)))"]["base"]["loss"]["value"] == 5.0


def test_without_labels_there_are_no_slices():
    assert evaluate.slices([], measures(1.0), measures(2.0), {}, KNOBS) == {}


NLL = {False: [4.0, 30.0, 9.0], True: [2.0, 12.0, 9.0]}
TOKENS = [2, 10, 3]


def likelihoods(asked, tuned):
    if len(asked) != 3 or asked[0].response != "It is 0.":
        return Likelihoods(np.full(len(asked), 8.0 + 4 * tuned), np.ones(len(asked)), np.full(len(asked), 4))
    return Likelihoods(np.array(NLL[tuned]), np.array([1.0, 5.0, 3.0]), np.array(TOKENS))


@pytest.fixture
def evaluated(project, monkeypatch):
    """evaluated(likelihoods) runs the stage with a model that answers "It is 1." and is as likely as given."""

    def run(likelihoods):
        pair = SimpleNamespace(
            answers=lambda test, tuned, limit: (["It is 1."] * len(test), 0),
            likelihoods=likelihoods,
            price=lambda *_: 0.0,
            varies=False,
            kept=[],
            perturbed=lambda *_: None,
            facts=dict,
        )
        monkeypatch.setattr(backends, "inference", lambda knobs: SimpleNamespace(pair=lambda knobs: pair))
        SPLITS["test"].parent.mkdir(parents=True)
        conversations.write_jsonl(SPLITS["test"], talks(3))
        conversations.write_jsonl(SPLITS["train"], talks(5))
        files.write_json(SPLIT_REPORT, {name: {"conversations": 3} for name in SPLITS})
        files.write_json(TRAIN_METRICS, {})
        files.write_json(TEST_LABELS, [])
        evaluate.main()
        return [json.loads(line) for line in PREDICTIONS.read_text().splitlines()]

    return run


def test_the_loss_can_be_taken_again_from_the_predictions(evaluated):
    lines = evaluated(likelihoods)
    weights = [line["weights"]["base"]["loss"] for line in lines]
    assert weights == TOKENS == [line["weights"]["tuned"]["loss"] for line in lines]
    sums = {
        part: sum(line["scores"][part]["loss"] * tokens for line, tokens in zip(lines, weights, strict=True))
        for part in ("base", "tuned")
    }
    # (4 + 30 + 9) / 15 and (2 + 12 + 9) / 15.
    assert sums["base"] / 15 == pytest.approx(43 / 15) and sums["tuned"] / 15 == pytest.approx(23 / 15)
    assert json.loads(MEASURES.read_text())["test"]["tuned"]["loss"]["value"] == round(23 / 15, 4)


def test_without_likelihoods_nothing_is_weighted_by_tokens(evaluated):
    for line in evaluated(lambda *_: None):
        assert set(line["weights"]["tuned"]) == {"facts_right", "fact_recall", "fact_precision"}
