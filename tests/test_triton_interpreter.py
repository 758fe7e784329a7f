"""The Triton kernels' values, computed by Triton's interpreter on the CPU, against float64.

Triton decides whether it interprets when it is imported: the cases run in a process of their own, which is this file.
A program takes tens of milliseconds there, so shapes are small. The interpreter rounds bfloat16 wrongly (it truncates),
multiplies matrices of it wrongly (which is mended here) and lacks whatever the compiler does; compiled kernels are
another test's.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class DenseCase:
    name: str
    shape: tuple = (2, 5, 9, 8)
    co: int = 7
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1, 1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1
    fused: dict = field(default_factory=dict)  # of dense.Fused
    dtype: str = "float32"
    layout: str = "contiguous"
    weight_layout: str = "contiguous"

    @property
    def pointwise(self) -> bool:
        return self.name.startswith("pointwise")


def dense_cases() -> list[DenseCase]:
    one = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
    before = {"scale": True, "residual": "before", "gate": True}
    after = {"scale": True, "residual": "after", "gate": True}
    shapes = [
        DenseCase("plain"),
        DenseCase("channels of more than a block", (1, 40, 5, 6), 70),
        DenseCase("stride", kernel=(3, 2), stride=(2, 3), padding=(2, 1, 0, 3), shape=(2, 17, 9, 10)),
        DenseCase("dilation", dilation=(2, 3), padding=(2, 2, 3, 3), shape=(1, 18, 7, 9)),
        DenseCase("stride and dilation", (1, 20, 11, 9), 6, (4, 3), (4, 2), (3, 2, 0, 3), (2, 3)),
        DenseCase("cropped", kernel=(5, 1), padding=(-1, 2, 0, -2), stride=(3, 2), dilation=(1, 2)),
        DenseCase("groups", (2, 36, 6, 7), 40, groups=2, fused=after),
        DenseCase("groups of few channels", (1, 12, 6, 7), 18, groups=6, fused=before),
        DenseCase("1-D", (2, 5, 1, 40), 7, (1, 9), padding=(0, 0, 4, 4)),
        DenseCase("1x1 of padding", (2, 5, 4, 5), 7, (1, 1), fused=after),
        DenseCase("pointwise", (2, 20, 5, 6), 18, **one, fused=before),
        DenseCase("pointwise of stride", (2, 20, 5, 6), 18, stride=(2, 3), **one, fused={"input_gate": True}),
        DenseCase("pointwise shuffled", (2, 6, 5, 6), 12, groups=2, **one, fused={**after, "shuffle": 3}),
    ]
    found = [
        replace(s, name=f"{s.name} {layout} {dtype}", layout=layout, dtype=dtype)
        for s in shapes
        for layout, dtype in (("contiguous", "float32"), ("channels_last", "bfloat16"))
    ]
    found += [replace(s, name=f"{s.name} {t}", dtype=t) for s in shapes[::4] for t in ("float16", "float64")]
    layouts = ("sliced", "channels_last_sliced", "transposed", "reversed", "expanded")
    weights = ("packed", "transposed", "sliced", "expanded", "channels_last")
    found += [
        replace(shapes[6 * (i % 2)], name=f"strides {x} {w}", layout=x, weight_layout=w)
        for i, (x, w) in enumerate(zip(layouts, weights))
    ]
    found += [DenseCase("dense empty batch", (0, 4, 5, 5)), DenseCase("pointwise empty batch", (0, 4, 5, 5), **one)]
    parameter = {"leaky_relu": -0.3, "elu": 0.7}
    for i, name in enumerate(
        (*ACTIVATIONS, "hardsigmoid", "sigmoid", "tanh", "gelu", "gelu_tanh", *parameter, "prelu")
    ):
        fused = {"activation": name, "parameter": parameter.get(name), **(before if i % 2 else after)}
        found.append(DenseCase(f"active {name}", (1, 4, 5, 6), 7, (1, 2), fused=fused))
        if name not in (*parameter, "prelu"):
            entering = {"input_activation": name, "input_gate": i % 2 == 0}
            found.append(DenseCase(f"pointwise entered {name}", (2, 18, 3, 4), **one, fused=entering))
    found.append(DenseCase("one slope", (1, 4, 5, 6), 7, (1, 2), fused={"activation": "prelu", "one_slope": True}))
    return found


DENSE = {case.name: case for case in dense_cases()}


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


def check_dense(case: DenseCase) -> None:
    import dense
    import dense_triton
    import torch
    from convolution import Geometry

    torch.manual_seed(0)
    layer = dense.make_layer(
        case.shape, case.co, case.kernel, Geometry(case.stride, case.padding, case.dilation), case.groups,
        dense.Fused(**case.fused), dtype=getattr(torch, case.dtype), layout=case.layout,
        weight_layout=case.weight_layout,
    )  # fmt: skip
    dense_triton.check_forward(layer, case.pointwise)
    dense_triton.check_out(layer, case.pointwise)
    dense_triton.check_backward(layer, case.layout)


def mend_bfloat16_products() -> None:
    """The interpreter multiplies the bits of bfloat16 as if they were whole numbers (Triton 3.7.1, 3.8.0)."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    create_dot = interpreter.InterpreterBuilder.create_dot

    def wide(t):
        if t.dtype.scalar != tl.bfloat16:
            return t
        return interpreter.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(self, wide(a), wide(b), *rest)


def main() -> None:
    from conftest import poison

    poison(True)
    mend_bfloat16_products()
    for case in [*CASES.values(), *DENSE.values()]:
        try:
            (check if isinstance(case, Case) else check_dense)(case)
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


@pytest.mark.parametrize("name", DENSE)
def test_dense_convolutions(errors, name):
    assert errors[name] is None, errors[name]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_importing_the_library_imports_no_triton():
    code = "import sys, pytorch_ext; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0


if __name__ == "__main__":
    main()
