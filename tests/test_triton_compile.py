"""What Triton makes of our kernels for GPUs that are not here: no local memory, 16-byte loads, no atomics."""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from pytorch_ext.kernels import depthwise_conv2d as kernels  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHS = (80, 90, 100)
POINTERS = {"x", "y", "weight", "bias", "dweight", "dbias", "partial"}
SHAPES = ((3, 1), (5, 2), (7, 1))  # kernel size, stride

pytestmark = [
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton brings no cuobjdump"),
    pytest.mark.skipif(kernels.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled"),
]


def geometry(k: int, stride: int) -> dict:
    return {
        "MULTIPLIER": 1,
        "KH": k,
        "KW": k,
        "STRIDE_H": stride,
        "STRIDE_W": stride,
        "DILATION_H": 1,
        "DILATION_W": 1,
        "WIDE": False,
    }


def compiled(kernel, constants: dict, dtype: str, arch: int, one: tuple = (), warps: int = 4):
    """The kernel as the launcher would specialise it: strides in `one` are 1, pointers and the others divide by 16."""
    names = kernel.arg_names
    constants = {**constants, **{name: 1 for name in one if name in names}}
    types = {"partial": "*fp32"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, f"*{dtype}") if name in POINTERS else "i32"
        for name in names
    }
    divisible = [
        i for i, name in enumerate(names) if name in POINTERS or name == "c" or re.match(r"[xy]_[nchw]$", name)
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible if signature[names[i]] != "constexpr"}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


def usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", run.stdout)}


def judge(result, vectors: bool) -> None:
    used, text = usage(result.asm["cubin"]), result.asm["ptx"]
    assert used["STACK"] == 0
    assert used["LOCAL"] == 0
    assert 0 < used["REG"] <= 128
    assert not re.search(r"\b(atom|red)\.", text)
    if vectors:
        assert re.search(r"\bld\.global\S*\.v4", text)


LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
TARGETS = pytest.mark.parametrize("arch", ARCHS)
SIZES = pytest.mark.parametrize(("k", "stride"), SHAPES)


def unit_strides(last: bool) -> tuple:
    return ("x_c", "y_c") if last else ("x_w", "y_w")


def largest_tile(last: bool) -> dict:
    fitting = kernels._fitting(kernels.CONFIGS, {"c": 512, "ow": 112}, CHANNELS_LAST=last)
    assert fitting
    return max(
        (config.kwargs for config in fitting), key=lambda tile: tile["BLOCK_C"] * tile["BLOCK_H"] * tile["BLOCK_W"]
    )


@TARGETS
@LAYOUTS
@SIZES
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("kernel", "more"),
    [(kernels.forward_kernel, {"ACTIVATION": "silu"}), (kernels.backward_input_kernel, {})],
    ids=["forward", "backward_input"],
)
def test_forward_and_backward_input(kernel, more, dtype, k, stride, last, arch):
    constants = {**geometry(k, stride), **largest_tile(last), "CHANNELS_LAST": last, **more}
    judge(compiled(kernel, constants, dtype, arch, unit_strides(last)), vectors=last)


@TARGETS
@LAYOUTS
@SIZES
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_backward_weight(dtype, k, stride, last, arch):
    block = kernels.blocks(512, 112, 112, last, 256)
    constants = {**geometry(k, stride), **block, "BLOCK_V": min(triton.next_power_of_2(k), 8)}
    judge(compiled(kernels.backward_weight_kernel, constants, dtype, arch, unit_strides(last)), vectors=last)
    if k == 3 and not last:
        finish = {"TAPS": k * k, "BLOCK_S": 16, "BLOCK_T": 32}
        judge(compiled(kernels.backward_weight_finish_kernel, finish, dtype, arch), vectors=False)


@pytest.mark.parametrize("wide", [False, True])
def test_tensors_beyond_2_31_elements_are_indexed_in_64_bits(wide):
    constants = {**geometry(3, 1), **largest_tile(False), "CHANNELS_LAST": False, "ACTIVATION": "none", "WIDE": wide}
    text = compiled(kernels.forward_kernel, constants, "fp32", 90, unit_strides(False)).asm["ttir"]
    assert bool(re.search(r"arith\.muli .*xi64>", text)) == wide


def test_local_memory_would_be_seen():
    """The check itself: a tile of 512 elements a thread does not fit into registers."""
    constants = {**geometry(3, 1), "CHANNELS_LAST": True, "ACTIVATION": "none"}
    tile = {"BLOCK_C": 128, "BLOCK_H": 8, "BLOCK_W": 16}
    result = compiled(kernels.forward_kernel, {**constants, **tile}, "fp32", 90, unit_strides(True), warps=1)
    used = usage(result.asm["cubin"])
    assert used["STACK"] + used["LOCAL"] > 0
