"""pointwise_conv2d and dilated_conv2d of the CUDA library without a GPU: values against float64, every kernel, and
nothing that a GPU would punish. See tests/test_ptx_on_cpu_cuda.py."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_linear
from ptx_on_cpu import cuda

from pytorch_ext import _epilogue
from pytorch_ext._epilogue import Epilogue, channelwise

pytestmark = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LAYOUTS = ["contiguous", "channels_last"]
STEEP = 1.5  # no activation's slope is beyond this


@pytest.fixture
def session():
    with cuda.device(80) as session:
        yield session


def lay(t: torch.Tensor, layout: str) -> torch.Tensor:
    """In a memory format; "odd": channels_last, and a slice that no vector of 16 bytes fits."""
    if layout == "odd":
        wide = torch.zeros(t.shape[0], *t.shape[2:], t.shape[1] + 1, dtype=t.dtype)
        view = wide.permute(0, 3, 1, 2)[:, 1:]
        return view.copy_(t)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return t.contiguous(memory_format=form)


def drawn(*shape: int, dtype: torch.dtype, layout: str = "contiguous") -> torch.Tensor:
    t = torch.randn(*shape).to(dtype)
    return lay(t, layout) if len(shape) == 4 else t


def padded_convolution(x, w, stride, padding, dilation, groups):
    top, bottom, left, right = padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, stride, 0, dilation, groups)


def judge(y, x, w, bias, geometry, e: Epilogue) -> None:
    """Against float64; nonlinear epilogues by the slope of their activation."""

    def of(x, w, bias, e):
        return padded_convolution(x.double(), w.double(), *geometry), *(None if t is None else t.double() for t in (
            bias, e.slope, e.scale, e.residual, e.gate))  # fmt: skip

    sums, bias64, slope, scale, residual, gate = of(x, w, bias, e)
    wide = e._replace(slope=slope, scale=scale, residual=residual, gate=gate)
    expected = _epilogue.apply(sums, bias64, wide)
    magnitude = padded_convolution(x.double().abs(), w.double().abs(), *geometry)
    magnitude = magnitude if scale is None else magnitude * channelwise(scale.abs(), magnitude)
    for t in (bias64, residual):
        if t is not None:
            magnitude = magnitude + (t.abs() if t.dim() == 4 else channelwise(t.abs(), magnitude))
    magnitude = magnitude if gate is None else magnitude * channelwise(gate.abs(), magnitude)
    steep = max(STEEP, 1.0 if slope is None else float(slope.abs().max()))
    assert_linear(y, expected, magnitude, w[0].numel() + 4, 1.0 if e.activation == "none" else steep)


def epilogue(name: str, dtype, c: int, y_shape, layout: str, rich: bool, first: bool) -> tuple:
    """(bias, Epilogue)."""
    slope = drawn(c, dtype=dtype) if name == "prelu" else None
    alpha = {"leaky_relu": 0.1, "elu": 1.2}.get(name, 0.0)
    if not rich:
        return drawn(c, dtype=dtype), Epilogue(name, alpha, slope)
    residual = drawn(*y_shape, dtype=dtype, layout=layout)
    scale, gate = drawn(c, dtype=dtype), drawn(y_shape[0], c, dtype=dtype)
    return drawn(c, dtype=dtype), Epilogue(name, alpha, slope, scale, residual, first, gate)


# shape of x, co, kernel, (stride, padding, dilation, groups)
DENSE = {
    "3x3": ((2, 16, 7, 9), 24, (3, 3), ([1, 1], [1, 1, 1, 1], [1, 1], 1)),
    "dilated, strided": ((1, 16, 12, 11), 16, (3, 3), ([2, 3], [2, 1, 3, 2], [2, 3], 1)),
    "groups": ((2, 32, 5, 6), 48, (3, 2), ([2, 1], [1, 0, 1, 1], [1, 2], 2)),
    "odd channels": ((2, 5, 6, 7), 7, (3, 3), ([1, 2], [1, 1, 1, 1], [1, 1], 1)),
    "stem": ((1, 3, 13, 14), 16, (7, 7), ([2, 2], [3, 3, 3, 3], [1, 1], 1)),
    "many sums": ((1, 72, 4, 5), 72, (3, 3), ([1, 1], [1, 1, 1, 1], [1, 1], 1)),
    "one pixel": ((3, 8, 1, 1), 8, (3, 3), ([1, 1], [1, 1, 1, 1], [1, 1], 1)),
    "stride beyond the kernel": ((1, 8, 7, 8), 16, (1, 2), ([3, 4], [0, 0, 1, 0], [1, 1], 1)),
    "cropping": ((1, 8, 9, 9), 8, (3, 3), ([1, 1], [-1, 2, 1, -2], [1, 1], 1)),
    "one row": ((1, 16, 1, 70), 40, (1, 3), ([1, 1], [0, 0, 1, 1], [1, 1], 1)),
}


def run_dense(session, name: str, dtype, layout: str, activation: str = "none", rich: bool = False) -> None:
    shape, co, k, geometry = DENSE[name]
    stride, padding, dilation, groups = geometry
    x, w = drawn(*shape, dtype=dtype, layout=layout), drawn(co, shape[1] // groups, *k, dtype=dtype, layout=layout)
    y_shape = padded_convolution(x.double(), w.double(), *geometry).shape
    bias, e = epilogue(activation, dtype, co, y_shape, layout, rich, len(name) % 2 == 0)
    y = session.op("dilated_conv2d")(x, w, bias, *geometry, *e, "auto", None)
    judge(y, x, w, bias, geometry, e)
    dy = drawn(*y_shape, dtype=dtype, layout=layout)
    dx = session.op("dilated_conv2d_backward_input")(dy, w, *shape[2:], *geometry)
    dw, db = session.op("dilated_conv2d_backward_weight")(dy, x, *k, *geometry)
    judge_gradients(dx, dw, db, dy, x, w, geometry)


def judge_gradients(dx, dw, db, dy, x, w, geometry) -> None:
    def gradients(dy, x, w):
        x, w = (t.double().detach().requires_grad_() for t in (x, w))
        padded_convolution(x, w, *geometry).backward(dy.double())
        return x.grad, w.grad

    expected, magnitude = gradients(dy, x, w), gradients(dy.abs(), x.abs(), w.abs())
    pixels = dy.numel() // dy.shape[1]
    assert_linear(dx, expected[0], magnitude[0], w.numel() // w.shape[1] // geometry[3])
    assert_linear(dw, expected[1], magnitude[1], pixels)
    assert_linear(db, dy.double().sum((0, 2, 3)), dy.double().abs().sum((0, 2, 3)), pixels)


@pytest.mark.parametrize(("name", "dtype", "layout"), list(itertools.product(DENSE, DTYPES, [*LAYOUTS, "odd"])), ids=str)
def test_dense(name, dtype, layout, session):
    run_dense(session, name, dtype, layout)
    session.report.check()
