"""Read the results of a finished training."""

import csv

from stages.backends.unsloth.training.weight_change import Weights
from stages.core.paths import TUNED


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def adapter():
    return Weights(TUNED)
