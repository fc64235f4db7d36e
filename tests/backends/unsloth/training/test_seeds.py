"""Another seed gives another result, the same seed the same bytes.

None of the seeds here is a library's default or that of params.yaml.
"""

import pytest
import torch

from stages.core.paths import HISTORY, TUNED

ONE, OTHER = 1234, 4321


def started(observed, **knobs):
    """The adapter's A matrices before the first step, as bytes."""
    assert observed("first_update", epochs=0.25, batch_size=4, **knobs)[0] is None
    return [weight.numpy().tobytes() for weight in torch.load("update.pt")["before"] if weight.abs().sum() > 0]


@pytest.mark.parametrize("start", ["default", "gaussian"])
def test_the_seed_determines_the_initial_adapter(observed, start):
    first = started(observed, seed=ONE, lora__init_lora_weights=start)
    # There is an A for 7 modules in each of 2 layers; B is zero.
    assert len(first) == 14
    assert started(observed, seed=ONE) == first
    other = started(observed, seed=OTHER)
    assert not set(other) & set(first), "each matrix starts with different values"


def result(train, **knobs):
    # One conversation per step, so that the history shows their order.
    assert train(epochs=1, batch_size=1, lr=0.01, dropout=0.2, **knobs) is None
    return (TUNED / "adapter_model.safetensors").read_bytes(), HISTORY.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_different_ones(train):
    first = result(train, seed=ONE)
    assert result(train, seed=ONE) == first
    other = result(train, seed=OTHER)
    assert other[0] != first[0] and other[1] != first[1]


def test_the_seed_determines_the_order_of_the_data_even_if_nothing_else_is_random(train):
    # Full training without dropout: no weight is initialised at random.
    found = {}
    for seed in (ONE, OTHER):
        assert train(seed=seed, method="full", epochs=1, batch_size=1, lr=1e-6, warmup_ratio=0.0) is None
        found[seed] = [float(line.split(",")[2]) for line in HISTORY.read_text().splitlines()[1:]]
    # A rate so low that a conversation's loss is the same at every step.
    assert sorted(found[ONE]) == pytest.approx(sorted(found[OTHER]), abs=0.01)
    assert found[ONE] != pytest.approx(found[OTHER], abs=0.01)
