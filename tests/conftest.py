"""What every test runs under: unwritten memory is poisoned, seeds are fixed, one thread, reproducible hypothesis.

`torch.utils.deterministic.fill_uninitialized_memory` does not reach memory that compiled libraries ask for through
the stable ABI (test_bounds.py shows it), so the allocator itself is told to fill every block with its junk: NaN in
float32, 1.7e308 in float64, NaN in every second float16 and bfloat16.
"""

import ctypes
import fcntl
import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=5000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def poison(on: bool) -> None:
    """Fills all memory that torch allocates on the CPU from now on with junk, or leaves off."""
    c10 = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
    ctypes.c_bool.in_dll(c10, "FLAGS_caffe2_cpu_allocator_do_junk_fill").value = on


@pytest.fixture(autouse=True)
def conditions():
    poison(True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two on a busy machine wait for each other; tests of threads set them
    yield
    poison(False)


def memory_available() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


@pytest.fixture
def gigabytes():
    """14 GiB of memory: one test at a time has them, whatever the number of processes."""
    with open(Path(tempfile.gettempdir()) / "lightkernels-tests-of-gigabytes", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if memory_available() < 14:
            pytest.skip(f"{memory_available():.1f} GiB of memory are free, 14 are needed")
        yield
