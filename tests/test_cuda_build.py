"""What nvcc makes of the CUDA kernels, where there is an nvcc: no spills, no stack, 16-byte accesses, no atomics."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
ARCHS = ("80", "90", "100")
REGISTERS = 65536  # of a multiprocessor
NVCC = shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin")) or shutil.which("nvcc")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc was found neither in CUDA_HOME nor on PATH")


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def nvcc(source: Path, *options: str) -> str:
    result = subprocess.run([NVCC, "-std=c++17", "-O3", *options, str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


@functools.cache
def resources(source: Path, arch: str) -> dict[str, Resources]:
    """Of each kernel, by its mangled name; what ptxas reports."""
    text = nvcc(source, f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", "-o", os.devnull)
    found = re.findall(
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
        r"ptxas info\s+: Used (\d+) registers",
        text,
    )
    assert len(found) == text.count("Compiling entry function"), "ptxas reports in another form now"
    return {name: Resources(int(r), int(st), int(ss), int(sl)) for name, st, ss, sl, r in found}


@functools.cache
def ptx(source: Path) -> dict[str, str]:
    """The text of each kernel, by its mangled name."""
    text = subprocess.run(
        [NVCC, "-std=c++17", "-O3", "-arch=sm_80", "-ptx", "-o", "-", str(source)], capture_output=True, text=True
    ).stdout
    kernels = dict(re.findall(r"\.entry (\w+)\((.*?)^}", text, re.DOTALL | re.MULTILINE))
    assert kernels
    return kernels


def threads_of(body: str) -> int:
    return int(re.search(r"\.maxntid (\d+)", body)[1])


def without_comments(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


# --- what needs no compiler -------------------------------------------------------------------------------------------
def test_there_are_kernels():
    assert SOURCES


def test_only_launch_cuh_launches():
    """So that a test's runtime can stand in for CUDA's: no other launch, and no call that asks for a device."""
    for path in sorted((ROOT / "csrc/cuda").iterdir()):
        calls = set(re.findall(r"\bcuda[A-Z]\w*(?=\()", without_comments(path)))
        if path.name == "launch.cuh":
            assert calls == {"cudaGetLastError", "cudaGetErrorString"}
        else:
            assert not calls, path
            assert "<<<" not in without_comments(path), path


# --- what nvcc says ---------------------------------------------------------------------------------------------------
@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_spills(source, arch):
    for name, used in resources(source, arch).items():
        assert used == Resources(used.registers, 0, 0, 0), name


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_multiprocessor_holds_256_threads_or_more(source):
    bodies = ptx(source)
    assert bodies.keys() == resources(source, "90").keys()
    for name, used in resources(source, "90").items():
        threads = threads_of(bodies[name])
        blocks = REGISTERS // ((used.registers + 7) // 8 * 8 * threads)
        assert blocks * threads >= 256, f"{name} uses {used.registers} registers"


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_sums_do_not_depend_on_the_order_of_threads(source):
    for name, body in ptx(source).items():
        assert not re.search(r"\b(atom|red)\.", body), name


@needs_nvcc
@pytest.mark.parametrize("letter", ["f", "6__half", "13__nv_bfloat16"], ids=["float32", "float16", "bfloat16"])
def test_depthwise_conv2d_nhwc_moves_16_bytes_at_once(letter):
    channels = 4 if letter == "f" else 8
    seen = set()
    for name, body in ptx(ROOT / "csrc/cuda/depthwise_conv2d.cu").items():
        kernel = re.search(rf"(forward|backward_input_stride2|backward_weight)_nhwcI{letter}((?:Li\d+E)+)", name)
        if not kernel:
            continue
        numbers = list(map(int, re.findall(r"\d+", kernel[2])))  # K, S (but dx), V, ...
        if numbers[1 if kernel[1] == "backward_input_stride2" else 2] != channels:
            continue
        seen.add(kernel[1])
        assert re.search(r"\bld\.global\S*\.v4", body), name
        if kernel[1] != "backward_weight":
            assert re.search(r"\bst\.global\S*\.v4", body), name
            assert re.search(r"\bld\.shared\S*\.v4", body), name
    assert seen == {"forward", "backward_input_stride2", "backward_weight"}


@needs_nvcc
def test_a_spill_would_be_seen(tmp_path):
    """The check itself: a kernel that indexes an array of its own, under a limit that its sums cannot keep."""
    source = tmp_path / "spills.cu"
    source.write_text(
        """
        __global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {
          float v[64];
        #pragma unroll
          for (int i = 0; i < 64; ++i) v[i] = x[i * n];
          __syncthreads();
        #pragma unroll
          for (int i = 0; i < 64; ++i) x[(63 - i) * n + 1] = v[i] * v[63 - i];
        }
        __global__ void stack(float* x, int n) {
          float v[64];
          for (int i = 0; i < 64; ++i) v[i * n & 63] = x[i];
          x[n] = v[n & 63];
        }
        """
    )
    found = resources(source, "90")
    assert next(used for name, used in found.items() if "spills" in name).spill_stores > 0
    assert next(used for name, used in found.items() if "stack" in name).stack > 0
