"""The one rule: one op is one name, the name is in every folder, and the folder says what the file knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytorch_ext import _op

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = sorted(path.stem for path in (ROOT / "pytorch_ext/ops").glob("*.py") if path.stem != "__init__")
FOLDERS = [
    "csrc/{}.h",
    "csrc/{}.cpp",
    "csrc/cpu/{}.cpp",
    "csrc/cuda/{}.cu",
    "kernels/{}.py",
    "tests/test_{}.py",
    "bench/bench_{}.py",
]
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
PYBIND = re.compile(r"pybind11/|Python\.h")


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def csrc(*suffixes: str) -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_op_is_in_every_folder(family, folder):
    assert (ROOT / folder.format(family)).is_file()


def test_every_module_of_ops_registers_ops():
    assert {op.family for op in _op.OPS.values()} == set(FAMILIES)


def test_only_boundaries_see_torch():
    allowed = {"boundary.h", "dense_boundary.h", *(f"{family}.cpp" for family in FAMILIES)}
    for path in csrc(".h", ".cuh", ".cpp", ".cu"):
        if path.parent != ROOT / "csrc" or path.name not in allowed:
            assert not [name for name in includes(path) if TORCH.match(name)], path


def test_boundaries_keep_to_the_stable_abi():
    for path in csrc(".h", ".cpp"):
        for name in includes(path):
            if TORCH.match(name):
                assert name.startswith(("torch/csrc/stable/", "torch/csrc/inductor/aoti_torch/c/", "torch/headeronly/"))


def test_only_build_info_sees_pybind():
    for path in csrc(".h", ".cuh", ".cpp", ".cu"):
        if path.name != "build_info.cpp":
            assert not [name for name in includes(path) if PYBIND.match(name)], path


def test_triton_kernels_see_no_library_of_ours_but_their_own():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not re.search(r"\b(load_library|pytorch_ext\.(_load|_op|ops))\b", path.read_text()), path


def test_bare_kernels_is_not_importable_from_the_repository():
    """Else `try: import kernels` finds our folder instead of the PyPI package of that name."""
    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "ImportError" in run.stderr
    assert "pytorch_ext.kernels" in run.stderr
