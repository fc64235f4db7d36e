from pathlib import Path

import pytest

from tests.support import plain
from tests.support.plain import EXAMPLES, knobs


@pytest.fixture
def made(project, small_base, monkeypatch):
    """made(packed, budget, **knobs): a trainer for all weights of the small model."""
    plain.on_the_cpu(monkeypatch)

    def make(packed=True, budget=768, examples=EXAMPLES, log=lambda row: None, **values):
        chosen = knobs(**values)
        held = plain.trainable(small_base, chosen, packed=packed, budget=budget)
        return plain.trainer(held, chosen, Path("kept").resolve(), examples, examples, log)

    return make
