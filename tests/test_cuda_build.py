"""What the sources of the CUDA kernels keep to. What nvcc makes of them is test_gpu_budget.py's."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def without_comments(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


def test_there_are_kernels():
    assert list((ROOT / "csrc/cuda").glob("*.cu"))


def test_only_launch_cuh_launches():
    """So that a test's runtime can stand in for CUDA's: no other launch, and no call that asks for a device."""
    for path in sorted((ROOT / "csrc/cuda").iterdir()):
        calls = set(re.findall(r"\bcuda[A-Z]\w*(?=\()", without_comments(path)))
        if path.name == "launch.cuh":
            assert calls == {"cudaGetLastError", "cudaGetErrorString"}
        else:
            assert not calls, path
            assert "<<<" not in without_comments(path), path
