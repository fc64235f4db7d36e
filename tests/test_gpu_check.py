"""make gpu-check without a GPU: that it says so, its time limit, and what the benchmark chooses and prints."""

import subprocess
import sys

import pytest

from stages.backends.unsloth.common import device
from tests import gpu_benchmark, gpu_check
from tests.conftest import ROOT
from tests.gpu_benchmark import MODELS, Clock

GIB = 2**30


@pytest.mark.skipif(device.kind() != "cpu", reason="there is a GPU")
@pytest.mark.parametrize("module", ["tests.gpu_check", "tests.gpu_benchmark"])
def test_without_a_gpu_it_says_so_in_one_line_and_fails(module):
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: no GPU that torch can use; `make doctor` says why\n"


@pytest.mark.skipif(device.kind() != "cpu", reason="there is a GPU")
def test_its_tests_are_skipped_with_a_reason():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", gpu_check.TESTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "no GPU that torch can use" in done.stdout and "passed" not in done.stdout and done.returncode == 0


@pytest.mark.parametrize(
    "script, seconds, word",
    [
        ("pass", 60, "passed"),
        ("raise SystemExit(1)", 60, "failed"),
        ("import time; time.sleep(60)", 0, "stopped after 0 s"),
    ],
)
def test_each_part_is_ended_in_time(script, seconds, word):
    assert gpu_check._within([sys.executable, "-c", script], seconds, {}, ROOT) == word


def test_all_parts_together_take_at_most_eight_minutes():
    assert gpu_check.FOR_TESTS < gpu_check.SECONDS <= 480


@pytest.mark.parametrize(
    "free, name",
    [
        (80 * GIB, "Llama-3.1-8B"),
        (27 * GIB, "Llama-3.1-8B"),
        (24 * GIB, "Llama-3.2-3B"),
        (16 * GIB, "Llama-3.2-1B"),
        (8 * GIB, "SmolLM2-135M"),
    ],
)
def test_the_largest_model_that_fits_is_measured(free, name):
    assert gpu_benchmark.largest(free).name == name


def test_shapes_are_those_of_the_models_they_are_named_after():
    # As published: 8.03, 3.21, 1.24 and 0.135 billion weights.
    assert [round(shape.parameters / 1e9, 3) for shape in MODELS] == [8.03, 3.213, 1.236, 0.135]
    # Only the first has embeddings that are not its head: 128,256 tokens of 4,096 numbers.
    assert [shape.parameters - shape.multiplied for shape in MODELS] == [128256 * 4096, 0, 0, 0]


@pytest.mark.parametrize(
    "card, tera",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", None),
        ("Some card", None),
    ],
)
def test_the_peak_is_found_by_the_card_s_name(card, tera):
    assert gpu_benchmark.peak(card) == (None if tera is None else tera * 1e12)


def test_the_share_of_the_peak_counts_four_operations_per_weight_and_token():
    # 4 x 8e9 x 10,000 of 989e12.
    assert gpu_benchmark.share_of_peak(10_000, 8_000_000_000, "NVIDIA H100 80GB HBM3") == pytest.approx(
        0.3236, abs=1e-4
    )
    assert gpu_benchmark.share_of_peak(10_000, 8_000_000_000, "Tesla T4") is None


def test_the_table_has_a_row_for_each_trainer_measured_or_not():
    found = {"speed": 12345.6, "memory": 20480, "loss": 11.70321, "steps": 20}
    printed = gpu_benchmark.table(
        {"this pipeline": found, "TRL + PEFT": "no time left"}, 7_504_924_672, "NVIDIA H100 80GB"
    )
    assert printed.splitlines()[2:] == [
        "| this pipeline | 12,346 | 20,480 | 37% | 11.7032 |",
        "| TRL + PEFT | not measured: no time left | | | |",
    ]
    assert "| unknown |" in gpu_benchmark.table({"this pipeline": found}, 7_504_924_672, "Tesla T4")


def test_the_clock_leaves_out_the_steps_in_which_kernels_are_compiled():
    clock = Clock()
    # The first four steps take 10 s each, the next four 2 s.
    clock.times = [10.0, 20.0, 30.0, 40.0, 42.0, 44.0, 46.0, 48.0]
    assert clock.speed(tokens=8 * 100) == pytest.approx(50)


def test_conversations_are_the_same_each_time_and_share_their_prompt():
    found = gpu_benchmark.conversations(49152)
    assert found == gpu_benchmark.conversations(49152) and len(found) == gpu_benchmark.STEPS * gpu_benchmark.BATCH
    assert len({tuple(one.input_ids[:200]) for one in found}) == 1
    assert all(300 <= token < 49152 for one in found for token in one.input_ids)
    assert {label for one in found for label in one.labels[:220]} == {-100}


def test_a_trainer_without_time_is_left_out(tmp_path):
    assert gpu_benchmark.in_own_process("this pipeline", tmp_path, 1000, 20, seconds=0) == "no time left"


def test_a_trainer_that_fails_is_left_out_with_the_reason(tmp_path, capsys):
    found = gpu_benchmark.in_own_process("no such trainer", tmp_path, 1000, 20, seconds=100)
    assert found == "KeyError: 'no such trainer'"


@pytest.mark.slow
def test_all_trainers_learn_the_same_from_the_same_conversations(monkeypatch):
    """On the CPU, with a shape that takes seconds, and without TRL, whose loss needs a GPU."""
    monkeypatch.delitem(gpu_benchmark.TRAINERS, "TRL + PEFT")
    config = gpu_benchmark._llama(64, 128, 2, 4, 2, 16, vocab_size=1000)
    shape = gpu_benchmark.Shape("tiny", "llama", config)
    monkeypatch.setattr(gpu_benchmark, "write_in_own_process", gpu_benchmark.write)
    measured, real = {}, gpu_benchmark.in_own_process

    def keep(trainer, *given):
        measured[trainer] = real(trainer, *given)
        return measured[trainer]

    monkeypatch.setattr(gpu_benchmark, "in_own_process", keep)
    printed, complete = gpu_benchmark.compare(shape, "Some card", seconds=500, steps=6)
    assert complete and "not measured" not in printed and "tiny's shape" in printed
    losses = [found["loss"] for found in measured.values()]
    assert len(losses) == 3 and max(losses) - min(losses) < 0.05
    assert {found["steps"] for found in measured.values()} == {6}
