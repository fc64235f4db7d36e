from pathlib import Path

import pytest

from stages.backends.unsloth.training.micro_batches import TREE
from tests.support import plain
from tests.support.plain import EXAMPLES, knobs


@pytest.fixture
def made(project, small_base, monkeypatch):
    """made(form, budget, **knobs): a trainer for all weights of the small model."""
    plain.on_the_cpu(monkeypatch)

    def make(form=TREE, budget=768, examples=EXAMPLES, log=lambda row: None, **values):
        chosen = knobs(**values)
        held = plain.trainable(small_base, chosen, form=form, budget=budget)
        return plain.trainer(held, chosen, Path("kept").resolve(), examples, examples, log)

    return make
