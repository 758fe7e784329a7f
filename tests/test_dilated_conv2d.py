"""Dense convolution of any kernel, stride and dilation against the formula in float64, torch's own subsystems, and
every kind of bad input.

The tests judge whatever answers for the CPU here: the compiled library, or the reference where none is built. A padded
pixel is left out of the sums by some kernels and multiplied as a zero by others: what NaN and infinity in a *weight*
make of it is not tested.
"""

import contextlib
import csv
import itertools
import mmap
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact
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
)
from dense import (
    ACTIVATIONS,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    CLAMPED,
    EVERYTHING,
    OPS,
    WEIGHT_LAYOUTS,
    Fused,
    Layer,
    backward_input64,
    backward_weight64,
    check_backward,
    check_gradients,
    check_gradients_only_where_wanted,
    check_narrow_gradients,
    check_out,
    check_vmap,
    compiled_steps,
    conv64,
    expected,
    judge,
    judge_against_torch,
    judge_of_random_signs,
    leaves_of,
    make_layer,
    torchs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import flop_counter

import pytorch_ext
from pytorch_ext import _load, dilated_conv1d, dilated_conv2d

ROOT = Path(__file__).resolve().parent.parent
FORWARD = OPS.dilated_conv2d.default
FORWARD_OUT = OPS.dilated_conv2d_out.default
PACK = OPS.dilated_conv2d_pack.default
PLAIN = ("none", 0.0, None, None, None, False, None)  # of the epilogue
REST = (*PLAIN, "auto", None)
# What float32 sums by tiles of that many outputs may be off, over the largest sum (or what is typical of so many terms
# of that size, where sums cancel). The transforms' constants grow with the tile: these are not bounds of arithmetic but
# what was measured, doubled (test_winograd_is_as_exact_as_documented prints it).
WINOGRAD = {"winograd2": 2e-6, "winograd3": 1.2e-5, "winograd4": 8e-6, "winograd6": 4e-5}


def call(layer: Layer, **more):
    """The public function; the raw op where padding is negative, which the public function refuses."""
    options = dict(layer.options)
    bias = options.pop("bias", None)
    if min(layer.geometry.padding) < 0:
        out, algorithm = more.get("out"), more.get("algorithm", "auto")
        args = (layer.x, layer.w, bias, *layer.geometry, layer.groups, *layer.epilogue(), algorithm, None)
        return FORWARD(*args) if out is None else FORWARD_OUT(*args, out)
    return dilated_conv2d(layer.x, layer.w, bias, *layer.geometry, layer.groups, **options, **more)


def has_winograd(layer: Layer) -> bool:
    return tuple(layer.w.shape[2:]) == (3, 3) and layer.geometry.stride == (1, 1) and layer.x.dtype != torch.float64


def check_forward(layer: Layer, against_torch: bool = False, random_signs: bool = False) -> None:
    """Bound 2, and bound 3 where asked for; of what may be computed by Winograd, besides, what that may be off."""
    want, off = expected(layer), WINOGRAD["winograd6"] if has_winograd(layer) else 0.0
    y = call(layer)
    judge(y, layer, want, off)
    assert_format(y, layer.x)
    if off:
        y = call(layer, algorithm="direct")
        judge(y, layer, want)
        assert_format(y, layer.x)
    if against_torch:
        judge_against_torch(y, layer, want)
    if random_signs:
        judge_of_random_signs(y, layer, want)
    check_out(lambda out: call(layer, out=out), layer, want, off)


def check_all(shape, co, k, geometry, groups=1, fused=CLAMPED, *, dtype=torch.float32, layout="contiguous",
              weight_layout="contiguous", dy_layout=None, random_signs=False) -> None:  # fmt: skip
    layer = make_layer(shape, co, k, geometry, groups, fused, dtype=dtype, layout=layout, weight_layout=weight_layout)
    check_forward(layer, random_signs=random_signs)
    check_backward(lay(layer.y_shape, dtype, dy_layout or layout), layer.x, layer.w, geometry, groups)


def same(k: int, dilation: int = 1, stride: int = 1) -> Geometry:
    return Geometry((stride,) * 2, (k // 2 * dilation,) * 4, (dilation,) * 2)


# --- values -----------------------------------------------------------------------------------------------------------
with open(ROOT / "bench/shapes/dilated_conv2d.csv") as file:
    BENCH = list(csv.DictReader(file))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: f"{row['set']}: {row['name']}")
def test_bench_set(row, layout):
    """Every channel; large images are cut, and outputs of those that cannot be, so that float64 takes no minutes."""
    c, co, h, w, *k, s, d, p, groups = (
        int(row[key]) for key in ("c", "co", "h", "w", "kh", "kw", "stride", "dilation", "padding", "groups")
    )
    rows = max(5, 100_000_000 // (c * co * k[0] * k[1] // groups))  # of pixels
    if h * w > rows:
        h, w = (1, max(rows, 2 * d + 9)) if h == 1 else (max(9, d + 2), max(rows // max(9, d + 2), d + 3))
    co = co if d < 24 else 40
    vertical, horizontal = (p if size > 1 else 0 for size in k)
    geometry = Geometry((s, s), (vertical, vertical, horizontal, horizontal), (d, d))
    fused = Fused(row["activation"])
    check_all((1, c, h, w), co, k, geometry, groups, fused, layout=layout, random_signs=True)


def test_bench_set_is_whole():
    assert {row["set"] for row in BENCH} >= {"peers", "stems", "deeplabv3", "drn_d_22", "enet", "conv1d"}
    assert len(BENCH) >= 29


REPRESENTATIVE = [  # shape, out channels, kernel, geometry, groups, fused: one for each road that a kernel may take
    ((2, 16, 9, 11), 24, (3, 3), same(3), 1, CLAMPED),
    ((1, 64, 14, 14), 64, (3, 3), same(3), 1, Fused("hardswish", residual="before")),
    ((2, 35, 13, 10), 33, (3, 3), same(3, 2), 1, Fused("silu", scale=True, residual="after", gate=True)),
    ((1, 20, 12, 15), 18, (3, 3), same(3, 6), 1, Fused("gelu", gate=True)),
    ((1, 8, 7, 9), 16, (3, 3), same(3, 12), 1, Fused("elu", parameter=0.5, scale=True)),
    ((1, 3, 32, 30), 32, (3, 3), Geometry((2, 2), (0, 1, 0, 1)), 1, CLAMPED),
    ((1, 3, 21, 22), 20, (7, 7), same(7, 1, 2), 1, Fused("relu")),
    ((2, 17, 11, 14), 9, (5, 5), Geometry((2, 2), (1, 2, 1, 2)), 1, Fused("prelu")),
    ((1, 130, 7, 7), 40, (3, 3), same(3), 1, Fused("sigmoid", bias=False)),
    ((1, 12, 9, 9), 18, (3, 5), Geometry((3, 1), (1, 0, 2, 3), (1, 2)), 3, Fused("leaky_relu", parameter=0.2)),
    ((2, 40, 8, 8), 48, (3, 3), same(3), 4, Fused("tanh", residual="before", gate=True)),
    ((2, 6, 8, 9), 12, (3, 3), same(3), 6, Fused("gelu_tanh")),
    ((1, 18, 6, 33), 22, (1, 5), Geometry((1, 1), (0, 0, 2, 2)), 1, Fused("prelu", one_slope=True)),
    ((1, 18, 33, 6), 22, (5, 1), Geometry((1, 1), (2, 2, 0, 0)), 1, Fused("hardsigmoid")),
    ((3, 16, 7, 7), 257, (1, 1), Geometry(), 1, Fused("relu", scale=True, residual="after")),
    ((2, 12, 6, 7), 10, (1, 1), Geometry((2, 3)), 2, Fused()),
    ((2, 12, 5, 6), 8, (1, 1), Geometry((1, 1), (1, 2, 0, 3)), 1, EVERYTHING),
    ((2, 9, 8, 8), 7, (2, 2), Geometry((2, 2)), 1, Fused(bias=False)),
    ((1, 5, 9, 8), 6, (4, 4), Geometry((1, 1), (1, 2, 2, 1)), 1, CLAMPED),
    ((2, 8, 1, 40), 8, (1, 3), Geometry((1, 1), (0, 0, 8, 8), (1, 8)), 1, CLAMPED),
    ((1, 3, 2, 3), 4, (7, 5), Geometry((1, 1), (4, 4, 3, 3)), 1, CLAMPED),
    ((3, 8, 1, 1), 8, (3, 3), same(3), 1, Fused("silu")),
    ((2, 5, 9, 11), 6, (3, 3), Geometry((1, 2), (-1, 2, 1, -2)), 1, CLAMPED),
    ((0, 4, 5, 5), 4, (3, 3), same(3), 1, CLAMPED),
    ((1, 1, 12, 12), 1, (3, 3), same(3), 1, Fused()),
]


def case_id(case) -> str:
    shape, co, k, geometry, groups, _ = case
    return f"{shape} {co} {k} s{geometry.stride} d{geometry.dilation} g{groups}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=case_id)
def test_representative(case, layout, dtype):
    check_all(*case, layout=layout, dtype=dtype)


@pytest.mark.parametrize("weight_layout", WEIGHT_LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=case_id)
def test_weights_in_any_layout(case, weight_layout):
    for dtype, layout in ((torch.float32, "channels_last"), (torch.bfloat16, "contiguous")):
        check_all(*case, layout=layout, dtype=dtype, weight_layout=weight_layout)


sizes = st.sampled_from([1, 2, 3, 3, 3, 5, 7]) | st.integers(1, 9)
channels = st.integers(1, 20) | st.sampled_from([24, 31, 32, 33, 48, 63, 64, 65, 70])


@st.composite
def fusions(draw, pointwise: bool = False):
    activation = draw(st.sampled_from(list(ACTIVATIONS)))
    return Fused(
        activation,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([None, None, "before", "after"])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([None, -0.5, 0.3, 2.0])) if activation in ("leaky_relu", "elu") else None,
    )


@st.composite
def cases(draw):
    k = draw(sizes), draw(sizes)
    d = tuple(draw(st.sampled_from([1, 1, 1, 2, 3, 12, 40])) for _ in k)
    s = draw(st.sampled_from([(1, 1), (1, 1), (2, 2)]) | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding, image = [], []
    for size, dilation in zip(k, d):
        span = (size - 1) * dilation + 1
        before, after = draw(st.integers(0, min(span, 60))), draw(st.integers(-2, min(span, 60)))
        least = max(1, span - before - after)
        image.append(least + draw(st.integers(0, 14)))
        padding += [before, after]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    c, co = draw(channels) * groups, draw(channels) * groups
    if c * co * k[0] * k[1] * image[0] * image[1] > 30_000_000:
        c = co = groups
    shape = (draw(st.sampled_from([1, 2, 3, 0])), c, *image)
    return (shape, co, k, Geometry(s, tuple(padding), d), groups, draw(fusions())), {
        "dtype": draw(st.sampled_from(DTYPES)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dy_layout": draw(st.sampled_from(LAYOUTS)),
        "weight_layout": draw(st.sampled_from(WEIGHT_LAYOUTS)),
    }


@settings(max_examples=max(400, settings.default.max_examples))  # HYPOTHESIS_PROFILE=explore asks for more
@given(cases(), st.integers(0, 2**31))
def test_drawn(case, seed):
    torch.manual_seed(seed)
    check_all(*case[0], **case[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("k", [1, 3])
def test_channels_of_any_count(k, layout):
    """Vectors and tiles of input and output channels end everywhere."""
    counts = [*range(1, 36), 40, 47, 48, 49, 63, 64, 65, 70, 96, 100, 130, 257]
    for i, c in enumerate(counts):
        co = counts[(7 * i + 3) % len(counts)]
        check_all((1, c, 5, 6), co, (k, k), same(k), 1, Fused(residual="after"), layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("k", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 1, 1)])
def test_images_of_any_size(k, stride, dilation, layout):
    """Tiles of pixels, and Winograd's of rows and columns, end everywhere."""
    reach = (k - 1) * dilation
    for width in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 19, 24, 25, 31, 32, 33, 47, 64, 65, 199, 200]:
        height = max(1, 14 - width) if width < 14 else 1 + width % 3
        for before, after in [(reach // 2, reach // 2), (reach, 1), (0, reach)]:
            if min(width, height) + before + after > reach:
                geometry = Geometry((stride,) * 2, (after, before, before, after), (dilation,) * 2)
                check_all((2, 9, height, width), 10, (k, k), geometry, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_everything_behind_the_sums(activation, layout, dtype):
    """Each activation with every combination of what else there may be."""
    for bias, scale, residual, gate in itertools.product(
        [False, True], [False, True], [None, "before", "after"], [False, True]
    ):
        fused = Fused(activation, bias, scale, residual, gate, one_slope=gate)
        check_forward(make_layer((2, 5, 4, 6), 19, (1, 1), Geometry(), 1, fused, dtype=dtype, layout=layout))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activations_far_out(activation, dtype, layout):
    """Sums of -60 to 60, and exactly 0, +-3 and 6, where the pieces meet: a kernel that is the identity."""
    z = torch.cat([torch.linspace(-60, 60, 31 * 64 - 5), torch.tensor([0.0, 3, -3, 6, -0.0])]).to(dtype)
    x = lay((1, 31, 8, 8), dtype, layout).copy_(z.view(1, 31, 8, 8))
    options = {"activation": activation}
    if activation == "prelu":
        options["activation_parameter"] = torch.randn(31).to(dtype)
    layer = Layer(x, torch.eye(31, dtype=dtype)[:, :, None, None], Geometry(), 1, options)
    check_forward(layer, against_torch=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_where_exponentials_overflow(dtype):
    """Limits, not NaN, at +-1e4 and the largest number there is."""
    most = torch.finfo(dtype).max
    z = torch.tensor([-most, -1e4, -800.0, -104.0, 104.0, 800.0, 1e4, most], dtype=dtype)
    x, one = z.view(1, 1, 1, 8), torch.ones(1, 1, 1, 1, dtype=dtype)
    big = z.clamp(min=0)
    limits = {"none": z, "relu": big, "relu6": big.clamp(max=6), "silu": big, "gelu": big, "gelu_tanh": big,
              "sigmoid": (z > 0).to(dtype), "hardsigmoid": (z > 0).to(dtype), "tanh": z.sign(),
              "leaky_relu": torch.where(z > 0, z, z * 0.01), "elu": torch.where(z > 0, z, -1.0)}  # fmt: skip
    for name, limit in limits.items():
        y = dilated_conv2d(x, one, activation=name).view(-1)
        assert torch.isfinite(y).all(), (name, y)
        torch.testing.assert_close(y, limit, rtol=1e-6, atol=1e-30, msg=lambda text, name=name: f"{name}: {text}")


@compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("k", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 1, 1), (7, 2, 1)]
)
def test_nothing_is_touched_outside(k, stride, dilation, first):
    """Every tensor that goes in or out, weight and packed weight too, ends where memory does."""
    geometry = same(k, dilation, stride)
    for shape, co in [((1, 2, 4, 4), 3), ((2, 3, 7, 7), 17), ((1, 16, 14, 14), 16), ((1, 9, 5, 31), 33)]:
        for last in (False, True):

            def end(*sizes, last=last):
                if last and len(sizes) == 4:
                    n, c, h, w = sizes
                    return at_an_end(torch.randn(n, h, w, c), first).permute(0, 3, 1, 2)
                return at_an_end(torch.randn(sizes), first)

            layer = Layer(end(*shape), end(co, shape[1], k, k), geometry)
            layer.options = {"bias": end(co), "scale": end(co), "gate": end(shape[0], co), "activation": "silu",
                             "residual": end(*layer.y_shape)}  # fmt: skip
            want, out = expected(layer), end(*layer.y_shape).fill_(torch.nan)
            for algorithm in ("direct", "auto", *(WINOGRAD if has_winograd(layer) else ())):
                call(layer, out=out, algorithm=algorithm)
                judge(out, layer, want, WINOGRAD.get(algorithm, WINOGRAD["winograd6"] if has_winograd(layer) else 0.0))
                packed = PACK(layer.x, layer.w, *geometry, 1, algorithm)
                if packed.numel():
                    args = (layer.x, layer.w, layer.options["bias"], *geometry, 1, *layer.epilogue(), algorithm)
                    FORWARD_OUT(*args, at_an_end(packed, first), out.fill_(torch.nan))
                    judge(out, layer, want, WINOGRAD["winograd6"] if has_winograd(layer) else 0.0)
            check_backward(end(*layer.y_shape), layer.x, layer.w, geometry, 1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_go_where_the_window_goes(value, layout):
    x = lay((1, 9, 8, 8), torch.float32, layout)
    x[0, 4, 3, 5] = value
    y = dilated_conv2d(x, torch.ones(5, 9, 3, 3), None, 1, 1, algorithm="direct")
    hit = torch.zeros(1, 5, 8, 8, dtype=torch.bool)
    hit[0, :, 2:5, 4:7] = True
    assert_exact(~y.isfinite(), hit)
    relu = dilated_conv2d(x, torch.ones(5, 9, 3, 3), None, 1, 1, 1, 1, "relu", algorithm="direct")
    assert relu[hit].isnan().all() == (value != value)
    # By tiles, all of a tile is lost; what lies further than a tile and a window away is not.
    by_tiles = dilated_conv2d(x, torch.ones(5, 9, 3, 3), None, 1, 1)
    assert not by_tiles[hit].isfinite().any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_goes_through_every_activation(activation):
    x = torch.tensor([torch.nan, 1.0]).view(1, 1, 1, 2).expand(1, 1, 20, 2)
    parameter = torch.tensor([0.5]) if activation == "prelu" else None
    for layout in (x.contiguous(), x.contiguous(memory_format=torch.channels_last)):
        y = dilated_conv2d(layout, torch.ones(17, 1, 1, 1), activation=activation, activation_parameter=parameter)
        assert y[..., 0].isnan().all()
        assert y[..., 1].isfinite().all()


def test_against_torch_conv2d():
    """The formula above says what torch's convolution says."""
    for case in REPRESENTATIVE:
        if case[0][0]:
            layer = make_layer(*case, dtype=torch.float64, layout="contiguous")
            torch.testing.assert_close(expected(layer).y, torchs(layer), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("name", "function"), [("conv2d", dilated_conv2d), ("conv1d", dilated_conv1d)])
def test_torchs_own_samples(name, function):
    """All of them: there is none that the op could not express."""
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = [info for info in op_db if info.name == f"nn.functional.{name}"]
    ran = 0
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=False):
        options = dict(sample.kwargs)
        x, (w, b) = sample.input, sample.args
        want = info.op(x, w, b, **sample.kwargs)
        if name == "conv1d":
            options = {key: value[0] if isinstance(value, tuple) else value for key, value in options.items()}
        y = function(x, w, b, **options)
        torch.testing.assert_close(y, want, atol=1e-12, rtol=1e-12)
        y = function(x.float(), w.float(), None if b is None else b.float(), **options)
        torch.testing.assert_close(y, want.float(), atol=1e-4, rtol=1e-5)
        ran += 1
    assert ran >= {"conv1d": 9, "conv2d": 24}[name]


# --- SPEC section 10 --------------------------------------------------------------------------------------------------
def test_golden_one_dimensional():
    for dtype in DTYPES:
        x, w = torch.arange(10).to(dtype).view(1, 1, 10), torch.tensor([1, 2, 3]).to(dtype).view(1, 1, 3)
        y = dilated_conv1d(x, w, dilation=2)
        assert_exact(y, torch.tensor([16, 22, 28, 34, 40, 46]).to(dtype).view(1, 1, 6))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("rate", [2, 3, (2, 5)])
def test_equals_a_kernel_stuffed_with_zeros(rate, layout):
    """SPEC 10.1 (i)."""
    dh, dw = (rate, rate) if isinstance(rate, int) else rate
    x, w = lay((2, 6, 14, 17), torch.float64, layout), torch.randn(5, 6, 3, 3).double()
    stuffed = torch.zeros(5, 6, 2 * dh + 1, 2 * dw + 1).double()
    stuffed[:, :, ::dh, ::dw] = w
    y = dilated_conv2d(x, w, None, 1, (dh, dw), rate)
    torch.testing.assert_close(y, dilated_conv2d(x, stuffed, None, 1, (dh, dw)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [2, 4])
def test_equals_space_to_batch(rate):
    """SPEC 10.1 (ii): the image's sub-grids, each convolved densely, put together again."""
    x, w = torch.randn(2, 6, 16, 24).double(), torch.randn(5, 6, 3, 3).double()
    grids = x.unflatten(2, (-1, rate)).unflatten(4, (-1, rate)).permute(3, 5, 0, 1, 2, 4).flatten(0, 2)
    y = dilated_conv2d(grids, w, None, 1, 1).unflatten(0, (rate, rate, 2))
    y = y.permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)
    torch.testing.assert_close(dilated_conv2d(x, w, None, 1, rate, rate), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [8, 40, 1000, 2**31 - 1])
def test_dilation_beyond_the_image_leaves_the_centre_tap(memory_format, dilation):
    """SPEC 10.1 (iii); the work must not grow with the dilation either, whichever the algorithm."""
    x, w = torch.randn(2, 16, 8, 8).to(memory_format=memory_format), torch.randn(12, 16, 3, 3)
    geometry = ((1, 1), (dilation,) * 4, (dilation,) * 2, 1)
    want = F.conv2d(x, w[:, :, 1:2, 1:2])
    for algorithm in ("direct", "auto", *WINOGRAD):
        y = dilated_conv2d(x, w, None, 1, dilation, dilation, algorithm=algorithm)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    dx = BACKWARD_INPUT(y, w, 8, 8, *geometry)
    torch.testing.assert_close(dx, F.conv_transpose2d(y, w[:, :, 1:2, 1:2]), rtol=1e-4, atol=1e-4)
    dw, _ = BACKWARD_WEIGHT(y, x, 3, 3, *geometry)
    centre = torch.zeros(3, 3, dtype=torch.bool)
    centre[1, 1] = True
    assert not dw[:, :, ~centre].any()
    torch.testing.assert_close(dw[:, :, 1, 1], torch.einsum("nohw,nkhw->ok", y, x), rtol=1e-4, atol=1e-3)


def test_exponential_receptive_field():
    """SPEC 10.1: a stack of rates 1, 2, 4 with k = 3 sees 2^(n+1) - 1 pixels; 10.3: the context module's identity."""
    x, one = torch.zeros(1, 1, 31, 31), torch.ones(1, 1, 3, 3)
    x[0, 0, 15, 15] = 1
    for n, rate in enumerate((1, 2, 4), 1):
        x = dilated_conv2d(x, one, None, 1, rate, rate)
        reach = 2 ** (n + 1) - 1
        assert int((x[0, 0, 15].abs() > 0.5).sum()) == int((x[0, 0, :, 15].abs() > 0.5).sum()) == reach
    image, identity = torch.rand(1, 20, 33, 35), torch.zeros(20, 20, 3, 3)
    identity[range(20), range(20), 1, 1] = 1
    y = image
    for rate in (1, 1, 2, 4, 8, 16, 1):
        y = dilated_conv2d(y, identity, None, 1, rate, rate, 1, "relu", algorithm="direct")
    assert_exact(y, image)


# --- Winograd ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_winograd(algorithm, layout):
    """Tiles end everywhere, on sub-grids too; groups, epilogues, layouts and dtypes as ever."""
    for size in range(1, 20):
        for dilation in (1, 2, 3):
            geometry = Geometry((1, 1), (dilation, size % 4, dilation * 2, 2), (dilation,) * 2)
            shape = (1 + size % 2, 9 + size, size, 20 - size)
            if min(geometry.output(*shape[2:], 3, 3)) < 1:
                continue
            fused = EVERYTHING if size % 3 == 0 else Fused("relu")
            dtype = DTYPES[size % 4]
            layer = make_layer(shape, 7 + 2 * size, (3, 3), geometry, 1, fused, dtype=dtype, layout=layout)
            judge(call(layer, algorithm=algorithm), layer, expected(layer), WINOGRAD[algorithm])
    layer = make_layer((2, 24, 13, 11), 36, (3, 3), same(3), 4, Fused("silu"), dtype=torch.float32, layout=layout)
    judge(call(layer, algorithm=algorithm), layer, expected(layer), WINOGRAD[algorithm])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_winograd_of_outputs_alone_in_the_padding(layout):
    """Sub-grids of one, two, three and more outputs, with and without neighbours in the image, along either axis."""
    for case, (h, w) in enumerate([(5, 12), (8, 7), (10, 5), (11, 9), (15, 13), (14, 4), (19, 6), (3, 14), (13, 22)]):
        for padding in ((5, 5, 5, 5), (6, 5, 5, 7), (5, 4, 6, 5), (10, 11, 5, 0)):
            geometry = Geometry((1, 1), padding, (5, 5))
            if min(geometry.output(h, w, 3, 3)) < 1:
                continue
            fused = EVERYTHING if case % 2 else Fused("relu6")
            layer = make_layer((1 + case % 2, 18, h, w), 20, (3, 3), geometry, 1 + case % 2, fused,
                               dtype=DTYPES[case % 4], layout=layout)  # fmt: skip
            want = expected(layer)
            y = call(layer, algorithm="winograd3")
            judge(y, layer, want, WINOGRAD["winograd3"])
            bias = layer.options.get("bias")
            packed = PACK(layer.x, layer.w, *geometry, layer.groups, "winograd3")
            args = layer.x, layer.w, bias, *geometry, layer.groups, *layer.epilogue(), "winograd3", packed
            assert_exact(FORWARD(*args), y)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_layers_that_take_winograd(dtype, layout):
    """From 32 channels on both gradients are made by tiles, on every kind of sub-grid, where those win."""
    for n, c, h, w, co, groups, padding, dilation in [
        (2, 32, 15, 14, 36, 1, (1, 1, 1, 1), 1),
        (1, 40, 14, 23, 33, 2, (2, 0, 1, 2), 1),
        (3, 64, 13, 12, 48, 1, (2, 2, 2, 2), 2),
        (2, 100, 32, 31, 97, 1, (6, 6, 6, 6), 6),
        (4, 130, 14, 13, 121, 1, (5, 5, 5, 5), 5),  # sub-grids of two and three outputs
        (20, 96, 8, 14, 100, 1, (5, 5, 5, 5), 5),  # and of one
        (1, 132, 30, 31, 129, 1, (12, 12, 12, 12), 12),
    ]:
        geometry = Geometry((1, 1), padding, (dilation,) * 2)
        layer = make_layer((n, c * groups, h, w), co * groups, (3, 3), geometry, groups, Fused(bias=False),
                           dtype=dtype, layout=layout)  # fmt: skip
        dy = lay(layer.y_shape, dtype, layout)
        dx = BACKWARD_INPUT(dy, layer.w, h, w, *geometry, groups)
        dw, db = BACKWARD_WEIGHT(dy, layer.x, 3, 3, *geometry, groups)
        dy64, x64, w64 = dy.double(), layer.x.double(), layer.w.double()
        dw64, db64 = backward_weight64(dy64, x64, 3, 3, geometry, groups)
        for got, want in ((dx, backward_input64(dy64, w64, h, w, geometry, groups)), (dw, dw64), (db, db64)):
            off = WINOGRAD["winograd6"] * want.abs().max() + torch.finfo(dtype).eps * want.abs()
            assert ((got.double() - want).abs() <= off).all()
        assert_exact(BACKWARD_WEIGHT(dy, layer.x, 3, 3, *geometry, groups)[0], dw)
        torch.set_num_threads(2)
        assert_exact(BACKWARD_WEIGHT(dy, layer.x, 3, 3, *geometry, groups)[0], dw)
        torch.set_num_threads(1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_winograd_is_as_exact_as_documented(layout, capsys):
    """512 channels, the deepest 3x3 layers of networks: the error of each algorithm over the largest sum."""
    layer = make_layer((1, 512, 14, 14), 128, (3, 3), same(3), 1, Fused(bias=False), dtype=torch.float32, layout=layout)
    want = expected(layer)
    for algorithm, bound in {"direct": 4e-6, **WINOGRAD}.items():
        error = (call(layer, algorithm=algorithm).double() - want.y).abs().max() / want.y.abs().max()
        with capsys.disabled():
            print(f"\n{layout} {algorithm}: {error:.2g}", end="")
        assert error < bound


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_is_one_of_the_algorithms(dtype, layout):
    """What "auto" gives, one of the algorithms that can be named gives, to the bit."""
    for n, c, size, co, dilation in [
        (1, 5, 9, 6, 1),
        (1, 64, 14, 64, 1),
        (1, 256, 16, 256, 2),
        (1, 512, 7, 512, 1),
        (1, 64, 20, 64, 6),
        (2, 32, 30, 16, 1),
    ]:
        shape = n, c, size, size
        layer = make_layer(shape, co, (3, 3), same(3, dilation), 1, CLAMPED, dtype=dtype, layout=layout)
        y = call(layer)
        assert any(torch.equal(y, call(layer, algorithm=name)) for name in ("direct", *WINOGRAD))


def test_long_sums_keep_their_digits():
    """Bound 2 grows with the terms: of 0.4 million of one sign, a sum must still be right to more than four digits."""
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        x = torch.rand(4, 9, 112, 112).contiguous(memory_format=form)
        dy = torch.full((4, 10, 112, 112), 1e-3).contiguous(memory_format=form)
        geometry = same(3)
        for sums, sums64 in zip(
            BACKWARD_WEIGHT(dy, x, 3, 3, *geometry, 1), backward_weight64(dy.double(), x.double(), 3, 3, geometry, 1)
        ):
            assert ((sums - sums64) / sums64).abs().max() < 1e-4
        x = torch.rand(1, 4000, 6, 6).contiguous(memory_format=form)
        w = torch.full((8, 4000, 3, 3), 1e-3)
        y64 = conv64(x.double(), w.double(), geometry, 1)
        y = dilated_conv2d(x, w, None, 1, 1, algorithm="direct")
        assert ((y - y64) / y64).abs().max() < 3e-5  # a chain of additions: 6 times sqrt(terms) / 3 half ulps


# --- arguments --------------------------------------------------------------------------------------------------------
def test_padding_forms():
    x, w = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 5)

    def raw(*padding):
        return FORWARD(x, w, None, [1, 1], padding, [1, 1], 1, *REST)

    assert_exact(dilated_conv2d(x, w, padding=2), raw(2, 2, 2, 2))
    assert_exact(dilated_conv2d(x, w, padding=(1, 2)), raw(1, 1, 2, 2))
    assert_exact(dilated_conv2d(x, w, padding=[0, 1, 2, 3]), raw(0, 1, 2, 3))
    assert_exact(dilated_conv2d(x, w, padding="valid"), raw(0, 0, 0, 0))
    assert_exact(dilated_conv2d(x, w, padding="same"), raw(1, 1, 2, 2))
    torch.testing.assert_close(dilated_conv2d(x, w, padding="same"), F.conv2d(x, w, padding="same"))
    for size, k, s, d in itertools.product((7, 8, 13), (1, 3, 4, 7), (1, 2, 3), (1, 2)):
        y = dilated_conv2d(torch.randn(1, 2, size, size), torch.randn(2, 2, k, k), None, s, "same", d)
        assert y.shape == (1, 2, -(-size // s), -(-size // s))


def test_strides_and_dilations_per_axis_and_unbatched():
    x, w = torch.randn(4, 12, 14), torch.randn(6, 2, 3, 2)
    residual, gate = torch.randn(6, 6, 16), torch.randn(6)
    y = dilated_conv2d(x, w, None, (2, 1), (1, 3), (1, 4), 2)
    z = F.conv2d(x, w, None, (2, 1), (1, 3), (1, 4), 2)
    torch.testing.assert_close(y, z)
    residual = torch.randn_like(y)
    out = torch.empty_like(y)
    fused = dilated_conv2d(x, w, None, (2, 1), (1, 3), (1, 4), 2, "relu", residual=residual, gate=gate, out=out)
    assert fused.shape == y.shape
    torch.testing.assert_close(fused, (F.relu(z) + residual) * gate[:, None, None])
    assert out.data_ptr() == fused.data_ptr()
    pairs = dilated_conv2d(x[None], w, None, [2, 2], [1, 1], [2, 2], 2)
    assert_exact(dilated_conv2d(x[None], w, None, 2, 1, 2, 2), pairs)


@pytest.mark.parametrize("padding", [0, 2, (3, 1), "same", "valid"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_conv1d(batch, stride, dilation, padding):
    x, w, b = torch.randn(*batch, 6, 20, requires_grad=True), torch.randn(8, 3, 4), torch.randn(8)
    sides = padding if isinstance(padding, tuple) else (padding, padding)
    if padding == "valid":
        sides = (0, 0)
    if padding == "same":
        total = max((-(-20 // stride) - 1) * stride + 3 * dilation + 1 - 20, 0)
        sides = (total // 2, total - total // 2)
    size = (20 + sum(sides) - 3 * dilation - 1) // stride + 1
    residual, gate, scale = torch.randn(*batch, 8, size), torch.randn(*batch, 8), torch.randn(8)
    more = {"residual": residual, "residual_first": True, "gate": gate, "scale": scale}
    y = dilated_conv1d(x, w, b, stride, padding, dilation, 2, "relu6", **more)
    if batch == (0,):
        assert y.shape == (0, 8, size)
        return
    z = F.conv1d(F.pad(x, sides), w, None, stride, 0, dilation, groups=2) * scale[:, None] + b[:, None] + residual
    want = F.relu6(z) * gate[..., None]
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    dx, expected_dx = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, want))
    torch.testing.assert_close(dx, expected_dx, atol=1e-4, rtol=1e-4)


strides4 = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 12, 15, 24, 30, 60, 120]), min_size=4, max_size=4)


@settings(max_examples=200)
@given(st.tuples(*[st.integers(1, 4)] * 4), strides4 | st.permutations([1, 4, 16, 64]))
def test_memory_format_is_torchs_for_any_strides(shape, strides):
    """What answers on the CPU, the fake kernel and torch's own rule agree; and the values are right."""
    buffer = torch.randn(1 + sum((size - 1) * stride for size, stride in zip(shape, strides)))
    x, w = buffer.as_strided(shape, strides), torch.randn(3, shape[1], 1, 1)
    y = dilated_conv2d(x, w)
    fake = dilated_conv2d(torch.empty_strided(shape, strides, device="meta"), w.to("meta"))
    assert y.stride() == fake.stride()
    layer = Layer(x, w, Geometry())
    check_forward(layer)
    check_backward(torch.randn_like(y), x, w, Geometry(), 1)


# --- packed weights ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=case_id)
def test_packed_weight_gives_the_same_bits(case, layout, dtype):
    layer = make_layer(*case, layout=layout, dtype=dtype, weight_layout=WEIGHT_LAYOUTS[case[1] % 6])
    for algorithm in ("auto", "direct", *(WINOGRAD if has_winograd(layer) else ())):
        packed = PACK(layer.x, layer.w, *layer.geometry, layer.groups, algorithm)
        assert packed.dtype == torch.uint8
        args = layer.x, layer.w, layer.options.get("bias"), *layer.geometry, layer.groups, *layer.epilogue(), algorithm
        assert_exact(FORWARD(*args, packed), FORWARD(*args, None))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_packed_weight_is_what_is_read(layout):
    """The weight itself is not looked at: else packing saves nothing."""
    x, w = lay((1, 32, 14, 14), torch.float32, layout), torch.randn(48, 32, 3, 3)
    packed = PACK(x, w, *same(3), 1, "auto")
    if not packed.numel():
        pytest.skip("what answers here reads weights as they are")
    y = FORWARD(x, torch.full_like(w, torch.nan), None, *same(3), 1, *REST[:-1], packed)
    assert_exact(y, FORWARD(x, w, None, *same(3), 1, *REST))


@compiled
def test_packed_weight_of_another_layer_is_refused():
    x, w = lay((1, 32, 14, 14), torch.float32, "channels_last"), torch.randn(48, 32, 3, 3)
    packed = PACK(x, w, *same(3), 1, "direct")
    if not packed.numel():
        pytest.skip("what answers here reads weights as they are")
    other = lay((1, 16, 14, 14), torch.float32, "channels_last"), torch.randn(20, 16, 3, 3)
    swapped = lay((1, 48, 14, 14), torch.float32, "channels_last"), torch.randn(32, 48, 3, 3)
    for (x1, w1), wrong in [
        (other, packed),
        (swapped, packed),
        ((x.double(), w.double()), packed),
        ((x.contiguous(), w), packed),
        ((x, w), packed[:-1]),
        ((x, w), packed.view(torch.int8)),
        ((x, w), PACK(x, w, *same(3), 1, "winograd4")),
        ((x, w), torch.zeros_like(packed)),
    ]:
        with pytest.raises(RuntimeError) as caught:
            FORWARD(x1, w1, None, *same(3), 1, *PLAIN, "direct", wrong)
        assert_names(caught.value, ["packed was made for", "layer"])


@compiled
def test_packed_weight_of_another_image_is_refused():
    """Which sub-grids there are decides what Winograd's weights are: 14 pixels have some of two, 15 have not."""
    w = torch.randn(48, 32, 3, 3)
    wide, high, square = (torch.randn(1, 32, *size) for size in ((15, 14), (14, 15), (15, 15)))
    packed = PACK(wide, w, *same(3, 5), 1, "winograd3")
    FORWARD(wide, w, None, *same(3, 5), 1, *PLAIN, "winograd3", packed)
    for x in (high, square):
        with pytest.raises(RuntimeError, match="packed was made for"):
            FORWARD(x, w, None, *same(3, 5), 1, *PLAIN, "winograd3", packed)


# --- torch's subsystems -----------------------------------------------------------------------------------------------
def leaf(*shape, dtype=torch.float64, layout="contiguous") -> Tensor:
    return lay(shape, dtype, layout).requires_grad_()


OPCHECK_LAYOUTS = [("contiguous", "contiguous"), ("channels_last", "packed"), ("reversed", "sliced")]


@pytest.mark.parametrize(("layout", "weight_layout"), OPCHECK_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["forward", "fused", "prelu", "backward_input", "backward_weight"])
def test_opcheck(op, dtype, layout, weight_layout):
    geometry = Geometry((2, 1), (1, 2, 0, 1), (1, 2))
    fused = {"fused": EVERYTHING, "prelu": Fused("prelu", residual="before")}.get(op, Fused(bias=False))
    layer = make_layer((2, 4, 7, 8), 6, (3, 3), geometry, 2, fused, dtype=dtype, layout=layout,
                       weight_layout=weight_layout)  # fmt: skip
    for t in (layer.x, layer.w, *(t for t in layer.options.values() if isinstance(t, Tensor))):
        t.requires_grad_()
    dy = leaf(*layer.y_shape, dtype=dtype, layout=layout)
    call = {
        "backward_input": (BACKWARD_INPUT, (dy, layer.w, 7, 8, *geometry, 2)),
        "backward_weight": (BACKWARD_WEIGHT, (dy, layer.x, 3, 3, *geometry, 2)),
    }.get(op, (FORWARD, (layer.x, layer.w, layer.options.get("bias"), *geometry, 2, *layer.epilogue(), "auto", None)))
    outcome = torch.library.opcheck(*call)
    assert len(outcome) == 4
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", ["out", "pack"])
def test_opcheck_of_ops_without_a_derivative(op):
    layer = make_layer((2, 4, 7, 8), 6, (3, 3), same(3), 2, EVERYTHING, dtype=torch.float32, layout="contiguous")
    args = layer.x, layer.w, layer.options["bias"], *same(3), 2, *layer.epilogue(), "auto", None
    if op == "out":
        torch.library.opcheck(FORWARD_OUT, (*args, torch.empty(layer.y_shape)))
    else:
        torch.library.opcheck(PACK, (layer.x, layer.w, *same(3), 2, "auto"), test_utils=["test_schema"])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fused", [Fused(), Fused(scale=True, residual="after", gate=True, one_slope=True),
                                   Fused(scale=True, residual="before")], ids=["bias", "after", "before"])  # fmt: skip
def test_gradients(fused, activation, layout):
    fused = fused._replace(activation=activation)
    k, geometry = ((3, 3), same(3)) if fused == Fused(activation) else ((3, 2), Geometry((2, 1), (0, 1, 2, 1), (1, 2)))
    layer = make_layer((2, 4, 4, 5), 4, k, geometry, 2, fused, dtype=torch.float64, layout=layout)
    check_gradients(layer, call)


def test_gradients_of_the_backward_ops():
    x, w, dy = leaf(2, 4, 4, 5), leaf(6, 2, 3, 2), leaf(2, 6, 2, 3)
    geometry = Geometry((2, 1), (0, 1, 0, 0), (1, 2))
    assert torch.autograd.gradcheck(lambda dy, w: BACKWARD_INPUT(dy, w, 4, 5, *geometry, 2), (dy, w))
    assert torch.autograd.gradcheck(lambda dy, x: BACKWARD_WEIGHT(dy, x, 3, 2, *geometry, 2), (dy, x))
    assert torch.autograd.gradgradcheck(lambda dy, w: BACKWARD_INPUT(dy, w, 4, 5, *geometry, 2), (dy, w))
    assert torch.autograd.gradgradcheck(lambda dy, x: BACKWARD_WEIGHT(dy, x, 3, 2, *geometry, 2), (dy, x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_narrow_dtypes(activation, dtype):
    fused = Fused(activation, bias=False, residual="before")
    layer = make_layer((2, 5, 9, 9), 37, (3, 3), same(3), 1, fused, dtype=dtype, layout="channels_last")
    check_narrow_gradients(layer, lambda layer: call(layer, algorithm="direct"))


@pytest.mark.parametrize("fused", [Fused(), CLAMPED, EVERYTHING, Fused("prelu", residual="before", gate=True)])
def test_gradients_only_where_wanted(fused):
    """Each alone, and all but each, gives what all together give."""
    layer = make_layer((2, 4, 6, 6), 6, (3, 3), same(3), 2, fused, dtype=torch.float64, layout="contiguous")
    check_gradients_only_where_wanted(layer, call)


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
        w = torch.randn(2, 2, 3, 3, requires_grad=frozen != "weight")
        y = dilated_conv2d(x, w, activation="relu")
        with Log():
            y.sum().backward()
        assert absent not in calls
        assert {BACKWARD_WEIGHT, BACKWARD_INPUT} - {absent} <= set(calls)
        assert FORWARD not in calls, "relu's derivative shows in its output"


def test_backward_keeps_the_memory_format():
    for layout in ("contiguous", "channels_last"):
        x, w = leaf(2, 3, 5, 5, layout=layout), leaf(4, 3, 3, 3)
        y = dilated_conv2d(x, w, padding=1, activation="silu")
        for dy in (torch.randn_like(y), torch.randn(2, 4, 5, 5).double(), torch.ones(()).double().expand(2, 4, 5, 5)):
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
            assert_format(dx, x)


def results(layer: Layer, dy: Tensor):
    x, w, geometry, groups = layer.x, layer.w, layer.geometry, layer.groups
    return [
        call(layer),
        *([call(layer, algorithm=name) for name in ("direct", *WINOGRAD)] if has_winograd(layer) else []),
        BACKWARD_INPUT(dy, w, *x.shape[2:], *geometry, groups),
        *BACKWARD_WEIGHT(dy, x, *w.shape[2:], *geometry, groups),
    ]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic(layout, dtype):
    layer = make_layer((5, 33, 19, 21), 35, (3, 3), same(3), 1, EVERYTHING, dtype=dtype, layout=layout)
    dy = lay(layer.y_shape, dtype, layout)
    first = results(layer, dy)
    for _ in range(3):
        for a, b in zip(results(layer, dy), first):
            assert_exact(a, b)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=case_id)
def test_threads_change_nothing(case, layout):
    (n, *image), *rest = case
    layer = make_layer((n * 3, *image), *rest, dtype=torch.float32, layout=layout)
    dy = lay(layer.y_shape, torch.float32, layout)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(layer, dy))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert_exact(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    layer = make_layer((2, 4, 8, 8), 6, (3, 3), same(3), 1, EVERYTHING, dtype=torch.float32, layout="contiguous")
    layer, leaves = leaves_of(layer)
    with torch.autocast("cpu", dtype=dtype):
        y = call(layer)
        line = dilated_conv1d(layer.x[:, :, 0], layer.w[:, :, 0])
        double = dilated_conv2d(layer.x.double(), layer.w.double())
        with torch.autocast("cpu", enabled=False):
            inner = dilated_conv2d(layer.x, layer.w)
    assert (y.dtype, line.dtype, double.dtype, inner.dtype) == (dtype, dtype, torch.float64, torch.float32)
    narrow = Layer(layer.x.to(dtype), layer.w.to(dtype), layer.geometry, 1,
                   {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in layer.options.items()})  # fmt: skip
    assert_exact(y, call(narrow))
    y.float().square().sum().backward()
    wanted = torch.autograd.grad(call(layer).square().sum(), list(leaves.values()))
    for t, want in zip(leaves.values(), wanted):
        assert t.grad.dtype == torch.float32
        torch.testing.assert_close(t.grad, want, atol=4e-2 * want.abs().max().item(), rtol=4e-2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile_aot(activation, layout):
    def f(x, w, b, scale, gate):
        parameter = scale if activation == "prelu" else None
        return dilated_conv2d(x * 1.5, w, b, 2, "same", 1, 2, activation, activation_parameter=parameter, scale=scale,
                              residual=x[:, :, ::2, ::2].repeat(1, 2, 1, 1), gate=gate) + 1  # fmt: skip

    args = lay((2, 4, 7, 8), torch.float32, layout), torch.randn(8, 2, 3, 3), *torch.randn(2, 8), torch.randn(2, 8)
    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled_steps(g, *args), compiled_steps(f, *args)):
        assert_exact(a, b)
        assert a.stride() == b.stride()


def test_compile_inductor():
    def f(x, w, b):
        return dilated_conv2d(x.relu(), w, b, 1, 1, 1, 1, "silu").square()

    args = lay((1, 8, 6, 6), torch.float32, "channels_last"), torch.randn(8, 8, 3, 3), torch.randn(8)
    g = torch.compile(f, fullgraph=True)
    for a, b in zip(compiled_steps(g, *args), compiled_steps(f, *args)):
        torch.testing.assert_close(a, b)


def test_compile_inductor_into_a_slice():
    def f(x, w):
        y = x.new_zeros(1, 12, 6, 6)
        dilated_conv2d(x, w, None, 1, 1, out=y[:, 4:])
        return y + 1

    args = torch.randn(1, 8, 6, 6), torch.randn(8, 8, 3, 3)
    with torch.no_grad():
        assert_exact(torch.compile(f, fullgraph=True)(*args), f(*args))


def test_compile_dynamic():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def f(x, w):
        return dilated_conv2d(x, w, None, (2, 1), "same", 1, 2, "relu")

    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    aot = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    w = torch.randn(8, 3, 3, 3)
    for n, h, width in ((2, 10, 9), (4, 11, 17), (5, 32, 20)):  # sizes that are equal at first count as one
        x = torch.randn(n, 6, h, width)
        assert_exact(g(x, w), f(x, w))
        for a, b in zip(compiled_steps(aot, x, w), compiled_steps(f, x, w)):
            assert_exact(a, b)
    assert len(graphs) == 1, "dynamic shapes recompile"


def test_compile_raw_ops_dynamic():
    g1 = ([1, 1], [1, 1, 1, 1], [1, 1], 1)

    def f(x, w, dy):
        y = FORWARD(x, w, None, *g1, "hardswish", *REST[1:])
        dx = BACKWARD_INPUT(dy, w, x.shape[2], x.shape[3], *g1)
        return y, dx, BACKWARD_WEIGHT(dy, x, w.shape[2], w.shape[3], *g1)

    g = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for h in (5, 9):
        args = torch.randn(2, 3, h, h + 1), torch.randn(4, 3, 3, 3), torch.randn(2, 4, h, h + 1)
        for a, b in zip(torch.utils._pytree.tree_leaves(g(*args)), torch.utils._pytree.tree_leaves(f(*args))):
            assert_exact(a, b)


def test_export():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x):
            return dilated_conv2d(x, self.weight, padding=2, dilation=2, activation="relu")

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
    batch, shapes = 3, ((2, 4, 5, 6), (8, 2, 3, 3), (8,))
    args = []
    for shape, dim in zip(shapes, in_dims):
        t = torch.randn(batch, *shape, dtype=torch.float64)
        args.append(t[0] if dim is None else t.movedim(0, dim))

    def f(x, w, b):
        return dilated_conv2d(x, w, b, (2, 1), 1, 1, 2, "silu")

    check_vmap(f, args, in_dims, batch)


EPILOGUE_SHAPES = {"slope": (6,), "scale": (6,), "residual": (2, 6, 3, 6), "gate": (2, 6)}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("batched", [*EPILOGUE_SHAPES, "slope of one", "all"])
def test_vmap_over_the_epilogue(batched, first):
    """Each argument of the epilogue has a batch of its own, alone, with x's, or with all others."""
    shapes = {"x": (2, 4, 5, 6), "w": (6, 2, 3, 3), **EPILOGUE_SHAPES}
    if batched == "slope of one":
        shapes["slope"], batched = (1,), "slope"
    for with_x, with_w in itertools.product([False, True], [False, True]):
        in_dims, args = [], []
        for name, shape in shapes.items():
            has = batched in ("all", name) or (name == "x" and with_x) or (name == "w" and with_w)
            in_dims.append(0 if has else None)
            args.append(torch.randn(3, *shape).double() if has else torch.randn(shape).double())

        def f(x, w, slope, scale, residual, gate):
            return dilated_conv2d(x, w, None, (2, 1), 1, 1, 2, "prelu", activation_parameter=slope, scale=scale,
                                  residual=residual, residual_first=first, gate=gate)  # fmt: skip

        check_vmap(f, args, tuple(in_dims), 3)


def test_vmap_of_the_raw_ops_and_nested():
    x, w, dy = torch.randn(3, 2, 4, 5, 5), torch.randn(3, 6, 2, 3, 3), torch.randn(3, 2, 6, 3, 3)
    geometry = (*Geometry(), 2)
    y = torch.func.vmap(lambda x, w: FORWARD(x, w, None, *geometry, *REST))(x, w)
    dx = torch.func.vmap(lambda dy, w: BACKWARD_INPUT(dy, w, 5, 5, *geometry))(dy, w)
    shared = torch.func.vmap(lambda dy: BACKWARD_INPUT(dy, w[0], 5, 5, *geometry))(dy)
    dw, db = torch.func.vmap(lambda dy, x: BACKWARD_WEIGHT(dy, x, 3, 3, *geometry))(dy, x)
    dw1, _ = torch.func.vmap(lambda dy: BACKWARD_WEIGHT(dy, x[0], 3, 3, *geometry))(dy)
    for i in range(3):
        torch.testing.assert_close(y[i], FORWARD(x[i], w[i], None, *geometry, *REST))
        torch.testing.assert_close(dx[i], BACKWARD_INPUT(dy[i], w[i], 5, 5, *geometry))
        torch.testing.assert_close(shared[i], BACKWARD_INPUT(dy[i], w[0], 5, 5, *geometry))
        torch.testing.assert_close((dw[i], db[i]), BACKWARD_WEIGHT(dy[i], x[i], 3, 3, *geometry))
        torch.testing.assert_close(dw1[i], BACKWARD_WEIGHT(dy[i], x[0], 3, 3, *geometry)[0])
    inner = torch.func.vmap(lambda x, w: dilated_conv2d(x, w, groups=2), (0, None))
    outer = torch.func.vmap(inner, (None, 0))(x, w)
    assert outer.shape == (3, 3, 2, 6, 3, 3)
    torch.testing.assert_close(outer[1, 2], dilated_conv2d(x[2], w[1], groups=2))


def test_func_transforms():
    x, w = torch.randn(1, 2, 4, 4).double(), torch.randn(3, 2, 3, 3).double()

    def f(x, w):
        return dilated_conv2d(x, w, None, 1, 1, 1, 1, "hardswish")

    def t(x, w):
        return F.hardswish(F.conv2d(x, w, None, 1, 1))

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


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("geometry", [Geometry(), Geometry((2, 1), (1, 1, 2, 2), (1, 2))], ids=str)
def test_flops_are_those_of_torchs_convolutions(geometry, groups):
    """A group at a time: torch counts the weight's gradient of grouped convolutions as if they were dense (2.13)."""
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 9, 8), (12, 6 // groups, 3, 5), (12,)))
    (stride, (top, _, left, _), dilation), ci, co = geometry, 6 // groups, 12 // groups
    forward, backward = flop_counter.FlopCounterMode(display=False), flop_counter.FlopCounterMode(display=False)
    with forward:
        y = FORWARD(x, w, b, *geometry, groups, *REST)
    with backward:
        y.sum().backward()
    expected_forward, expected_backward = 0, 0
    for i in range(groups):
        conv = flop_counter.FlopCounterMode(display=False)
        of = slice(co * i, co * i + co)
        with conv:
            y = F.conv2d(x[:, ci * i : ci * i + ci], w[of], b[of], stride, (top, left), dilation)
        expected_forward += conv.get_total_flops()
        with conv:
            y.sum().backward()
        expected_backward += conv.get_total_flops()
    assert forward.get_flop_counts()["Global"] == {OPS.dilated_conv2d: expected_forward}
    assert backward.get_total_flops() == expected_backward == 2 * expected_forward
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as out:
        FORWARD_OUT(x, w, b, *geometry, groups, *REST, torch.empty(2, 12, *geometry.output(9, 8, 3, 5)))
    assert out.get_total_flops() == expected_forward


def test_double_backward_in_float32_and_channels_last():
    def penalty(f):
        x, w = (t.clone().requires_grad_() for t in (x0, w0))
        (dx,) = torch.autograd.grad(f(x, w).square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().mean(), (x, w))

    x0, w0 = lay((2, 9, 7, 7), torch.float32, "channels_last"), torch.randn(6, 9, 3, 3)
    ours = penalty(lambda x, w: dilated_conv2d(x, w, None, 2, 1, 1, 1, "silu"))
    theirs = penalty(lambda x, w: F.silu(F.conv2d(x, w, None, 2, 1)))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-4)


def test_inference_mode_and_no_grad():
    x, w = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    want = dilated_conv2d(x, w)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            y = dilated_conv2d(x, w)
        assert not y.requires_grad
        assert_exact(y, want.detach())


def test_out_has_no_gradient():
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="out= is not differentiable"):
        dilated_conv2d(x, w, out=torch.empty(1, 4, 3, 3))
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            out = torch.empty(1, 4, 3, 3)
            assert dilated_conv2d(x, w, out=out) is out
            assert_exact(out, dilated_conv2d(x, w))


def test_forward_mode_derivative_is_refused_rather_than_lost():
    forward_ad = torch.autograd.forward_ad
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward AD|forward mode|jvp"):
        dilated_conv2d(forward_ad.make_dual(x, torch.ones_like(x)), weight)


# --- implementations --------------------------------------------------------------------------------------------------
def representative(capability: str) -> None:
    """Runs in a process of its own (test_instruction_sets): asserts what is loaded, then runs the subset."""
    assert_library_is_of(capability)
    for case, layout, dtype in itertools.product(REPRESENTATIVE, ("contiguous", "channels_last", "sliced"), DTYPES):
        test_representative(case, layout, dtype)
    for layout in ("contiguous", "channels_last"):
        for activation in ACTIVATIONS:
            test_activations_far_out(activation, torch.float32, layout)
        for algorithm in WINOGRAD:
            test_winograd(algorithm, layout)
    print("library", _load.libraries.get("cpu", Path("none")).name)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_instruction_sets(capability):
    if OWN.startswith(capability):
        pytest.skip("the tests above ran on it")
    if capability == "avx2" and not OWN.startswith("avx"):
        pytest.skip(f"this CPU's capability is {OWN}: no AVX2")
    assert "library " in on_capability("test_dilated_conv2d", capability, capability)


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case, layout, dtype in itertools.product(REPRESENTATIVE, ("contiguous", "channels_last", "sliced"), DTYPES):
            test_representative(case, layout, dtype)


@compiled
def test_compiled_library_answers():
    assert_op_answers("dilated_conv2d", lambda: dilated_conv2d(torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3)))


# --- bad input --------------------------------------------------------------------------------------------------------
X, W, B = torch.zeros(2, 4, 6, 6), torch.zeros(8, 2, 3, 3), torch.zeros(8)
Y = torch.zeros(2, 8, 4, 4)
V, R, T = ValueError, RuntimeError, TypeError
BAD = {  # arguments, keywords, exception, and what its text must name: argument, what came, what may come
    "x is no tensor": ((1.0, W), {}, T, ["x", "float", "tensor"]),
    "weight is no tensor": ((X, None), {}, T, ["weight", "NoneType", "tensor"]),
    "bias is no tensor": ((X, W, 1), {}, T, ["bias", "int", "tensor or None"]),
    "scale is no tensor": ((X, W), {"scale": 2.0}, T, ["scale", "float", "tensor or None"]),
    "residual is no tensor": ((X, W), {"residual": 1}, T, ["residual", "int", "tensor or None"]),
    "gate is no tensor": ((X, W), {"gate": [1]}, T, ["gate", "list", "tensor or None"]),
    "out is no tensor": ((X, W), {"out": "y"}, T, ["out", "str", "tensor or None"]),
    "x of rank 2": ((X[0, 0], W), {}, V, ["x must", "[6, 6]", "[n, c, h, w]"]),
    "x of rank 5": ((X[None], W), {}, V, ["x must", "[1, 2, 4, 6, 6]", "[n, c, h, w]"]),
    "weight of rank 3": ((X, W[0]), {}, R, ["weight must", "[2, 3, 3]", "[co, ci / groups, kh, kw]"]),
    "weight of rank 5": ((X, W[None]), {}, R, ["weight must", "[1, 8, 2, 3, 3]", "[co, ci / groups, kh, kw]"]),
    "other channels": ((X, W), {"groups": 1}, R, ["x must have groups * weight.shape[1] = 2 channels", "4"]),
    "weight without outputs": ((X, W[:0]), {"groups": 2}, R, ["groups", "0 output channels"]),
    "weight without inputs": ((X[:, :0], W[:, :0]), {"groups": 2}, R, ["channels", "0"]),
    "x without channels": ((X[:, :0], W), {"groups": 2}, R, ["x must", "4 channels", "got 0"]),
    "groups 0": ((X, W), {"groups": 0}, R, ["groups", "8 output channels", "0"]),
    "groups negative": ((X, W), {"groups": -2}, R, ["groups", "8 output channels", "-2"]),
    "groups 3": ((X, W), {"groups": 3}, R, ["groups", "8 output channels", "3"]),
    "groups float": ((X, W), {"groups": 2.0}, T, ["float"]),
    "groups None": ((X, W), {"groups": None}, T, ["NoneType"]),
    "empty kernel": ((X, torch.zeros(8, 2, 0, 3)), {"groups": 2}, R, ["height", "6", "empty"]),
    "dtypes differ": ((X, W.double()), {"groups": 2}, R, ["dtype", "float32", "float64"]),
    "integers": ((X.int(), W.int()), {"groups": 2}, R, ["dtype", "int32", "float32, float64, float16 or bfloat16"]),
    "complex": ((X.cfloat(), W.cfloat()), {"groups": 2}, R, ["dtype", "complex64", "float32, float64, float16 or"]),
    "devices differ": ((X, W.to("meta")), {"groups": 2}, R, ["device", "cpu", "meta"]),
    "devices differ, x": ((X.to("meta"), W), {"groups": 2}, R, ["device", "cpu", "meta"]),
    "stride 0": ((X, W, None, 0), {}, V, ["stride", "0", "positive"]),
    "stride negative": ((X, W, None, (1, -2)), {}, V, ["stride", "(1, -2)", "positive"]),
    "stride of three": ((X, W, None, (1, 2, 3)), {}, V, ["stride", "(1, 2, 3)", "pair"]),
    "stride float": ((X, W, None, 1.5), {}, T, ["stride", "1.5", "int"]),
    "dilation 0": ((X, W, None, 1, 0, 0), {}, V, ["dilation", "0", "positive"]),
    "dilation text": ((X, W, None, 1, 0, "2"), {}, T, ["dilation", "'2'", "int"]),
    "padding negative": ((X, W, None, 1, -1), {}, V, ["padding", "-1", "not be negative"]),
    "padding negative side": ((X, W, None, 1, (0, 0, -2, 0)), {}, V, ["padding", "(0, 0, -2, 0)", "not be negative"]),
    "padding of three": ((X, W, None, 1, (1, 2, 3)), {}, V, ["padding", "(1, 2, 3)", "(top, bottom, left, right)"]),
    "padding text": ((X, W, None, 1, "full"), {}, V, ["padding", "'full'", "'same' or 'valid'"]),
    "padding float": ((X, W, None, 1, (1.0, 1)), {}, T, ["padding", "(1.0, 1)", "int"]),
    "padding none": ((X, W, None, 1, None), {}, V, ["padding", "None", "int"]),
    "kernel too tall": ((X, torch.zeros(8, 4, 7, 1)), {}, R, ["height", "6", "7", "empty"]),
    "kernel too wide": ((X, torch.zeros(8, 4, 1, 9), None, 1, 1), {}, R, ["width", "8", "9", "empty"]),
    "dilated too far": ((X, W, None, 1, 0, (1, 3)), {"groups": 2}, R, ["width", "6", "7", "empty"]),
    "empty image": ((X[:, :, :0], W), {"groups": 2}, R, ["height", "0", "3", "empty"]),
    "algorithm unknown": ((X, W), {"algorithm": "fft"}, V, ["algorithm", "'fft'", "auto, direct, winograd2"]),
    "algorithm None": ((X, W), {"algorithm": None}, V, ["algorithm", "None", "auto, direct, winograd2"]),
    "winograd of 5x5": ((X, torch.zeros(8, 4, 5, 5)), {"algorithm": "winograd4"}, R, ["winograd4", "3x3", "[5, 5]"]),
    "winograd of stride 2": ((X, W, None, 2), {"algorithm": "winograd2", "groups": 2}, R, ["stride 1", "[2, 2]"]),
}  # fmt: skip
EPILOGUE_BAD = {  # keywords, exception, text; of an op whose y is [2, 8, 4, 4], for pointwise_conv2d too
    "bias of rank 2": ({"bias": B[None]}, R, ["bias must", "[1, 8]", "[8]"]),
    "bias of other channels": ({"bias": torch.zeros(5)}, R, ["bias must", "[5]", "[8]"]),
    "bias of another dtype": ({"bias": B.double()}, R, ["bias must", "float64", "float32"]),
    "bias on another device": ({"bias": B.to("meta")}, R, ["bias", "cpu", "meta"]),
    "scale of one": ({"scale": B[:1]}, R, ["scale must", "[1]", "[8]"]),
    "scale of another dtype": ({"scale": B.half()}, R, ["scale must", "float16", "float32"]),
    "scale on another device": ({"scale": B.to("meta")}, R, ["scale", "cpu", "meta"]),
    "residual of another size": ({"residual": Y[..., :3]}, R, ["residual must", "[2, 8, 4, 3]", "[2, 8, 4, 4]"]),
    "residual that would broadcast": ({"residual": Y[:1]}, R, ["residual must", "[1, 8, 4, 4]", "[2, 8, 4, 4]"]),
    "residual of rank 3": ({"residual": Y[0]}, R, ["residual must", "[8, 4, 4]", "[2, 8, 4, 4]"]),
    "residual of another dtype": ({"residual": Y.double()}, R, ["residual must", "float64", "float32"]),
    "residual on another device": ({"residual": Y.to("meta")}, R, ["residual", "cpu", "meta"]),
    "gate of one image": ({"gate": B[None]}, R, ["gate must", "[1, 8]", "[2, 8]"]),
    "gate of rank 1": ({"gate": B}, R, ["gate must", "[8]", "[2, 8]"]),
    "gate of rank 4": ({"gate": Y[..., :1, :1]}, R, ["gate must", "[2, 8, 1, 1]", "[2, 8]"]),
    "gate of another dtype": ({"gate": Y[..., 0, 0].bfloat16()}, R, ["gate must", "bfloat16", "float32"]),
    "activation unknown": ({"activation": "mish"}, V, ["activation", "mish", "none, relu, relu6, silu"]),
    "activation None": ({"activation": None}, T, ["activation", "None", "none, relu, relu6, silu"]),
    "a parameter too many": ({"activation": "relu", "activation_parameter": 0.1}, V, ["relu has no parameter", "0.1"]),
    "prelu without slopes": ({"activation": "prelu"}, T, ["prelu", "activation_parameter", "None"]),
    "prelu with a number": ({"activation": "prelu", "activation_parameter": 0.1}, T, ["prelu", "tensor", "0.1"]),
    "slopes of others": ({"activation": "prelu", "activation_parameter": B[:5]}, R, ["slope must", "[5]", "[8]"]),
    "slopes in double": ({"activation": "prelu", "activation_parameter": B.double()}, R, ["slope must", "float64"]),
    "elu with a tensor": ({"activation": "elu", "activation_parameter": B}, T, ["elu", "number", "tensor"]),
    "leaky with text": ({"activation": "leaky_relu", "activation_parameter": "1"}, T, ["leaky_relu", "number", "'1'"]),
    "out of another size": ({"out": Y[:, :7]}, R, ["out must", "[2, 7, 4, 4]", "[2, 8, 4, 4]"]),
    "out of rank 3": ({"out": Y[0]}, R, ["out must", "[8, 4, 4]", "[2, 8, 4, 4]"]),
    "out of another dtype": ({"out": Y.half()}, R, ["out must", "float16", "float32"]),
    "out on another device": ({"out": Y.to("meta")}, R, ["out", "cpu", "meta"]),
}  # fmt: skip


@pytest.fixture(params=["default", "reference"])
def implementation(request):
    with contextlib.nullcontext() if request.param == "default" else pytorch_ext.use(request.param):
        yield


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("implementation")
def test_bad_input(name):
    args, keywords, exception, words = BAD[name]
    with pytest.raises(exception) as caught:
        dilated_conv2d(*args, **keywords)
    assert type(caught.value) is exception
    assert_names(caught.value, words)


@pytest.mark.parametrize("name", EPILOGUE_BAD)
@pytest.mark.usefixtures("implementation")
def test_bad_epilogue(name):
    keywords, exception, words = EPILOGUE_BAD[name]
    with pytest.raises(exception) as caught:
        dilated_conv2d(X, W, groups=2, **keywords)
    assert type(caught.value) is exception
    assert_names(caught.value, words)


G = ([1, 1], [0, 0, 0, 0], [1, 1], 2)
S = dict(zip(("stride", "padding", "dilation", "groups"), G))


def g(**other) -> tuple:
    return tuple({**S, **other}.values())


def rest(**other) -> tuple:
    """The epilogue and what follows, some of it wrong."""
    names = ("activation", "alpha", "slope", "scale", "residual", "residual_first", "gate", "algorithm", "packed")
    return tuple({**dict(zip(names, REST)), **other}.values())


BAD_RAW = {
    "x of rank 3": (FORWARD, (X[0], W, None, *G, *REST), ["x must", "[4, 6, 6]", "[n, c, h, w]"]),
    "weight of rank 3": (FORWARD, (X, W[0], None, *G, *REST), ["weight must", "[2, 3, 3]", "[co, ci / groups,"]),
    "stride 0": (FORWARD, (X, W, None, *g(stride=[0, 1]), *REST), ["stride", "[0, 1]", "positive"]),
    "stride of one": (FORWARD, (X, W, None, *g(stride=[2]), *REST), ["stride", "[2]"]),
    "stride of three": (FORWARD, (X, W, None, *g(stride=[2, 1, 1]), *REST), ["stride", "[2, 1, 1]"]),
    "dilation 0": (FORWARD, (X, W, None, *g(dilation=[1, 0]), *REST), ["dilation", "[1, 0]", "positive"]),
    "dilation of three": (FORWARD, (X, W, None, *g(dilation=[1, 1, 1]), *REST), ["dilation", "[1, 1, 1]"]),
    "padding of two": (FORWARD, (X, W, None, *g(padding=[1, 1]), *REST), ["padding", "[1, 1]", "(top, bottom,"]),
    "cropped away": (FORWARD, (X, W, None, *g(padding=[-2, -2, 0, 0]), *REST), ["height", "2", "3", "empty"]),
    "groups 3": (FORWARD, (X, W, None, *g(groups=3), *REST), ["groups", "8", "3"]),
    "activation": (FORWARD, (X, W, None, *G, *rest(activation="mish")), ["activation", "mish", "none", "hardswish"]),
    "slope without prelu": (FORWARD, (X, W, None, *G, *rest(slope=B)), ["slope", "prelu"]),
    "prelu without slope": (FORWARD, (X, W, None, *G, *rest(activation="prelu")), ["slope", "prelu"]),
    "algorithm": (FORWARD, (X, W, None, *G, *rest(algorithm="fft")), ["algorithm", "auto", "direct", "'fft'"]),
    "winograd's stride": (FORWARD, (X, W, None, *g(stride=[2, 2]), *rest(algorithm="winograd6")), ["winograd6", "3x3"]),
    "meta": (FORWARD, (X.to("meta"), W, None, *G, *REST), ["device", "meta", "cpu"]),
    "no tensor": (FORWARD, (1, W, None, *G, *REST), ["'x'", "Tensor", "int"]),
    "out": (FORWARD_OUT, (X, W, None, *G, *REST, Y[:1]), ["out must", "[1, 8, 4, 4]", "[2, 8, 4, 4]"]),
    "out's x": (FORWARD_OUT, (X[0], W, None, *G, *REST, Y), ["x must", "[4, 6, 6]", "[n, c, h, w]"]),
    "dy of rank 3": (BACKWARD_INPUT, (Y[0], W, 6, 6, *G), ["dy must", "[8, 4, 4]", "[n, c, h, w]"]),
    "dy of another size": (BACKWARD_INPUT, (Y, W, 7, 6, *G), ["dy must", "5, 4]", "4, 4]"]),
    "dy of other channels": (BACKWARD_INPUT, (Y[:, :7], W, 6, 6, *G), ["dy must", "7", "8"]),
    "dy's dtype": (BACKWARD_INPUT, (Y.half(), W, 6, 6, *G), ["dtype", "float16", "float32"]),
    "dgrad's stride": (BACKWARD_INPUT, (Y, W, 6, 6, *g(stride=[-1, 1])), ["stride", "[-1, 1]", "positive"]),
    "dgrad's groups": (BACKWARD_INPUT, (Y, W, 6, 6, *g(groups=0)), ["groups", "0"]),
    "dgrad's weight": (BACKWARD_INPUT, (Y, W[0], 6, 6, *G), ["weight", "[2, 3, 3]", "[co, ci / groups, kh, kw]"]),
    "dgrad's device": (BACKWARD_INPUT, (Y, W.to("meta"), 6, 6, *G), ["device"]),
    "negative image": (BACKWARD_INPUT, (Y, W, -6, 6, *G), ["height", "-6", "empty"]),
    "n differs": (BACKWARD_WEIGHT, (Y[:1], X, 3, 3, *G), ["dy and x", "[1, 8, 4, 4]", "[2, 4, 6, 6]"]),
    "wgrad's channels": (BACKWARD_WEIGHT, (Y[:, :7], X, 3, 3, *G), ["groups", "7", "4", "2"]),
    "wgrad's groups": (BACKWARD_WEIGHT, (Y, X, 3, 3, *g(groups=0)), ["groups", "0"]),
    "wgrad's size": (BACKWARD_WEIGHT, (Y, X, 3, 2, *G), ["dy must", "4, 5]", "4, 4]"]),
    "wgrad's kernel": (BACKWARD_WEIGHT, (Y, X, 0, 3, *G), ["height", "0", "empty"]),
    "wgrad's dtype": (BACKWARD_WEIGHT, (Y.double(), X, 3, 3, *G), ["dtype", "float32", "float64"]),
    "wgrad's device": (BACKWARD_WEIGHT, (Y, X.to("meta"), 3, 3, *G), ["device"]),
    "wgrad's padding": (BACKWARD_WEIGHT, (Y, X, 3, 3, *g(padding=[0, 0])), ["padding", "[0, 0]", "(top, bottom,"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RAW)
@pytest.mark.usefixtures("implementation")
def test_bad_input_of_the_raw_ops(name):
    op, args, words = BAD_RAW[name]
    with pytest.raises(RuntimeError) as caught:
        op(*args)
    assert_names(caught.value, words)


def test_bad_input_of_conv1d():
    x, w = torch.zeros(2, 4, 6), torch.zeros(6, 4, 3)
    for args, keywords, exception, words in (
        ((x[0, 0], w), {}, V, ["x must", "[6]", "[n, c, length]"]),
        ((x, w[0]), {}, V, ["weight must", "[4, 3]", "[co, ci / groups, k]"]),
        ((x, None), {}, T, ["weight", "NoneType"]),
        ((x, w, None, (1, 2)), {}, T, ["stride", "(1, 2)", "int"]),
        ((x, w, None, 0), {}, V, ["stride", "0", "positive"]),
        ((x, w, None, 1, (1, 2, 3)), {}, V, ["padding", "(1, 2, 3)", "(left, right)"]),
        ((x, w, None, 1, -1), {}, V, ["padding", "negative"]),
        ((x, w, None, 1, 0, 1.0), {}, T, ["dilation", "1.0", "int"]),
        ((x, torch.zeros(6, 4, 7)), {}, R, ["width", "6", "7", "empty"]),
        ((x, w), {"out": torch.zeros(2, 6, 4)}, T, ["out"]),
        ((x, w), {"residual": torch.zeros(2, 6, 5)}, R, ["residual must", "[2, 6, 1, 5]", "[2, 6, 1, 4]"]),
        ((x, w), {"residual": 1}, T, ["residual", "int", "tensor or None"]),
        ((x, w), {"colour": 1}, T, ["colour"]),
    ):
        with pytest.raises(exception) as caught:
            dilated_conv1d(*args, **keywords)
        assert type(caught.value) is exception
        assert_names(caught.value, words)


@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
def test_geometry_beyond_32_bits_is_refused(name):
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    for like in (x, x.to("meta")):
        with pytest.raises(RuntimeError, match=f"{name} must not exceed 2147483647"):
            dilated_conv2d(like, weight.to(like.device), **{name: 2**40})


def test_fake_refuses_what_the_kernel_refuses():
    """Under FakeTensorMode, hence in torch.compile, the same inputs fail with the same type."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, (op, args, _) in BAD_RAW.items():
        if name in ("no tensor", "meta", "dgrad's device", "wgrad's device"):
            continue
        with FakeTensorMode() as mode, pytest.raises(RuntimeError):
            op(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args])


def test_nothing_is_written_when_out_is_refused():
    out = torch.full((2, 8, 4, 4), 5.0)
    for keywords in ({"bias": B[:5]}, {"gate": B}, {"algorithm": "winograd2", "stride": 2}):
        with pytest.raises(RuntimeError):
            dilated_conv2d(X, W, groups=2, out=out, **keywords)
        assert (out == 5).all()


# --- 2**31 elements ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements(gigabytes, layout):
    """Rows a power of two apart, so that the last begins 2**31 elements behind the first; what lies between is
    reserved, never touched."""
    far = 2**29
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (4 * far + 4096)), dtype=torch.bfloat16)
    row = (1, far, 9) if layout == "channels_last" else (20, far, 1)
    x, y = memory.as_strided((1, 8, 5, 16), (0, *row)), memory.as_strided((1, 9, 5, 16), (0, *row), 2048)
    x.copy_(torch.randn(1, 8, 5, 16))
    layer = Layer(x, torch.randn(9, 8, 3, 3).bfloat16(), same(3), 1, {"activation": "relu"})
    check_forward(layer)
    check_backward(lay(layer.y_shape, torch.bfloat16, layout), x, layer.w, same(3), 1)
    call(layer, out=y)
    judge(y, layer, expected(layer), WINOGRAD["winograd6"])
    check_backward(y, lay(x.shape, torch.bfloat16, layout), layer.w, same(3), 1)
