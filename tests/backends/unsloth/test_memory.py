"""What the system has to hand out while tensors come and go."""

import platform
import subprocess
import sys

import pytest

# Tensors of 100 MiB, each freed before the next: 25,600 pages each time unless what was freed is kept.
FAULTS = """
import resource, torch
from stages.backends.unsloth.common import memory
{}
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    def faults(first):
        return int(subprocess.run([sys.executable, "-c", FAULTS.format(first)], check=True, capture_output=True).stdout)

    # With huge pages of 2 MiB there are 50 each time.
    assert faults("memory.keep_freed()") < 25 < faults("")
