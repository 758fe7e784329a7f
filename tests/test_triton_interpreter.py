"""The Triton kernels' values, computed by Triton's interpreter on the CPU, against float64.

Triton decides whether it interprets when it is imported: the cases run in a process of their own, which is this file.
A program takes tens of milliseconds there, so shapes are small. The interpreter rounds bfloat16 wrongly (it truncates)
and lacks whatever the compiler does; compiled kernels are another test's.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish")
LIPSCHITZ = {"none": 1.0, "relu": 1.0, "relu6": 1.0, "silu": 1.1, "hardswish": 1.5}


@dataclass(frozen=True)
class Case:
    name: str
    n: int = 2
    c: int = 3
    multiplier: int = 1
    size: tuple = (7, 9)
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1, 1, 1)
    dilation: tuple = (1, 1)
    dtype: str = "float32"
    channels_last: bool = False
    activation: str = "none"
    bias: bool = True


def cases() -> list[Case]:
    shapes = [
        Case("plain"),
        Case("stride 2", stride=(2, 2), padding=(0, 1, 0, 1), kernel=(3, 3), size=(8, 9)),
        Case("dilation", dilation=(2, 3), padding=(2, 2, 3, 3)),
        Case("multiplier", multiplier=2, c=2, stride=(2, 1)),
        Case("asymmetric", kernel=(2, 5), padding=(0, 2, 3, 1), stride=(1, 3), bias=False),
        Case("cropped", kernel=(5, 1), padding=(-1, 2, 0, -2), stride=(3, 2), dilation=(1, 2)),
        Case("stride and dilation", stride=(2, 3), dilation=(3, 2), padding=(3, 3, 2, 2), size=(9, 9)),
    ]
    both = [
        replace(s, name=f"{s.name} {'nhwc' if last else 'nchw'} {dtype}", channels_last=last, dtype=dtype)
        for s in shapes
        for last in (False, True)
        for dtype in ("float32", "float16")
    ]
    wide = [Case("1-D", size=(1, 40), kernel=(1, 9), padding=(0, 0, 4, 4)), Case("double", dtype="float64")]
    empty = [Case("empty batch", n=0), Case("empty batch nhwc", n=0, channels_last=True)]
    active = [Case(a, activation=a, n=1, channels_last=i % 2 == 0) for i, a in enumerate(ACTIVATIONS[1:])]
    return both + wide + empty + active


CASES = {case.name: case for case in cases()}


# --- in the other process ---------------------------------------------------------------------------------------------
def check(case: Case) -> None:
    import torch
    import torch.nn.functional as F
    from bounds import assert_linear
    from pytorch_ext.kernels import depthwise_conv2d as kernels

    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    geometry = (case.stride, case.padding, case.dilation)
    (top, bottom, left, right), (kh, kw) = case.padding, case.kernel
    x = torch.randn(case.n, case.c, *case.size).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(case.c * case.multiplier, 1, kh, kw).to(dtype)
    bias = torch.randn(case.c * case.multiplier).to(dtype) if case.bias else None

    def conv(x, weight, bias):
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, case.stride, 0, case.dilation, case.c)

    def in64(dy, x, weight, bias):
        """y before the activation, dx, dweight."""
        x, weight = (t.to(torch.float64, copy=True).requires_grad_() for t in (x, weight))
        z = conv(x, weight, None if bias is None else bias.double())
        return z.detach(), *torch.autograd.grad(z, (x, weight), dy.double())

    y = kernels.depthwise_conv2d(x, weight, bias, *geometry, case.activation)
    dy = torch.randn(y.shape).to(dtype).contiguous(memory_format=layout)
    dx = kernels.depthwise_conv2d_backward_input(dy, weight, *case.size, case.c, *geometry)
    dweight, dbias = kernels.depthwise_conv2d_backward_weight(dy, x, kh, kw, *geometry)
    if case.n == 0:
        assert dweight.count_nonzero() == dbias.count_nonzero() == 0
        return
    assert y.is_contiguous(memory_format=layout)
    assert dx.is_contiguous(memory_format=layout)
    z64, dx64, dweight64 = in64(dy, x, weight, bias)
    size = in64(dy.abs(), x.abs(), weight.abs(), None if bias is None else bias.abs())
    act = {"none": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
    pixels = case.n * y.shape[2] * y.shape[3]
    assert_linear(y, act[case.activation](z64), size[0], kh * kw + 1, LIPSCHITZ[case.activation])
    assert_linear(dx, dx64, size[1], kh * kw * case.multiplier)
    assert_linear(dweight, dweight64, size[2], pixels)
    assert_linear(dbias, dy.double().sum((0, 2, 3)), dy.double().abs().sum((0, 2, 3)), pixels)
    for again, first in zip(kernels.depthwise_conv2d_backward(dy, x, weight, *geometry), (dx, dweight, dbias)):
        assert torch.equal(again, first)


def main() -> None:
    from conftest import poison

    poison(True)
    for case in CASES.values():
        try:
            check(case)
            error = None
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        print(json.dumps([case.name, error]), flush=True)


# --- in pytest's ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def errors() -> dict:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("name", CASES)
def test_depthwise_conv2d(errors, name):
    assert errors[name] is None, errors[name]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_importing_the_library_imports_no_triton():
    code = "import sys, pytorch_ext; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0


if __name__ == "__main__":
    main()
