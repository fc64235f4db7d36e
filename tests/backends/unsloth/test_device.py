"""The device that computes, with fakes of torch's modules of GPUs."""

import pytest
import torch

from stages.backends.unsloth.common import device


class Gpu:
    """A fake of torch.cuda or torch.xpu that notes what is called."""

    def __init__(self, name, there):
        self.name, self.there, self.calls = name, there, []

    def is_available(self):
        return self.there

    def get_device_name(self):
        return f"{self.name} GPU"

    def max_memory_allocated(self):
        return 7

    def get_rng_state_all(self):
        return [torch.tensor([1]), torch.tensor([2])]

    def set_rng_state_all(self, states):
        self.calls.append(("restored", [int(state) for state in states]))

    def empty_cache(self):
        self.calls.append(("emptied",))


@pytest.fixture
def gpus(monkeypatch):
    """gpus(cuda, xpu) says which GPUs there are, and returns the two modules."""

    def put(cuda, xpu):
        found = Gpu("cuda", cuda), Gpu("xpu", xpu)
        monkeypatch.setattr(torch, "cuda", found[0])
        monkeypatch.setattr(torch, "xpu", found[1])
        return found

    return put


@pytest.mark.parametrize(
    "cuda, xpu, kind, name, peak",
    [
        (False, False, "cpu", "cpu", None),
        (True, False, "cuda", "cuda GPU", 7),
        (True, True, "cuda", "cuda GPU", 7),
        (False, True, "xpu", "xpu GPU", 7),
    ],
)
def test_the_gpu_is_named_and_measured(gpus, cuda, xpu, kind, name, peak):
    gpus(cuda, xpu)
    assert (device.kind(), device.name(), device.peak_memory()) == (kind, name, peak)


@pytest.mark.parametrize("which", [0, 1])
def test_memory_is_freed_and_random_states_are_restored_on_the_gpu_that_is_there(gpus, which):
    modules = gpus(which == 0, which == 1)
    device.free_unused()
    device.restore(device.random_states())
    assert modules[which].calls == [("emptied",), ("restored", [1, 2])] and not modules[1 - which].calls


def test_on_a_cpu_no_gpu_is_asked(gpus):
    modules = gpus(False, False)
    device.free_unused()
    device.restore(device.random_states())
    assert device.random_states() == [] and not modules[0].calls and not modules[1].calls


@pytest.mark.parametrize(
    "error, memory",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_running_out_of_memory_is_distinguished_from_other_errors(error, memory):
    assert device.out_of_memory(error) == memory
