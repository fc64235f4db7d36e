import numpy as np

from stages import evaluate, params
from stages.scoring import Mean

from .conftest import ROOT

KNOBS = params.load(ROOT / "params.yaml")


def measures(*losses):
    return {"loss": Mean(np.array(losses), np.ones(len(losses)))}


def test_each_label_has_the_metrics_of_its_own_conversations():
    labels = ["pool", "", "pool", "spa", "pool"]
    found = evaluate.slices(labels, measures(1.0, 5.0, 2.0, 3.0, 6.0), measures(0.5, 5.0, 1.0, 4.0, 3.0), KNOBS)
    assert list(found) == ["(no label)", "pool", "spa"]
    assert [found[label]["conversations"] for label in found] == [1, 3, 1]
    pool = found["pool"]
    # (1 + 2 + 6) / 3, (0.5 + 1 + 3) / 3; the gains are -0.5, -1 and -3, so no resample of them reaches zero.
    assert (pool["base"]["loss"]["value"], pool["tuned"]["loss"]["value"]) == (3.0, 1.5)
    assert -3 <= pool["gain"]["loss"]["low"] < -1.5 < pool["gain"]["loss"]["high"] <= -0.5
    assert found["spa"]["gain"]["loss"] == {"value": 1.0, "low": None, "high": None}


def test_without_labels_there_are_no_slices():
    assert evaluate.slices([], measures(1.0), measures(2.0), KNOBS) == {}
