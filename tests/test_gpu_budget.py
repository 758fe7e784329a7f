"""What compilers make of the GPU kernels: never worse than the table in git, and some things never at all.

Nothing is compiled twice: CUDA kernels are read out of the library that was built. Of what is as it was when the table
was made (sources and compiler: its fingerprint) one architecture is measured, of what has changed all of them.
"""

import functools
import itertools
import math
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import gpu_budget as budget
import nvcc
import pytest
from gpu_budget import Variant

from pytorch_ext.cli import gpu_budget, main

triton = pytest.importorskip("triton", reason="triton is not installed: its wheel brings cuobjdump and nvdisasm")
import triton.language as tl  # noqa: E402

NVCC = nvcc.path()
SPOT = 90  # the architecture that is measured always
ELEMENT = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}
REGENERATE = "`make gpu-budget` measures anew and writes tests/gpu_budget.csv: look at its diff, and commit it."

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason=nvcc.MISSING),
    pytest.mark.skipif(not (budget.tools() / "nvdisasm").exists(), reason="this Triton brings no nvdisasm"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]
LANGUAGES = pytest.mark.parametrize("language", ["cuda", "triton"])


@functools.cache
def table() -> budget.Table:
    return budget.parse(budget.TABLE.read_text())


def changed(language: str) -> bool:
    return table().fingerprints.get(language) != budget.fingerprints()[language]


@functools.cache
def measured(language: str) -> list[Variant]:
    if language == "triton":
        return budget.measure_triton(budget.ARCHS if changed("triton") else [SPOT])
    built = [budget.up_to_date(source) for source in budget.cuda_sources()]
    if changed("cuda"):
        archs = set(budget.ARCHS)
    elif all(built):
        archs = set.intersection(*map(budget.architectures, built)) & set(budget.ARCHS)
    else:
        archs = set()
    return budget.measure_cuda(sorted(archs) or [SPOT])


# --- the table --------------------------------------------------------------------------------------------------------
@LANGUAGES
def test_nothing_is_worse_than_the_table(language):
    was, now = table().compilers[language], budget.compilers()[language]
    if was != now:
        pytest.skip(f"the table was made by {was}, here is {now}, which may well make something else")
    new = budget.rows(measured(language))
    archs = {arch for _, _, arch in new}
    old = {key: row for key, row in table().rows.items() if key[0] == language and key[2] in archs}
    worse, different = budget.compare(old, new)
    if worse:
        pytest.fail("\n".join(["worse than tests/gpu_budget.csv:", *worse, *different, REGENERATE]), pytrace=False)
    if different:
        pytest.fail("\n".join(["different, and not worse:", *different, REGENERATE]), pytrace=False)
    if changed(language):
        pytest.fail(f"sources have changed, and no kernel's row: {REGENERATE}", pytrace=False)


def test_the_table_is_as_it_is_written():
    text = budget.TABLE.read_text()
    assert table().text() == text
    assert {arch for _, _, arch in table().rows} == set(budget.ARCHS)
    assert len(text.splitlines()) < 500  # it is to be read


def test_every_cuda_kernel_is_in_the_table():
    written = budget.cuda_kernels()
    text = "".join(budget.code_of(path) for path in {kernel.path for kernel in written.values()})
    assert len(written) == text.count("__global__")
    for arch in budget.ARCHS:
        assert {kernel for language, kernel, a in table().rows if language == "cuda" and a == arch} == set(written)


def test_every_triton_kernel_is_in_the_table():
    found = set()
    for path in (budget.ROOT / "kernels").glob("*.py"):
        found |= set(re.findall(r"^@triton\.jit\ndef ([a-z]\w*_kernel)\(", path.read_text(), re.MULTILINE))
    assert found
    for arch in budget.ARCHS:
        assert {kernel for language, kernel, a in table().rows if language == "triton" and a == arch} == found


# --- what holds for every kernel --------------------------------------------------------------------------------------
def test_the_table_knows_of_no_spill_stack_or_atomic():
    """Of the architectures that this run does not measure too."""
    for key, row in table().rows.items():
        assert row["atomics"] == 0, key
        assert key[0] == "triton" or (row["spills"], row["stack"]) == (0, 0), key  # Triton's: below


def test_no_registers_spill_and_no_array_is_in_local_memory():
    for variant in measured("cuda"):
        assert (variant.stack, variant.spills) == (0, 0), variant


def test_no_config_of_an_autotuner_spills():
    """But one on sm_100, by a word, which the table bounds: 7x7 in float16 with tiles of 16 x 4 x 4."""
    for variant in measured("triton"):
        assert variant.arch == 100 or (variant.stack, variant.spills) == (0, 0), variant
    for (language, kernel, arch), row in table().rows.items():
        assert language == "cuda" or row["stack"] == (8 if (kernel, arch) == ("forward_kernel", 100) else 0)


@LANGUAGES
def test_sums_do_not_depend_on_the_order_of_threads(language):
    for variant in measured(language):
        assert variant.atomics == 0, variant


@LANGUAGES
def test_a_multiprocessor_holds_256_threads_or_more(language):
    for variant in measured(language):
        assert variant.occupancy >= 256, variant


def promised(variant: Variant) -> int:
    """Bytes of a thread's accesses: V elements of T, where a CUDA kernel's template has a parameter V."""
    parameters = budget.cuda_kernels()[variant.kernel].parameters
    if "V" not in parameters:
        return 0
    arguments = dict(zip(parameters, re.search(r"<(.*)>", variant.name)[1].split(", ")))
    return int(arguments["V"]) * ELEMENT[arguments["T"]]


def test_kernels_of_vectors_move_whole_vectors():
    seen = set()
    for variant in measured("cuda"):
        if size := promised(variant):
            seen.add(size)
            assert size in variant.loads, variant
            if "backward_weight" not in variant.kernel:  # whose sums go to [split][tap][c], of another type
                assert size in variant.stores, variant
    assert 16 in seen


def test_triton_kernels_of_channels_last_move_16_bytes_at_once():
    """Where a thread's part of the tile is as many, and sizes allow it, which dense kernels are told as XK and YK."""
    seen = 0
    for variant in measured("triton"):
        tile = math.prod(map(int, re.findall(r"BLOCK_\w=(\d+)", variant.name)))
        size = {"fp32": 4, "fp16": 2, "i32": 4, "i16": 2}[re.search(r"\((\w+)", variant.name)[1]]
        told = re.search(r"\b(?:XK|YK)=(\d+)", variant.name)
        if told and int(told[1]) * size < 16:
            continue
        if "CHANNELS_LAST=True" in variant.name and tile * size >= 16 * variant.threads:
            seen += 1
            assert max(variant.loads) >= 16, variant
    assert seen


@LANGUAGES
def test_what_multiplies_matrices_uses_tensor_cores(language):
    """tl.dot, or mma in the source's file."""
    for variant in measured(language):
        assert variant.matrix > 0 or not variant.wants_matrix, variant


# --- occupancy --------------------------------------------------------------------------------------------------------
def header() -> Path | None:
    roots = [Path(NVCC).resolve().parents[1]] if NVCC else []
    return next((path for root in roots for path in root.glob("**/cuda_occupancy.h")), None)


def test_occupancy_is_cudas(tmp_path):
    if header() is None:
        pytest.skip("this CUDA toolkit brings no cuda_occupancy.h")
    random.seed(0)
    draws = [(a, 128, 32, 0) for a in budget.ARCHS]
    draws += [
        (random.choice(budget.ARCHS), random.randint(1, 1024), random.randint(16, 255), random.choice([0, 1, 64]) * r)
        for r in random.sample(range(1600), 1000)
    ]
    limits = budget.MULTIPROCESSORS
    lines = [f"{a // 10}, {a % 10}, {limits[a].warps * 32}, {limits[a].shared}, {t}, {r}, {s}," for a, t, r, s in draws]
    (tmp_path / "occupancy.cpp").write_text(
        """
        #include <cstdio>
        #include "cuda_occupancy.h"
        int main() {
          const int draws[][7] = {DRAWS};
          for (const auto& d : draws) {
            cudaOccDeviceProp gpu;
            gpu.computeMajor = d[0], gpu.computeMinor = d[1];
            gpu.maxThreadsPerBlock = 1024, gpu.maxThreadsPerMultiprocessor = d[2];
            gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536, gpu.warpSize = 32;
            gpu.sharedMemPerBlock = 49152, gpu.sharedMemPerMultiprocessor = d[3], gpu.numSms = 100;
            gpu.sharedMemPerBlockOptin = d[3] - 1024, gpu.reservedSharedMemPerBlock = 1024;
            cudaOccFuncAttributes kernel;
            kernel.maxThreadsPerBlock = 1024, kernel.numRegs = d[5], kernel.sharedSizeBytes = 0;
            kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
            kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = d[3] - 1024;
            kernel.numBlockBarriers = 1;
            cudaOccDeviceState state;
            cudaOccResult result;
            if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, d[4], d[6])) return 1;
            std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
          }
        }
        """.replace("DRAWS", "\n".join(f"{{{line}}}," for line in lines))
    )
    program = tmp_path / "occupancy"
    subprocess.run(
        ["g++", "-w", f"-I{header().parent}", "-o", program, tmp_path / "occupancy.cpp"], check=True, cwd=tmp_path
    )
    blocks = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert len(blocks) == len(draws)
    for draw, count in zip(draws, map(int, blocks)):
        assert budget.occupancy(*draw) == count * -(-draw[1] // 32) * 32, (draw, count)


# --- doctor ----------------------------------------------------------------------------------------------------------
def test_doctor_prints_the_table(capsys):
    assert main(["doctor", "--gpu-budget"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].startswith("cuda: nvcc ")
    for _, kernel, arch in table().rows:
        assert re.search(rf"^  {kernel}(?: .*\n +)*? +{arch} ", text, re.MULTILINE), (kernel, arch)


def test_doctor_says_where_the_table_is_not_installed(capsys, monkeypatch, tmp_path):
    """As in a wheel, which has no tests."""
    monkeypatch.setattr(gpu_budget, "TABLE", tmp_path / "gpu_budget.csv")
    monkeypatch.setattr(gpu_budget.text, "__defaults__", (gpu_budget.TABLE,))
    assert main(["doctor", "--gpu-budget"]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert "is not installed" in told.err and "clone" in told.err


# --- the checks themselves --------------------------------------------------------------------------------------------
VARIANT = Variant("cuda", "k", "k<float>", 90, 40, 0, 0, 0, 256, frozenset({16}), frozenset({16}), 0, 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"registers": 41}, "registers 40 -> 41 (worse), registers_sum 80 -> 81 (worse), occupancy"),
        ({"stack": 8, "spills": 2}, "stack 0 -> 8 (worse), spills 0 -> 2 (worse)"),
        ({"shared": 1024}, "shared 0 -> 1024 (worse)"),
        ({"atomics": 1}, "atomics 0 -> 1 (worse)"),
        ({"loads": frozenset({4})}, "loads16 2 -> 1 (worse)"),
        ({"stores": frozenset({8})}, "stores16 2 -> 1 (worse)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_worse_is_told(change, text):
    before = [replace(VARIANT, name=name) for name in ("k<float>", "k<double>")]
    before[1] = replace(before[1], arch=90)
    after = [before[0], replace(before[1], **change)]
    worse, different = budget.compare(budget.rows(before), budget.rows(after))
    assert len(worse) == 1 and worse[0].startswith(f"cuda k sm_90: {text}") and not different
    worse, different = budget.compare(budget.rows(after), budget.rows(before))
    assert not worse and len(different) == 1 and "(worse)" not in different[0]


def test_what_comes_and_goes_is_told():
    other = replace(VARIANT, kernel="l")
    assert budget.compare(budget.rows([VARIANT]), budget.rows([other])) == (
        [],
        ["cuda k sm_90: is gone", "cuda l sm_90: is new"],
    )
    more = budget.rows([VARIANT, replace(VARIANT, name="k<double>", registers=20)])
    worse, different = budget.compare(budget.rows([VARIANT]), more)  # a sum over more variants is no worse
    assert not worse and "variants 1 -> 2" in different[0]


def test_a_table_is_read_as_it_was_written():
    variants = [replace(VARIANT, arch=arch, kernel=kernel) for arch, kernel in itertools.product((80, 120), "ab")]
    written = budget.Table({"cuda": "nvcc 13.0"}, {"cuda": "0123"}, budget.rows(variants))
    assert budget.parse(written.text()) == written


def compiled(source: str, tmp_path: Path, arch: int) -> dict[str, Variant]:
    """Each kernel, by a part of its symbol."""
    (tmp_path / "planted.cu").write_text(source)
    cubin = tmp_path / "planted.cubin"
    budget.run(NVCC, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-o", cubin, tmp_path / "planted.cu")
    return {re.match(r"_Z\d+([a-z]+)", s)[1]: v for s, v in budget.read(cubin.read_bytes(), "cuda", arch).items()}


def test_planted_mistakes_in_cuda_are_seen(tmp_path):
    """Of nvcc: sums that a limit of registers cannot keep, an array that is indexed, an atomic, narrow accesses."""
    found = compiled(
        """
        #include <mma.h>
        __global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {
          float v[64];
        #pragma unroll
          for (int i = 0; i < 64; ++i) v[i] = x[i * n];
          __syncthreads();
        #pragma unroll
          for (int i = 0; i < 64; ++i) x[(63 - i) * n + 1] = v[i] * v[63 - i];
        }
        __global__ void __launch_bounds__(64) stack(float* x, int n) {
          float v[64];
          for (int i = 0; i < 64; ++i) v[i * n & 63] = x[i];
          x[n] = v[n & 63];
        }
        __global__ void __launch_bounds__(64) adds(float* x) { atomicAdd(x, 1.f); }
        __global__ void __launch_bounds__(64) wide(float4* x) {
          __shared__ float4 s[64];
          s[threadIdx.x] = x[threadIdx.x];
          __syncthreads();
          x[threadIdx.x] = s[63 - threadIdx.x];
        }
        __global__ void __launch_bounds__(32) multiplies(half* a, half* b, float* c) {
          using namespace nvcuda::wmma;
          fragment<matrix_a, 16, 16, 16, half, row_major> fa;
          fragment<matrix_b, 16, 16, 16, half, col_major> fb;
          fragment<accumulator, 16, 16, 16, float> fc;
          fill_fragment(fc, 0.f);
          load_matrix_sync(fa, a, 16);
          load_matrix_sync(fb, b, 16);
          mma_sync(fc, fa, fb, fc);
          store_matrix_sync(c, fc, 16, mem_row_major);
        }
        """,
        tmp_path,
        SPOT,
    )
    assert found["spills"].spills > 0
    assert found["spills"].threads == 1024
    assert found["stack"].stack > 0
    assert [name for name, variant in found.items() if variant.atomics] == ["adds"]
    assert found["adds"].loads | found["adds"].stores <= {4}
    assert found["wide"].loads == found["wide"].stores == {16}
    assert found["wide"].shared == 1024
    assert found["wide"].threads == 64
    assert [name for name, variant in found.items() if variant.matrix] == ["multiplies"]


def planted_triton(kernel, arch: int, dtype: str, warps: int = 4, **constants) -> Variant:
    signature = {
        name: "constexpr" if name in constants else f"*{dtype}" if len(name) == 1 else "i32"
        for name in kernel.arg_names
    }
    attributes = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    return budget.compiled(kernel, signature, constants, attributes, {"num_warps": warps}, arch)


@triton.jit
def _multiplies(a, b, c, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = i * SIZE + j
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(c.dtype.element_ty))


@triton.jit
def _holds(x, y, steps, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    for i in range(steps):
        value += tl.load(x + at + i * SIZE) * value
    tl.store(y + at, value)


@pytest.mark.parametrize("arch", budget.ARCHS)
def test_tl_dot_shows_tensor_cores(arch):
    variant = planted_triton(_multiplies, arch, "fp16", SIZE=64)
    assert variant.wants_matrix
    assert variant.matrix > 0
    assert variant.shared > 0
    assert variant.threads == 128


def test_tl_dot_without_tensor_cores_would_be_seen():
    variant = planted_triton(_multiplies, 75, "fp16", SIZE=32)  # this Triton has none for Turing
    assert variant.wants_matrix
    assert variant.matrix == 0


def test_planted_mistakes_in_triton_are_seen():
    """A tile of 512 elements a thread does not fit into registers."""
    assert planted_triton(_holds, 90, "fp32", warps=1, SIZE=16384).spills > 0
    assert planted_triton(_holds, 90, "fp32", warps=4, SIZE=512).spills == 0
