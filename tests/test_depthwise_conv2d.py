"""Depthwise convolution against the formula in float64, torch's own subsystems, and every kind of bad input.

The tests judge whatever answers for the CPU here: the compiled library, or the reference where none is built.
"""

import contextlib
import csv
import gc
import itertools
import sys
from pathlib import Path

import dense
import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact, assert_linear, assert_nonlinear
from convolution import (
    DTYPES,
    LAYOUTS,
    OWN,
    Geometry,
    assert_format,
    assert_library_is_of,
    assert_names,
    assert_op_answers,
    at_an_end,
    compiled,
    lay,
    on_capability,
    pad,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import flop_counter

import pytorch_ext
from pytorch_ext import _load, depthwise_conv1d, depthwise_conv2d
from pytorch_ext._geometry import same_padding

ROOT = Path(__file__).resolve().parent.parent
OPS = torch.ops.pytorch_ext
FORWARD = OPS.depthwise_conv2d.default
BACKWARD = OPS.depthwise_conv2d_backward.default
BACKWARD_INPUT = OPS.depthwise_conv2d_backward_input.default
BACKWARD_WEIGHT = OPS.depthwise_conv2d_backward_weight.default
FUSED = OPS.depthwise_conv2d_fused.default  # test_depthwise_conv2d_fused.py has more
ACTIVATIONS = {
    "none": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}  # fmt: skip
LIPSCHITZ = {
    "none": 1.0, "relu": 1.0, "relu6": 1.0, "silu": 1.1, "hardswish": 1.5, "hardsigmoid": 0.2, "sigmoid": 0.25,
    "tanh": 1.001, "gelu": 1.13, "gelu_tanh": 1.13,
}  # fmt: skip


# --- the formula, in float64 ------------------------------------------------------------------------------------------
def forward64(x, w, b, geometry) -> Tensor:
    (n, c, ih, iw), (co, _, kh, kw) = x.shape, w.shape
    x = x.repeat_interleave(co // c, 1) if co != c else x
    oh, ow = geometry.output(ih, iw, kh, kw)
    y = x.new_zeros(n, co, oh, ow)
    for u, v, part in geometry.taps(pad(x, geometry.padding), kh, kw, oh, ow):
        y.add_(part * w[None, :, 0, u, v, None, None])
    return y if b is None else y.add_(b[:, None, None])


def backward_input64(dy, w, ih, iw, c, geometry) -> Tensor:
    (n, co, oh, ow), (_, _, kh, kw) = dy.shape, w.shape
    top, bottom, left, right = geometry.padding
    dx = dy.new_zeros(n, co, ih + top + bottom, iw + left + right)
    for u, v, part in geometry.taps(dx, kh, kw, oh, ow):
        part.add_(dy * w[None, :, 0, u, v, None, None])
    return pad(dx, (-top, -bottom, -left, -right)).unflatten(1, (c, co // c)).sum(2)


def backward_weight64(dy, x, kh, kw, geometry) -> tuple[Tensor, Tensor]:
    co, c = dy.shape[1], x.shape[1]
    x = x.repeat_interleave(co // c, 1) if co != c else x
    dw = dy.new_zeros(co, 1, kh, kw)
    for u, v, part in geometry.taps(pad(x, geometry.padding), kh, kw, *dy.shape[2:]):
        dw[:, 0, u, v] = (dy * part).sum((0, 2, 3))
    return dw, dy.sum((0, 2, 3))


# --- tensors in every layout ------------------------------------------------------------------------------------------
def lay_weight(shape, dtype: torch.dtype, layout: str) -> Tensor:
    co, _, kh, kw = shape
    if layout == "packed":
        return torch.randn(kh, kw, 1, co).to(dtype).permute(3, 2, 0, 1)
    if layout == "sliced":
        return torch.randn(2 * co, 2, kh + 1, 2 * kw).to(dtype)[::2, 1:, 1:, ::2]
    if layout == "expanded":
        return torch.randn(co, 1, 1, 1).to(dtype).expand(co, 1, kh, kw)
    assert layout == "contiguous"
    return torch.randn(shape).to(dtype)


WEIGHT_LAYOUTS = ("contiguous", "packed", "sliced", "expanded")


def torchs(x, w, b, geometry, activation="none") -> Tensor:
    """What torch makes of it in the same dtype; 16-bit convolutions with one rounding, which is the best it can do.

    (Its own bfloat16 kernel of 31x31 takes minutes for 5 channels of 33x35.)
    """
    stride, padding, dilation = geometry
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, w, b, dtype = x.to(wide), w.to(wide), None if b is None else b.to(wide), x.dtype
    z = F.conv2d(pad(x, padding), w, b, stride, 0, dilation, groups=x.shape[1])
    return ACTIVATIONS[activation](z.to(dtype))


def check_forward(x, w, b, geometry: Geometry, activation: str = "none", against_torch: bool = False) -> None:
    """Bound 2 throughout, through the activation's Lipschitz constant; bound 3 where asked for: of few or repeated
    sums, the largest error that torch happens to make says nothing."""
    y = depthwise_conv2d(x, w, b, *geometry, activation)
    x64, w64, b64 = x.double(), w.double(), None if b is None else b.double()
    z64 = forward64(x64, w64, b64, geometry)
    magnitude = forward64(x64.abs(), w64.abs(), None if b is None else b64.abs(), geometry)
    y64 = ACTIVATIONS[activation](z64)
    assert y.dtype == x.dtype
    assert_linear(y, y64, magnitude, w.shape[2] * w.shape[3] + 1, LIPSCHITZ[activation])
    if against_torch and y.dtype != torch.float64:  # for which there is no better reference
        assert_nonlinear(y, y64, torchs(x, w, b, geometry, activation))
    assert_format(y, x)


def check_backward(dy, x, w, geometry: Geometry) -> None:
    (_, c, ih, iw), (co, _, kh, kw) = x.shape, w.shape
    dy64, x64, w64 = dy.double(), x.double(), w.double()
    dx64 = backward_input64(dy64, w64, ih, iw, c, geometry)
    magnitude = backward_input64(dy64.abs(), w64.abs(), ih, iw, c, geometry)
    sums = backward_weight64(dy64, x64, kh, kw, geometry)
    magnitudes = backward_weight64(dy64.abs(), x64.abs(), kh, kw, geometry)
    terms = dy.shape[0] * dy.shape[2] * dy.shape[3]
    apart = BACKWARD_INPUT(dy, w, ih, iw, c, *geometry), *BACKWARD_WEIGHT(dy, x, kh, kw, *geometry)
    for dx, dw, db in (apart, BACKWARD(dy, x, w, *geometry)):
        assert_linear(dx, dx64, magnitude, co // c * kh * kw)
        assert_format(dx, dy)
        assert_linear(dw, sums[0], magnitudes[0], terms)
        assert_linear(db, sums[1], magnitudes[1], terms)
        assert dw.is_contiguous()


def check_all(shape, co, k, geometry, *, bias=True, activation="none", dtype=torch.float32, layout="contiguous",
              weight_layout="contiguous", dy_layout=None, against_torch=False) -> None:  # fmt: skip
    x, w = lay(shape, dtype, layout), lay_weight((co, 1, *k), dtype, weight_layout)
    b = torch.randn(2 * co).to(dtype)[::2] if bias else None
    check_forward(x, w, b, geometry, activation, against_torch)
    dy = lay((shape[0], co, *geometry.output(*shape[2:], *k)), dtype, dy_layout or layout)
    check_backward(dy, x, w, geometry)
    fused = (dense.EVERYTHING, dense.Fused("prelu", residual="before"))[(co + k[0]) % 2]
    layer = dense.make_layer(shape, co, k, geometry, shape[1], fused, dtype=dtype, layout=layout,
                             weight_layout=weight_layout)  # fmt: skip
    y = FUSED(layer.x, layer.w, layer.options["bias"], *geometry, *layer.epilogue())
    dense.judge(y, layer, dense.expected(layer))


# --- values -----------------------------------------------------------------------------------------------------------
with open(ROOT / "bench/shapes/depthwise_conv2d.csv") as file:
    BENCH = list(csv.DictReader(file))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: f"{row['set']}: {row['name']}")
def test_bench_set(row, layout):
    c, h, w, k, s, d, p = (int(row[key]) for key in ("c", "h", "w", "k", "stride", "dilation", "padding"))
    if k == 31:
        c = 36  # of 128: the formula in float64 takes a second for every 10 channels
    geometry = Geometry((s, s), (p,) * 4, (d, d))
    n = 1 if c * h * w > 50_000 else 2
    check_all((n, c, h, w), c, (k, k), geometry, activation=row["activation"], layout=layout, against_torch=True)


def test_bench_set_is_whole():
    assert {row["set"] for row in BENCH} >= {"peers", "efficientnet_b0", "thundernet_146", "xception", "mobilefacenet"}
    assert len(BENCH) >= 43


sizes = st.sampled_from([1, 2, 3, 5, 7, 31]) | st.integers(1, 31)


@st.composite
def cases(draw):
    k = draw(sizes), draw(sizes)
    d = tuple(draw(st.sampled_from([1, 1, 2, 3, 12]) if size <= 7 else st.just(1)) for size in k)
    s = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding, image = [], []
    for size, dilation in zip(k, d):
        span = (size - 1) * dilation + 1
        before, after = draw(st.integers(0, span)), draw(st.integers(0, span))
        least = max(1, span - before - after)  # of 1x1 images, and kernels larger than the image, there are many
        image.append(least + draw(st.integers(0, 14)))
        padding += [before, after]
    c = draw(st.integers(1, 9) | st.sampled_from([8, 15, 16, 17, 32, 33]))
    shape = (draw(st.sampled_from([1, 2, 3, 0])), c, *image)
    return (shape, c * draw(st.sampled_from([1, 1, 2, 3])), k, Geometry(s, tuple(padding), d)), {
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "dtype": draw(st.sampled_from(DTYPES)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dy_layout": draw(st.sampled_from(LAYOUTS)),
        "weight_layout": draw(st.sampled_from(WEIGHT_LAYOUTS)),
    }


@settings(max_examples=max(500, settings.default.max_examples))  # HYPOTHESIS_PROFILE=explore asks for more
@given(cases(), st.integers(0, 2**31))
def test_drawn(case, seed):
    torch.manual_seed(seed)
    check_all(*case[0], **case[1])


REPRESENTATIVE = [  # shape, out channels, kernel, geometry: one for each road that a kernel may take
    ((2, 16, 9, 11), 16, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    ((1, 33, 12, 12), 33, (3, 3), Geometry((2, 2), (0, 1, 0, 1))),
    ((2, 17, 21, 22), 17, (3, 3), Geometry((2, 2), (0, 3, 1, 4))),
    ((1, 58, 10, 9), 58, (5, 5), Geometry((1, 1), (2, 2, 2, 2))),
    ((2, 17, 11, 14), 17, (5, 5), Geometry((2, 2), (1, 2, 1, 2))),
    ((1, 40, 13, 15), 40, (7, 7), Geometry((1, 1), (3, 3, 3, 3))),
    ((1, 24, 15, 13), 24, (7, 7), Geometry((2, 2), (3, 3, 3, 3))),
    ((1, 5, 33, 35), 5, (31, 31), Geometry((1, 1), (15, 15, 15, 15))),
    ((1, 18, 12, 33), 18, (9, 31), Geometry((1, 2), (4, 4, 15, 15))),
    ((2, 19, 14, 14), 19, (3, 3), Geometry((1, 1), (2, 2, 2, 2), (2, 2))),
    ((1, 34, 16, 15), 34, (3, 3), Geometry((1, 1), (12, 12, 12, 12), (12, 12))),
    ((1, 16, 9, 9), 16, (3, 5), Geometry((3, 1), (1, 0, 2, 3), (1, 2))),
    ((2, 6, 8, 9), 18, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    ((2, 512, 7, 7), 512, (7, 7), Geometry()),
    ((3, 8, 1, 1), 8, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    ((1, 3, 2, 3), 3, (7, 5), Geometry((1, 1), (4, 4, 3, 3))),
    ((2, 1, 1, 40), 1, (1, 4), Geometry((1, 3), (0, 0, 2, 1))),
    ((0, 4, 5, 5), 4, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    ((2, 12, 6, 7), 12, (1, 1), Geometry((2, 3))),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=lambda case: f"{case[0]} {case[2]}")
def test_representative(case, layout, dtype):
    shape, co, k, geometry = case
    activation = list(ACTIVATIONS)[(shape[1] + k[1]) % len(ACTIVATIONS)]
    check_all(shape, co, k, geometry, activation=activation, layout=layout, dtype=dtype)
    check_all(shape, co, k, geometry, bias=False, layout=layout, dtype=dtype, weight_layout="packed")


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_planes_of_any_size(k, stride, dilation):
    """Strips and bands of NCHW kernels end everywhere: a lane, a vector and a row before and after the plane's end."""
    reach = (k - 1) * dilation
    for size in [1, 2, 4, 5, 7, 8, 9, 14, 15, 16, 17, 24, 31, 32, 33, 47]:
        for before, after in [(reach // 2, reach // 2), (reach, 1), (0, reach)]:
            geometry = Geometry((stride,) * 2, (after, before, before, after), (dilation,) * 2)
            height = max(1, 34 - size)
            if min(size, height) + before + after > reach:
                check_all((2, 2, height, size), 2, (k, k), geometry, activation="relu6")


@pytest.mark.parametrize("dilation", [(2, 2), (1, 4), (3, 5), (2, 16), (1, 31), (1, 32)])
@pytest.mark.parametrize("c", [32, 33, 40, 96])
def test_dilated_columns_that_meet_in_the_cache(c, dilation):
    """Channels of 512, so that columns lie powers of two apart, and an image that ends within a band of four rows."""

    def sliced(*shape):
        return torch.randn(*shape, 512)[..., 3 : 3 + c].permute(0, 3, 1, 2)

    (dh, dw), w, b = dilation, torch.randn(c, 1, 3, 3), torch.randn(c)
    for rows, top, left in [(4, 1, 1), (7, 0, 2), (5, 2, 0)]:
        geometry = Geometry((1, 1), (top * dh, dh, left * dw + 1, dw), dilation)
        x = sliced(2, rows * dh + 1, 4 * dw + 3)
        oh, ow = geometry.output(*x.shape[2:], 3, 3)
        for activation in ["relu6", "silu"]:
            check_forward(x, w, b, geometry, activation)
        check_backward(sliced(2, oh, ow), x, w, geometry)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_nothing_is_read_outside(k, stride, first):
    geometry = Geometry((stride,) * 2, (k // 2,) * 4)
    for shape in [(1, 2, 4, 4), (2, 3, 7, 7), (1, 2, 14, 14), (1, 1, 5, 31), (1, 17, 9, 11)]:
        x, w = (at_an_end(torch.randn(s), first) for s in (shape, (shape[1], 1, k, k)))
        dy = at_an_end(torch.randn(shape[0], shape[1], *geometry.output(*shape[2:], k, k)), first)
        check_forward(x, w, None, geometry)
        check_backward(dy, x, w, geometry)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activations_far_out(activation, dtype, layout):
    """Sums of -60 to 60, and exactly 0, +-3 and 6, where the pieces meet."""
    z = torch.cat([torch.linspace(-60, 60, 31 * 64 - 5), torch.tensor([0.0, 3, -3, 6, -0.0])]).to(dtype)
    x = lay((1, 31, 8, 8), dtype, layout).copy_(z.view(1, 31, 8, 8))
    check_forward(x, torch.ones(31, 1, 1, 1, dtype=dtype), None, Geometry(), activation, against_torch=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_go_where_the_window_goes(value, layout):
    x = lay((1, 9, 8, 8), torch.float32, layout)
    x[0, 4, 3, 5] = value
    y = depthwise_conv2d(x, torch.ones(9, 1, 3, 3), None, 1, 1)
    hit = torch.zeros(1, 9, 8, 8, dtype=torch.bool)
    hit[0, 4, 2:5, 4:7] = True
    assert_exact(~y.isfinite(), hit)
    assert depthwise_conv2d(x, torch.ones(9, 1, 3, 3), None, 1, 1, 1, "relu")[hit].isnan().all() == (value != value)


def test_against_torch_conv2d():
    """The formula above says what torch's convolution says."""
    for shape, co, k, geometry in REPRESENTATIVE:
        if shape[0]:
            x, w, b = lay(shape, torch.float64, "contiguous"), torch.randn(co, 1, *k).double(), torch.randn(co).double()
            torch.testing.assert_close(forward64(x, w, b, geometry), torchs(x, w, b, geometry), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("name", "function"), [("conv2d", depthwise_conv2d), ("conv1d", depthwise_conv1d)])
def test_torchs_own_samples(name, function):
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = [info for info in op_db if info.name == f"nn.functional.{name}"]
    ran, spatial = 0, int(name[4])
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=False):
        options = dict(sample.kwargs)
        x, (w, b) = sample.input, sample.args
        if options.pop("groups", 1) != x.shape[-spatial - 1] or w.shape[1] != 1:
            continue
        expected = info.op(x, w, b, **sample.kwargs)
        if spatial == 1:
            options = {key: value[0] if isinstance(value, tuple) else value for key, value in options.items()}
        y = function(x, w, b, **options)
        torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
        y = function(x.float(), w.float(), None if b is None else b.float(), **options)
        torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
        ran += 1
    assert ran >= {1: 2, 2: 12}[spatial]


# --- arguments --------------------------------------------------------------------------------------------------------
def test_padding_forms():
    x, w = torch.randn(2, 4, 9, 8), torch.randn(4, 1, 3, 5)

    def raw(*padding):
        return FORWARD(x, w, None, [1, 1], padding, [1, 1], "none")

    assert_exact(depthwise_conv2d(x, w, padding=2), raw(2, 2, 2, 2))
    assert_exact(depthwise_conv2d(x, w, padding=(1, 2)), raw(1, 1, 2, 2))
    assert_exact(depthwise_conv2d(x, w, padding=[0, 1, 2, 3]), raw(0, 1, 2, 3))
    assert_exact(depthwise_conv2d(x, w, padding="valid"), raw(0, 0, 0, 0))
    assert_exact(depthwise_conv2d(x, w, padding="same"), raw(1, 1, 2, 2))
    torch.testing.assert_close(depthwise_conv2d(x, w, padding="same"), F.conv2d(x, w, padding="same", groups=4))


def test_same_is_tensorflows():
    """SPEC section 0's examples."""
    assert same_padding((224, 112), (3, 5), (2, 2), (1, 1)) == (0, 1, 1, 2)
    assert same_padding((65, 65), (3, 3), (2, 2), (1, 1)) == (1, 1, 1, 1)
    assert same_padding((10, 10), (1, 1), (3, 3), (1, 1)) == (0, 0, 0, 0)
    for size, k, s, d in itertools.product((1, 7, 8, 13), (1, 3, 4, 7), (1, 2, 3), (1, 2)):
        y = depthwise_conv2d(torch.randn(1, 2, size, size), torch.randn(2, 1, k, k), None, s, "same", d)
        assert y.shape == (1, 2, -(-size // s), -(-size // s))


def test_strides_and_dilations_per_axis_and_unbatched():
    x, w = torch.randn(4, 12, 14), torch.randn(4, 1, 3, 2)
    y = depthwise_conv2d(x, w, None, (2, 1), (1, 3), (1, 4))
    torch.testing.assert_close(y, F.conv2d(x, w, None, (2, 1), (1, 3), (1, 4), groups=4))
    assert y.shape[0] == 4
    assert_exact(
        depthwise_conv2d(x[None], w, None, 2, 1, 2), depthwise_conv2d(x[None], w, None, [2, 2], [1, 1], [2, 2])
    )


def test_raw_op_crops_with_negative_padding():
    """The double backward of a cropped convolution needs it; the public function refuses."""
    for layout in ("contiguous", "channels_last"):
        check_backward_only = Geometry((1, 2), (-1, 2, 1, -2))
        x, w = lay((2, 5, 9, 11), torch.float32, layout), torch.randn(5, 1, 3, 3)
        y = FORWARD(x, w, None, *check_backward_only, "none")
        torch.testing.assert_close(y, torchs(x, w, None, check_backward_only))
        check_backward(torch.randn_like(y), x, w, check_backward_only)


@pytest.mark.parametrize("padding", [0, 2, (3, 1), "same", "valid"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_conv1d(batch, stride, dilation, padding):
    x, w, b = torch.randn(*batch, 6, 20, requires_grad=True), torch.randn(12, 1, 4), torch.randn(12)
    y = depthwise_conv1d(x, w, b, stride, padding, dilation, "relu6")
    sides = padding if isinstance(padding, tuple) else (padding, padding)
    if padding == "valid":
        sides = (0, 0)
    if padding == "same":
        total = max((-(-20 // stride) - 1) * stride + 3 * dilation + 1 - 20, 0)
        sides = (total // 2, total - total // 2)
    if batch == (0,):
        assert y.shape[:2] == (0, 12)
        return
    expected = F.relu6(F.conv1d(F.pad(x, sides), w, b, stride, 0, dilation, groups=6))
    torch.testing.assert_close(y, expected)
    dx, expected_dx = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, expected))
    torch.testing.assert_close(dx, expected_dx, atol=1e-4, rtol=1e-4)


strides4 = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 12, 15, 24, 30, 60, 120]), min_size=4, max_size=4)


@settings(max_examples=400)
@given(st.tuples(*[st.integers(1, 4)] * 4), strides4 | st.permutations([1, 4, 16, 64]))
def test_memory_format_is_torchs_for_any_strides(shape, strides):
    """What answers on the CPU, the fake kernel and torch's own rule agree."""
    buffer = torch.randn(1 + sum((size - 1) * stride for size, stride in zip(shape, strides)))
    x, w = buffer.as_strided(shape, strides), torch.randn(shape[1], 1, 1, 1)
    y = depthwise_conv2d(x, w)
    fake = depthwise_conv2d(torch.empty_strided(shape, strides, device="meta"), w.to("meta"))
    assert y.stride() == fake.stride()
    assert_format(y, x)
    dx = BACKWARD_INPUT(x, w, *shape[2:], shape[1], *Geometry())
    assert dx.stride() == y.stride()
    assert_exact(y, (x * w[:, 0]).contiguous())


# --- torch's subsystems -----------------------------------------------------------------------------------------------
def leaf(*shape, dtype=torch.float64, layout="contiguous") -> Tensor:
    return lay(shape, dtype, layout).requires_grad_()


OPCHECK_LAYOUTS = [("contiguous", "contiguous"), ("channels_last", "packed"), ("reversed", "sliced")]


@pytest.mark.parametrize(("layout", "weight_layout"), OPCHECK_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["forward", "forward_activated", "backward", "backward_input", "backward_weight"])
def test_opcheck(op, dtype, layout, weight_layout):
    def tensor(t):
        return t.detach().requires_grad_()

    geometry = Geometry((2, 1), (1, 2, 0, 1), (1, 2))
    x, w = tensor(lay((2, 3, 7, 8), dtype, layout)), tensor(lay_weight((6, 1, 3, 3), dtype, weight_layout))
    dy = tensor(lay((2, 6, *geometry.output(7, 8, 3, 3)), dtype, layout))
    call = {
        "forward": (FORWARD, (x, w, None, *geometry, "none")),
        "forward_activated": (FORWARD, (x, w, tensor(torch.randn(6, dtype=dtype)), *geometry, "silu")),
        "backward": (BACKWARD, (dy, x, w, *geometry)),
        "backward_input": (BACKWARD_INPUT, (dy, w, 7, 8, 3, *geometry)),
        "backward_weight": (BACKWARD_WEIGHT, (dy, x, 3, 3, *geometry)),
    }[op]
    outcome = torch.library.opcheck(*call)
    assert len(outcome) == 4
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("co", "k", "geometry"),
    [
        (2, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
        (4, (3, 2), Geometry((2, 1), (0, 1, 2, 1), (1, 2))),
    ],
    ids=["3x3", "general"],
)
def test_gradients(activation, layout, co, k, geometry):
    x, w, b = leaf(2, 2, 4, 5, layout=layout), leaf(co, 1, *k), torch.randn(co, dtype=torch.float64, requires_grad=True)

    def f(x, w, b):
        return depthwise_conv2d(x, w, b, *geometry, activation)

    z = f(x, w, b) if activation == "none" else depthwise_conv2d(x, w, b, *geometry)
    for corner in (0, 6, 3, -3):  # finite differences straddle no corner
        assert (z - corner).abs().min() > 1e-5
    assert torch.autograd.gradcheck(f, (x, w, b))
    assert torch.autograd.gradgradcheck(f, (x, w, b))


def test_gradients_of_the_backward_ops():
    x, w, dy = leaf(2, 2, 4, 5), leaf(4, 1, 3, 2), leaf(2, 4, 2, 3)
    geometry = Geometry((2, 1), (0, 1, 0, 0), (1, 2))
    assert torch.autograd.gradcheck(lambda dy, w: BACKWARD_INPUT(dy, w, 4, 5, 2, *geometry), (dy, w))
    assert torch.autograd.gradcheck(lambda dy, x: BACKWARD_WEIGHT(dy, x, 3, 2, *geometry), (dy, x))
    assert torch.autograd.gradgradcheck(lambda dy, w: BACKWARD_INPUT(dy, w, 4, 5, 2, *geometry), (dy, w))
    assert torch.autograd.gradgradcheck(lambda dy, x: BACKWARD_WEIGHT(dy, x, 3, 2, *geometry), (dy, x))
    assert torch.autograd.gradcheck(lambda *tensors: BACKWARD(*tensors, *geometry), (dy, x, w))
    assert torch.autograd.gradgradcheck(lambda *tensors: BACKWARD(*tensors, *geometry), (dy, x, w))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_narrow_dtypes(activation, dtype):
    """Against float64 autograd through torch's convolution, as far as torch in the same dtype is (bound 3)."""
    leaves = [t.requires_grad_() for t in (lay((2, 5, 9, 9), dtype, "channels_last"), torch.randn(5, 1, 3, 3).to(dtype),
                                           torch.randn(5).to(dtype))]  # fmt: skip
    geometry = Geometry((1, 1), (1, 1, 1, 1))
    y = depthwise_conv2d(*leaves, *geometry, activation)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, leaves, dy)
    theirs = torch.autograd.grad(torchs(*leaves, geometry, activation), leaves, dy)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    exact = torch.autograd.grad(torchs(*doubles, geometry, activation), doubles, dy.double())
    for a, b, c in zip(ours, exact, theirs):
        assert_nonlinear(a, b, c, ulps=8)


@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
def test_gradients_only_where_wanted(wanted, activation):
    values = lay((2, 3, 6, 6), torch.float64, "contiguous"), torch.randn(6, 1, 3, 3).double(), torch.randn(6).double()
    everything = [v.clone().requires_grad_() for v in values]
    some = [v.clone().requires_grad_(want) for v, want in zip(values, wanted)]
    depthwise_conv2d(*everything, activation=activation).sum().backward()
    y = depthwise_conv2d(*some, activation=activation)
    assert y.requires_grad == any(wanted)
    if any(wanted):
        y.sum().backward()  # sum: its gradient is expanded, stride 0
    for tensor, reference, want in zip(some, everything, wanted):
        if want:
            assert_exact(tensor.grad, reference.grad)
        else:
            assert tensor.grad is None


def test_gradients_are_not_computed_in_vain():
    """A frozen weight costs no weight gradient, a leaf image no input gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    for frozen, absent in (("weight", BACKWARD_WEIGHT), ("x", BACKWARD_INPUT)):
        calls = []
        x = torch.randn(1, 2, 4, 4, requires_grad=frozen != "x")
        w = torch.randn(2, 1, 3, 3, requires_grad=frozen != "weight")
        y = depthwise_conv2d(x, w)
        with Log():
            y.sum().backward()
        assert absent not in calls
        assert BACKWARD not in calls
        assert {BACKWARD_WEIGHT, BACKWARD_INPUT} - {absent} <= set(calls)


def test_backward_keeps_the_memory_format():
    for layout in ("contiguous", "channels_last"):
        x, w = leaf(2, 3, 5, 5, layout=layout), leaf(3, 1, 3, 3)
        y = depthwise_conv2d(x, w, padding=1, activation="silu")
        for dy in (torch.randn_like(y), torch.randn(2, 3, 5, 5).double(), torch.ones(()).double().expand(2, 3, 5, 5)):
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
            assert_format(dx, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("k", [3, 5])
def test_long_sums_keep_their_digits(k, layout):
    """Bound 2 grows with the terms: of 0.8 million of one sign, a sum must still be right to more than four digits."""
    x, dy = torch.rand(64, 17, 112, 112), torch.full((64, 17, 112, 112), 1e-3)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, dy = x.contiguous(memory_format=form), dy.contiguous(memory_format=form)
    geometry = Geometry(padding=(k // 2,) * 4)
    for sums, sums64 in zip(
        BACKWARD_WEIGHT(dy, x, k, k, *geometry), backward_weight64(dy.double(), x.double(), k, k, geometry), strict=True
    ):
        assert ((sums - sums64) / sums64).abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic(layout, dtype):
    geometry = Geometry((1, 1), (1, 1, 1, 1))
    x, dy, w = (
        lay((5, 33, 29, 31), dtype, layout),
        lay((5, 33, 29, 31), dtype, layout),
        torch.randn(33, 1, 3, 3).to(dtype),
    )

    def results():
        return (
            FORWARD(x, w, None, *geometry, "silu"),
            BACKWARD_INPUT(dy, w, 29, 31, 33, *geometry),
            *BACKWARD_WEIGHT(dy, x, 3, 3, *geometry),
            *BACKWARD(dy, x, w, *geometry),
        )

    first = results()
    for _ in range(3):
        for a, b in zip(results(), first):
            assert_exact(a, b)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=lambda case: f"{case[0]} {case[2]}")
def test_threads_change_nothing(case, layout):
    shape, co, k, geometry = case
    x, w, b = lay((shape[0] * 3, *shape[1:]), torch.float32, layout), torch.randn(co, 1, *k), torch.randn(co)
    dy = lay((shape[0] * 3, co, *geometry.output(*shape[2:], *k)), torch.float32, layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            (
                FORWARD(x, w, b, *geometry, "silu"),
                BACKWARD_INPUT(dy, w, *shape[2:], shape[1], *geometry),
                *BACKWARD_WEIGHT(dy, x, *k, *geometry),
                *BACKWARD(dy, x, w, *geometry),
            )
        )
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert_exact(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    x, w, b = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(4, 1, 3, 3), torch.randn(4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = depthwise_conv2d(x, w, b, padding=1, activation="relu6")
        line = depthwise_conv1d(x[:, :, 0], w[:, :, 0], b)
        double = depthwise_conv2d(x.double(), w.double(), b.double())
        with torch.autocast("cpu", enabled=False):
            inner = depthwise_conv2d(x, w, b)
    assert (y.dtype, line.dtype, double.dtype, inner.dtype) == (dtype, dtype, torch.float64, torch.float32)
    assert_exact(y, depthwise_conv2d(x.to(dtype), w.to(dtype), b.to(dtype), padding=1, activation="relu6"))
    y.float().square().sum().backward()
    assert x.grad.dtype == b.grad.dtype == torch.float32
    expected = torch.autograd.grad(depthwise_conv2d(x, w, b, padding=1, activation="relu6").square().sum(), (x, b))
    for got, want in zip((x.grad, b.grad), expected):
        torch.testing.assert_close(got, want, atol=2e-2 * want.abs().max().item(), rtol=2e-2)


def compiled_steps(function, *args):
    """Output and gradients of function, eager."""
    leaves = [a.detach().clone().requires_grad_() for a in args]
    y = function(*leaves)
    return y, *torch.autograd.grad(y.sin().sum(), leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile_aot(activation, layout):
    def f(x, w, b):
        return depthwise_conv2d(x * 1.5, w, b, 2, "same", 1, activation) + 1

    args = lay((2, 4, 7, 8), torch.float32, layout), torch.randn(8, 1, 3, 3), torch.randn(8)
    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled_steps(g, *args), compiled_steps(f, *args)):
        assert_exact(a, b)
        assert a.stride() == b.stride()


def test_compile_inductor():
    def f(x, w, b):
        return depthwise_conv2d(x.relu(), w, b, 1, 1, 1, "silu").square()

    args = lay((1, 8, 6, 6), torch.float32, "channels_last"), torch.randn(8, 1, 3, 3), torch.randn(8)
    g = torch.compile(f, fullgraph=True)
    for a, b in zip(compiled_steps(g, *args), compiled_steps(f, *args)):
        torch.testing.assert_close(a, b)


def test_compile_dynamic():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def f(x, w):
        return depthwise_conv2d(x, w, None, (2, 1), "same", 1, "relu")

    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    aot = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    w = torch.randn(4, 1, 3, 3)
    for n, h, width in ((2, 8, 9), (3, 11, 17), (5, 32, 20)):
        x = torch.randn(n, 4, h, width)
        assert_exact(g(x, w), f(x, w))
        for a, b in zip(compiled_steps(aot, x, w), compiled_steps(f, x, w)):
            assert_exact(a, b)
    assert len(graphs) == 1, "dynamic shapes recompile"


def test_compile_raw_ops_dynamic():
    def f(x, w, dy):
        y = FORWARD(x, w, None, [1, 1], [1, 1, 1, 1], [1, 1], "hardswish")
        dx = BACKWARD_INPUT(dy, w, x.shape[2], x.shape[3], x.shape[1], [1, 1], [1, 1, 1, 1], [1, 1])
        return y, dx, BACKWARD_WEIGHT(dy, x, w.shape[2], w.shape[3], [1, 1], [1, 1, 1, 1], [1, 1])

    g = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for h in (5, 9):
        args = torch.randn(2, 3, h, h + 1), torch.randn(3, 1, 3, 3), torch.randn(2, 3, h, h + 1)
        for a, b in zip(torch.utils._pytree.tree_leaves(g(*args)), torch.utils._pytree.tree_leaves(f(*args))):
            assert_exact(a, b)


def test_export():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 1, 3, 3))

        def forward(self, x):
            return depthwise_conv2d(x, self.weight, padding=1, activation="relu")

    net, x = Net(), torch.randn(2, 4, 8, 8)
    n, h = torch.export.Dim("n", min=1, max=64), torch.export.Dim("h", min=2, max=512)
    for strict in (False, True):
        program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: n, 2: h}}, strict=strict)
        assert FORWARD in [node.target for node in program.graph.nodes]
        other = torch.randn(5, 4, 21, 8)
        assert_exact(program.module()(other), net(other))
    assert FORWARD in [node.target for node in program.run_decompositions().graph.nodes]


@pytest.mark.parametrize("in_dims", [d for d in itertools.product([0, 1, None], repeat=3) if d != (None,) * 3], ids=str)
def test_vmap(in_dims):
    batch, shapes = 3, ((2, 4, 5, 6), (8, 1, 3, 3), (8,))
    args = []
    for shape, dim in zip(shapes, in_dims):
        t = torch.randn(batch, *shape, dtype=torch.float64)
        args.append(t[0] if dim is None else t.movedim(0, dim))

    def f(x, w, b):
        return depthwise_conv2d(x, w, b, (2, 1), 1, 1, "silu")

    def one(i):
        return [a if d is None else a.select(d, i) for a, d in zip(args, in_dims)]

    y = torch.func.vmap(f, in_dims)(*args)
    assert_close = torch.testing.assert_close
    assert_close(y, torch.stack([f(*one(i)) for i in range(batch)]))
    g = torch.func.grad(lambda *a: f(*a).square().sum(), argnums=(0, 1, 2))
    for got, *wanted in zip(torch.func.vmap(g, in_dims)(*args), *(g(*one(i)) for i in range(batch))):
        assert_close(got, torch.stack(wanted))


def test_vmap_of_the_raw_ops_and_nested():
    x, w, dy = torch.randn(3, 2, 4, 5, 5), torch.randn(3, 4, 1, 3, 3), torch.randn(3, 2, 4, 3, 3)
    geometry = Geometry()
    y = torch.func.vmap(lambda x, w: FORWARD(x, w, None, *geometry, "none"))(x, w)
    dx = torch.func.vmap(lambda dy, w: BACKWARD_INPUT(dy, w, 5, 5, 4, *geometry))(dy, w)
    shared = torch.func.vmap(lambda dy: BACKWARD_INPUT(dy, w[0], 5, 5, 4, *geometry))(dy)
    dw, db = torch.func.vmap(lambda dy, x: BACKWARD_WEIGHT(dy, x, 3, 3, *geometry))(dy, x)
    both = torch.func.vmap(lambda *tensors: BACKWARD(*tensors, *geometry))(dy, x, w)
    both1 = torch.func.vmap(lambda x: BACKWARD(dy[0], x, w[0], *geometry))(x)
    dw1, _ = torch.func.vmap(lambda dy: BACKWARD_WEIGHT(dy, x[0], 3, 3, *geometry))(dy)
    for i in range(3):
        torch.testing.assert_close(y[i], FORWARD(x[i], w[i], None, *geometry, "none"))
        torch.testing.assert_close(dx[i], BACKWARD_INPUT(dy[i], w[i], 5, 5, 4, *geometry))
        torch.testing.assert_close(shared[i], BACKWARD_INPUT(dy[i], w[0], 5, 5, 4, *geometry))
        torch.testing.assert_close((dw[i], db[i]), BACKWARD_WEIGHT(dy[i], x[i], 3, 3, *geometry))
        torch.testing.assert_close([t[i] for t in both], list(BACKWARD(dy[i], x[i], w[i], *geometry)))
        torch.testing.assert_close([t[i] for t in both1], list(BACKWARD(dy[0], x[i], w[0], *geometry)))
        torch.testing.assert_close(dw1[i], BACKWARD_WEIGHT(dy[i], x[0], 3, 3, *geometry)[0])
    outer = torch.func.vmap(torch.func.vmap(depthwise_conv2d, (0, None)), (None, 0))(x, w)
    assert outer.shape == (3, 3, 2, 4, 3, 3)
    torch.testing.assert_close(outer[1, 2], depthwise_conv2d(x[2], w[1]))


def test_func_transforms():
    x, w = torch.randn(1, 2, 4, 4).double(), torch.randn(2, 1, 3, 3).double()

    def f(x, w):
        return depthwise_conv2d(x, w, None, 1, 1, 1, "hardswish")

    def t(x, w):
        return F.hardswish(F.conv2d(x, w, None, 1, 1, groups=2))

    def loss(g):
        return lambda *a: g(*a).sin().sum()

    for argnums in (0, 1):
        torch.testing.assert_close(torch.func.grad(loss(f), argnums)(x, w), torch.func.grad(loss(t), argnums)(x, w))
        torch.testing.assert_close(torch.func.jacrev(f, argnums)(x, w), torch.func.jacrev(t, argnums)(x, w))
        second = [torch.func.jacrev(torch.func.grad(loss(g), argnums), argnums)(x, w) for g in (f, t)]
        torch.testing.assert_close(*second)
    y, pull = torch.func.vjp(f, x, w)
    for a, b in zip(pull(torch.ones_like(y)), torch.func.vjp(t, x, w)[1](torch.ones_like(y))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("co", [6, 12])
@pytest.mark.parametrize("geometry", [Geometry(), Geometry((2, 1), (1, 1, 2, 2), (1, 2))], ids=str)
def test_flops_are_those_of_torchs_convolutions(geometry, co):
    """A channel at a time: torch counts the weight's gradient of grouped convolutions as if they were dense (2.13)."""
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 9, 8), (co, 1, 3, 5), (co,)))
    (stride, (top, _, left, _), dilation), m = geometry, co // 6
    forward, backward = flop_counter.FlopCounterMode(display=False), flop_counter.FlopCounterMode(display=False)
    with forward:
        y = FORWARD(x, w, b, *geometry, "none")
    with backward:
        y.sum().backward()
    expected_forward, expected_backward = 0, 0
    for i in range(6):
        conv = flop_counter.FlopCounterMode(display=False)
        with conv:
            y = F.conv2d(x[:, i : i + 1], w[m * i : m * i + m], b[m * i : m * i + m], stride, (top, left), dilation)
        expected_forward += conv.get_total_flops()
        with conv:
            y.sum().backward()
        expected_backward += conv.get_total_flops()
    assert forward.get_flop_counts()["Global"] == {OPS.depthwise_conv2d: expected_forward}
    assert backward.get_total_flops() == expected_backward == 2 * expected_forward
    with flop_counter.FlopCounterMode(display=False) as whole:
        F.conv2d(x, w, b, stride, (top, left), dilation, groups=6)
    assert whole.get_total_flops() == expected_forward


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_flops_of_each_backward_op(wanted):
    x = torch.randn(2, 6, 9, 8, requires_grad=wanted == "x")
    w = torch.randn(12, 1, 3, 5, requires_grad=wanted == "weight")
    with flop_counter.FlopCounterMode(display=False) as forward:
        y = depthwise_conv2d(x, w, activation="silu")
    with flop_counter.FlopCounterMode(display=False) as backward:
        y.sum().backward()
    # silu's derivative takes what silu was given, which is computed again
    assert backward.get_total_flops() == 2 * forward.get_total_flops() > 0


def test_double_backward_in_float32_and_channels_last():
    def penalty(f):
        x, w = (t.clone().requires_grad_() for t in (x0, w0))
        (dx,) = torch.autograd.grad(f(x, w).square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().mean(), (x, w))

    x0, w0 = lay((2, 9, 7, 7), torch.float32, "channels_last"), torch.randn(9, 1, 3, 3)
    ours = penalty(lambda x, w: depthwise_conv2d(x, w, None, 2, 1, 1, "silu"))
    theirs = penalty(lambda x, w: F.silu(F.conv2d(x, w, None, 2, 1, groups=9)))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-4)


def test_inference_mode_and_no_grad():
    x, w = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(4, 1, 3, 3, requires_grad=True)
    expected = depthwise_conv2d(x, w)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            y = depthwise_conv2d(x, w)
        assert not y.requires_grad
        assert_exact(y, expected.detach())


# --- implementations --------------------------------------------------------------------------------------------------
def representative(capability: str) -> None:
    """Runs in a process of its own (test_instruction_sets): asserts what is loaded, then runs the subset."""
    assert_library_is_of(capability)
    for case, layout, dtype in itertools.product(REPRESENTATIVE, LAYOUTS, DTYPES):
        test_representative(case, layout, dtype)
    print("library", _load.libraries.get("cpu", Path("none")).name)


@pytest.mark.parametrize("capability", ["default", "avx2", "own"])
def test_instruction_sets(capability):
    if capability == "avx2" and not OWN.startswith("avx"):
        pytest.skip(f"this CPU's capability is {OWN}: no AVX2")
    own = "avx512" if OWN.startswith(("avx512", "amx")) else OWN
    told, expected = (None, own) if capability == "own" else (capability, capability)
    assert on_capability("test_depthwise_conv2d", told, expected).startswith("library ")


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case, layout, dtype in itertools.product(REPRESENTATIVE, ("contiguous", "channels_last", "sliced"), DTYPES):
            test_representative(case, layout, dtype)


@compiled
def test_compiled_library_answers():
    assert_op_answers("depthwise_conv2d", lambda: depthwise_conv2d(torch.randn(1, 2, 4, 4), torch.randn(2, 1, 3, 3)))


# --- bad input --------------------------------------------------------------------------------------------------------
X, W, B = torch.zeros(2, 4, 6, 6), torch.zeros(4, 1, 3, 3), torch.zeros(4)
V, R = ValueError, RuntimeError
BAD = {  # arguments of the public function, exception, and what its text must name: argument, what came, what may come
    "x is no tensor": ((1.0, W), TypeError, ["x", "float", "tensor"]),
    "weight is no tensor": ((X, None), TypeError, ["weight", "NoneType", "tensor"]),
    "bias is no tensor": ((X, W, 1), TypeError, ["bias", "int", "tensor or None"]),
    "x of rank 2": ((X[0, 0], W), V, ["x must", "[6, 6]", "[n, c, h, w]"]),
    "x of rank 5": ((X[None], W), V, ["x must", "[1, 2, 4, 6, 6]", "[n, c, h, w]"]),
    "weight of rank 3": ((X, W[0]), R, ["weight must", "[1, 3, 3]", "[c, 1, kh, kw]"]),
    "weight of two inputs": ((X, torch.zeros(4, 2, 3, 3)), R, ["weight must", "[4, 2, 3, 3]", "[c, 1, kh, kw]"]),
    "weight of other channels": ((X, torch.zeros(6, 1, 3, 3)), R, ["weight must", "6", "multiple of x's 4 channels"]),
    "weight without channels": ((X, W[:0]), R, ["weight must", "0", "multiple of x's 4 channels"]),
    "x without channels": ((X[:, :0], W), R, ["x's 0 channels", "4"]),
    "empty kernel": ((X, torch.zeros(4, 1, 0, 3)), R, ["height", "6", "empty"]),
    "dtypes differ": ((X, W.double()), R, ["dtype", "float32", "float64"]),
    "integers": ((X.int(), W.int()), R, ["dtype", "int32", "float32, float64, float16 or bfloat16"]),
    "complex": ((X.cfloat(), W.cfloat()), R, ["dtype", "complex64", "float32, float64, float16 or bfloat16"]),
    "devices differ": ((X, W.to("meta")), R, ["device", "cpu", "meta"]),
    "devices differ, x": ((X.to("meta"), W), R, ["device", "cpu", "meta"]),
    "bias on another device": ((X, W, B.to("meta")), R, ["bias", "cpu", "meta"]),
    "bias of rank 2": ((X, W, B[None]), R, ["bias must", "[1, 4]", "[4]"]),
    "bias of other channels": ((X, W, torch.zeros(5)), R, ["bias must", "[5]", "[4]"]),
    "bias of another dtype": ((X, W, B.double()), R, ["bias must", "float64", "float32"]),
    "stride 0": ((X, W, None, 0), V, ["stride", "0", "positive"]),
    "stride negative": ((X, W, None, (1, -2)), V, ["stride", "(1, -2)", "positive"]),
    "stride of three": ((X, W, None, (1, 2, 3)), V, ["stride", "(1, 2, 3)", "pair"]),
    "stride float": ((X, W, None, 1.5), TypeError, ["stride", "1.5", "int"]),
    "stride tensor": ((X, W, None, B), TypeError, ["stride", "int"]),
    "dilation 0": ((X, W, None, 1, 0, 0), V, ["dilation", "0", "positive"]),
    "dilation negative": ((X, W, None, 1, 0, (-1, 1)), V, ["dilation", "(-1, 1)", "positive"]),
    "dilation text": ((X, W, None, 1, 0, "2"), TypeError, ["dilation", "'2'", "int"]),
    "padding negative": ((X, W, None, 1, -1), V, ["padding", "-1", "not be negative"]),
    "padding negative side": ((X, W, None, 1, (0, 0, -2, 0)), V, ["padding", "(0, 0, -2, 0)", "not be negative"]),
    "padding of three": ((X, W, None, 1, (1, 2, 3)), V, ["padding", "(1, 2, 3)", "(top, bottom, left, right)"]),
    "padding text": ((X, W, None, 1, "full"), V, ["padding", "'full'", "'same' or 'valid'"]),
    "padding float": ((X, W, None, 1, (1.0, 1)), TypeError, ["padding", "(1.0, 1)", "int"]),
    "padding a float": ((X, W, None, 1, 1.0), TypeError, ["padding", "1.0", "int"]),
    "padding none": ((X, W, None, 1, None), V, ["padding", "None", "int"]),
    "kernel too tall": ((X, torch.zeros(4, 1, 7, 1)), R, ["height", "6", "7", "empty"]),
    "kernel too wide": ((X, torch.zeros(4, 1, 1, 9), None, 1, 1), R, ["width", "8", "9", "empty"]),
    "dilated too far": ((X, W, None, 1, 0, (1, 3)), R, ["width", "6", "7", "empty"]),
    "empty image": ((X[:, :, :0], W), R, ["height", "0", "3", "empty"]),
    "activation unknown": ((X, W, None, 1, 0, 1, "swish"), V, ["activation", "swish", "none, relu, relu6, silu"]),
    "activation none": ((X, W, None, 1, 0, 1, None), TypeError, ["activation", "None", "none, relu, relu6, silu"]),
}  # fmt: skip


@pytest.fixture(params=["default", "reference"])
def implementation(request):
    with contextlib.nullcontext() if request.param == "default" else pytorch_ext.use(request.param):
        yield


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("implementation")
def test_bad_input(name):
    args, exception, words = BAD[name]
    with pytest.raises(exception) as caught:
        depthwise_conv2d(*args)
    assert type(caught.value) is exception
    assert_names(caught.value, words)


G = ([1, 1], [0, 0, 0, 0], [1, 1])
DY = torch.zeros(2, 4, 4, 4)
BAD_RAW = {
    "x of rank 3": (FORWARD, (X[0], W, None, *G, "none"), ["x must", "[4, 6, 6]", "[n, c, h, w]"]),
    "stride 0": (FORWARD, (X, W, None, [0, 1], G[1], G[2], "none"), ["stride", "[0, 1]", "positive"]),
    "stride of one": (FORWARD, (X, W, None, [2], G[1], G[2], "none"), ["stride", "[2]"]),
    "stride of three": (FORWARD, (X, W, None, [2, 1, 1], G[1], G[2], "none"), ["stride", "[2, 1, 1]"]),
    "dilation 0": (FORWARD, (X, W, None, G[0], G[1], [1, 0], "none"), ["dilation", "[1, 0]", "positive"]),
    "dilation of three": (FORWARD, (X, W, None, G[0], G[1], [1, 1, 1], "none"), ["dilation", "[1, 1, 1]"]),
    "padding of two": (FORWARD, (X, W, None, G[0], [1, 1], G[2], "none"), ["padding", "[1, 1]", "(top, bottom,"]),
    "cropped away": (FORWARD, (X, W, None, G[0], [-2, -2, 0, 0], G[2], "none"), ["height", "2", "3", "empty"]),
    "activation": (FORWARD, (X, W, None, *G, "elu"), ["activation", "'elu'", "none", "hardswish"]),
    "weight": (FORWARD, (X, W[:3], None, *G, "none"), ["weight", "3", "4 channels"]),
    "bias": (FORWARD, (X, W, B[:3], *G, "none"), ["bias", "[3]", "[4]"]),
    "bias dtype": (FORWARD, (X, W, B.half(), *G, "none"), ["bias", "float16", "float32"]),
    "dtype": (FORWARD, (X.half(), W, None, *G, "none"), ["dtype", "float16", "float32"]),
    "integer": (FORWARD, (X.long(), W.long(), None, *G, "none"), ["dtype", "int64", "bfloat16"]),
    "meta": (FORWARD, (X.to("meta"), W, None, *G, "none"), ["device", "meta", "cpu"]),
    "no tensor": (FORWARD, (1, W, None, *G, "none"), ["'x'", "Tensor", "int"]),
    "dy of rank 3": (BACKWARD_INPUT, (DY[0], W, 6, 6, 4, *G), ["dy must", "[4, 4, 4]", "[n, c, h, w]"]),
    "dy of another size": (BACKWARD_INPUT, (DY, W, 7, 6, 4, *G), ["dy must", "[5, 4]", "4, 4]"]),
    "dy of other channels": (BACKWARD_INPUT, (DY[:, :3], W, 6, 6, 4, *G), ["dy", "3", "4"]),
    "channels 0": (BACKWARD_INPUT, (DY, W, 6, 6, 0, *G), ["channels", "0", "positive multiple"]),
    "channels 3": (BACKWARD_INPUT, (DY, W, 6, 6, 3, *G), ["channels", "3", "positive multiple"]),
    "dy's dtype": (BACKWARD_INPUT, (DY.half(), W, 6, 6, 4, *G), ["dtype", "float16", "float32"]),
    "dgrad's stride": (BACKWARD_INPUT, (DY, W, 6, 6, 4, [-1, 1], *G[1:]), ["stride", "[-1, 1]", "positive"]),
    "dgrad's weight": (BACKWARD_INPUT, (DY, W[0], 6, 6, 4, *G), ["weight must", "[1, 3, 3]", "[c, 1, kh, kw]"]),
    "negative image": (BACKWARD_INPUT, (DY, W, -6, 6, 4, *G), ["height", "-6", "empty"]),
    "n differs": (BACKWARD_WEIGHT, (DY[:1], X, 3, 3, *G), ["dy and x", "[1, 4, 4, 4]", "[2, 4, 6, 6]"]),
    "wgrad's channels": (BACKWARD_WEIGHT, (DY[:, :3], X, 3, 3, *G), ["dy must", "3", "x's 4 channels"]),
    "wgrad's size": (BACKWARD_WEIGHT, (DY, X, 3, 2, *G), ["dy must", "[4, 5]", "4, 4]"]),
    "wgrad's kernel": (BACKWARD_WEIGHT, (DY, X, 0, 3, *G), ["height", "0", "empty"]),
    "wgrad's dtype": (BACKWARD_WEIGHT, (DY.double(), X, 3, 3, *G), ["dtype", "float32", "float64"]),
    "both: x of rank 3": (BACKWARD, (DY, X[0], W, *G), ["x must", "[4, 6, 6]", "[n, c, h, w]"]),
    "both: n differs": (BACKWARD, (DY[:1], X, W, *G), ["dy and x", "[1, 4, 4, 4]", "[2, 4, 6, 6]"]),
    "both: weight": (BACKWARD, (DY, X, W[:3], *G), ["dy and weight", "4", "3"]),
    "both: weight of rank 3": (BACKWARD, (DY, X, W[0], *G), ["weight must", "[1, 3, 3]", "[c, 1, kh, kw]"]),
    "both: dy of another size": (BACKWARD, (DY[..., :3], X, W, *G), ["dy must", "[4, 4]", "4, 3]"]),
    "both: dtype": (BACKWARD, (DY, X.double(), W, *G), ["dtype", "float32", "float64"]),
    "wgrad's padding": (BACKWARD_WEIGHT, (DY, X, 3, 3, G[0], [0, 0], G[2]), ["padding", "[0, 0]", "(top, bottom,"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RAW)
@pytest.mark.usefixtures("implementation")
def test_bad_input_of_the_raw_ops(name):
    op, args, words = BAD_RAW[name]
    with pytest.raises(RuntimeError) as caught:
        op(*args)
    assert_names(caught.value, words)


def test_bad_input_of_conv1d():
    x, w = torch.zeros(2, 4, 6), torch.zeros(4, 1, 3)
    for args, exception, words in (
        ((x[0, 0], w), V, ["x must", "[6]", "[n, c, length]"]),
        ((x, w[0]), V, ["weight must", "[1, 3]", "[c, 1, k]"]),
        ((x, None), TypeError, ["weight", "NoneType"]),
        ((x, w, None, (1, 2)), TypeError, ["stride", "(1, 2)", "int"]),
        ((x, w, None, 0), V, ["stride", "0", "positive"]),
        ((x, w, None, 1, (1, 2, 3)), V, ["padding", "(1, 2, 3)", "(left, right)"]),
        ((x, w, None, 1, -1), V, ["padding", "negative"]),
        ((x, w, None, 1, 0, 1.0), TypeError, ["dilation", "1.0", "int"]),
        ((x, torch.zeros(4, 1, 7)), R, ["width", "6", "7", "empty"]),
    ):
        with pytest.raises(exception) as caught:
            depthwise_conv1d(*args)
        assert_names(caught.value, words)


def test_fake_refuses_what_the_kernel_refuses():
    """Under FakeTensorMode, hence in torch.compile, the same inputs fail with the same type."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, (op, args, _) in BAD_RAW.items():
        if name in ("no tensor", "meta"):
            continue
        with FakeTensorMode() as mode, pytest.raises(RuntimeError):
            op(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args])


# --- 2**31 elements ---------------------------------------------------------------------------------------------------
@pytest.fixture
def big(gigabytes):
    """The shape of an image of more than 2**31 elements, 4.3 GB in bfloat16."""
    if "cpu" not in _load.libraries:
        pytest.skip(f"the reference would need 30 GB; compiled CPU library {_load.reasons['cpu']}")
    yield 2, 32, 4100, 8192
    gc.collect()


def bf16_image(shape, layout: str) -> Tensor:
    n, c, h, w = shape
    x = torch.empty(n, h, w, c, dtype=torch.bfloat16).permute(0, 3, 1, 2) if layout == "channels_last" else None
    x = torch.empty(shape, dtype=torch.bfloat16) if x is None else x
    row = torch.randn(n, c, 1, w).bfloat16()
    x[:, :, :64] = row
    for start in range(64, h, 64):
        x[:, :, start : start + 64] = row
    x += 0  # every page is touched
    return x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements_in(big, layout):
    """Reading far into x, and writing far into dx."""
    x = bf16_image(big, layout)
    assert x.numel() > 2**31
    x[-1, :, -64:] = torch.randn(big[1], 64, big[3]).bfloat16()
    geometry = Geometry((67, 61), (1, 0, 0, 1))
    w = torch.randn(big[1], 1, 3, 3).bfloat16()
    check_forward(x[-1:, :, -70:], w, None, Geometry((67, 61)))  # small, as a check of the check
    y = depthwise_conv2d(x, w, None, *geometry)
    oh, ow = geometry.output(*big[2:], 3, 3)
    expected = torch.zeros(2, big[1], oh, ow, dtype=torch.float64)
    dw64, dy = torch.zeros(big[1], 1, 3, 3).double(), torch.randn(2, big[1], oh, ow).bfloat16()
    magnitude, dw_magnitude = expected.clone(), dw64.clone()
    for u, v in itertools.product(range(3), range(3)):
        part = torch.zeros_like(expected)
        rows, columns = torch.arange(oh) * 67 + u - 1, torch.arange(ow) * 61 + v
        inside = (rows >= 0)[:, None] & (columns < big[3])[None]
        part[:] = torch.where(inside, x[:, :, rows.clamp(0)][..., columns.clamp(max=big[3] - 1)].double(), 0.0)
        weight = w[:, 0, u, v, None, None].double()
        expected += part * weight
        magnitude += (part * weight).abs()
        dw64[:, 0, u, v] = (part * dy).sum((0, 2, 3))
        dw_magnitude[:, 0, u, v] = (part * dy).abs().sum((0, 2, 3))
    assert_linear(y, expected, magnitude, 9)
    dw, _ = BACKWARD_WEIGHT(dy, x, 3, 3, *geometry)
    assert_linear(dw, dw64, dw_magnitude, 2 * oh * ow)
    del x, y
    if layout == "channels_last":
        dy = dy.contiguous(memory_format=torch.channels_last)
    dx = BACKWARD_INPUT(dy, w, *big[2:], big[1], *geometry)
    assert dx.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    # Strides are larger than the kernel: at every pixel at most one product, so the sum of squares factors.
    for n, i in ((0, 0), (1, oh - 1), (1, oh // 2)):
        top = i * 67 - 1
        strip = dx[n, :, max(top, 0) : top + 67].double()
        want = backward_input64(dy[n : n + 1, :, i : i + 1].double(), w.double(), 67, big[3], big[1],
                                Geometry((67, 61), (0, 0, 0, 1)))[0]  # fmt: skip
        want = want[:, 1:] if top < 0 else want[:, : strip.shape[1]]
        assert_linear(strip.bfloat16(), want, want.abs(), 1)
    nonzero = sum(int(torch.count_nonzero(image)) for image in dx.unbind(0))
    assert nonzero == int(torch.count_nonzero(dy)) * 9 - int(torch.count_nonzero(dy[:, :, 0])) * 3


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements_out(big, layout):
    """A small image, expanded along the batch in NCHW and along the multiplier in channels_last: only y is large."""
    if layout == "contiguous":
        x = torch.randn(1, 32, 64, 64).bfloat16().expand(16500, -1, -1, -1)
        w = torch.randn(32, 1, 1, 3).bfloat16()
    else:
        x = lay((130, 2, 64, 64), torch.bfloat16, "channels_last")
        w = torch.randn(2 * 2050, 1, 1, 3).bfloat16()
    y = depthwise_conv2d(x, w, None, 1, (0, 1))
    assert y.numel() > 2**31
    assert_format(y, x)
    for n in (0, x.shape[0] // 2, x.shape[0] - 1):
        check = forward64(x[n : n + 1].double(), w.double(), None, Geometry((1, 1), (0, 0, 1, 1)))
        magnitude = forward64(x[n : n + 1].double().abs(), w.double().abs(), None, Geometry((1, 1), (0, 0, 1, 1)))
        assert_linear(y[n : n + 1], check, magnitude, 3)
    if layout == "contiguous":  # all images are the same
        assert all(torch.equal(y[i : i + 500], y[:1].expand(y[i : i + 500].shape)) for i in range(0, len(y), 500))


# --- found by review --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [40, 1000, 2**31 - 1])
def test_dilation_beyond_the_image(memory_format, dilation):
    """Only the centre tap meets the image; the work must not grow with the dilation either."""
    x = torch.randn(2, 16, 8, 9).to(memory_format=memory_format)
    weight = torch.randn(16, 1, 3, 3)
    y = pytorch_ext.depthwise_conv2d(x, weight, None, 1, dilation, dilation)
    torch.testing.assert_close(y, x * weight[:, 0, 1, 1].view(1, -1, 1, 1))
    dx = torch.ops.pytorch_ext.depthwise_conv2d_backward_input(
        x, weight, 8, 9, 16, (1, 1), (dilation,) * 4, (dilation, dilation)
    )
    torch.testing.assert_close(dx, y)


@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
def test_geometry_beyond_32_bits_is_refused(name):
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 1, 3, 3)
    for like in (x, x.to("meta")):
        with pytest.raises(RuntimeError, match=f"{name} must not exceed 2147483647"):
            pytorch_ext.depthwise_conv2d(like, weight.to(like.device), **{name: 2**40})


def test_forward_mode_derivative_is_refused_rather_than_lost():
    forward_ad = torch.autograd.forward_ad
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    module = pytorch_ext.nn.DepthwiseConv2d(4, 4, 3).eval().requires_grad_(False)
    for call in (module, lambda t: pytorch_ext.depthwise_conv2d(t, weight)):
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward AD|forward mode|jvp"):
            call(forward_ad.make_dual(x, torch.ones_like(x)))


def test_use_blocks_may_end_in_any_order():
    first, second = pytorch_ext.use("reference"), pytorch_ext.use("reference")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    x = torch.randn(1, 4, 8, 8)
    pytorch_ext.depthwise_conv2d(x, torch.randn(4, 1, 3, 3))
    second.__exit__(None, None, None)
    assert not pytorch_ext._op._forced


def test_half_of_every_bit_pattern():
    """A one-tap kernel of ones gives back every float16 but NaN payloads, in each instruction set's conversion."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).view(1, 64, 32, 32)
    ones = torch.ones(64, 1, 1, 1, dtype=torch.float16)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = pytorch_ext.depthwise_conv2d(values.to(memory_format=memory_format), ones)
        assert torch.equal(y.isnan(), values.isnan())
        assert torch.equal(y[~y.isnan()], values[~values.isnan()])
