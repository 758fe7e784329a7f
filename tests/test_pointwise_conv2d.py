"""1x1 convolution against the formula in float64, torch's own subsystems, and every kind of bad input.

The tests judge whatever answers for the CPU here: the compiled library, or the reference where none is built. The
derivatives of the convolution itself are dilated_conv2d's ops.
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
from test_dilated_conv2d import EPILOGUE_BAD, fusions
from torch import Tensor
from torch.utils import flop_counter

import pytorch_ext
from pytorch_ext import _load, pointwise_conv2d

ROOT = Path(__file__).resolve().parent.parent
FORWARD = OPS.pointwise_conv2d.default
FORWARD_OUT = OPS.pointwise_conv2d_out.default
PACK = OPS.pointwise_conv2d_pack.default
EPILOGUE = ("none", 0.0, None, None, None, False, None)
REST = (*EPILOGUE, "none", None, 1, None)


def call(layer: Layer, **more):
    options = dict(layer.options)
    bias = options.pop("bias", None)
    return pointwise_conv2d(layer.x, layer.w, bias, layer.geometry.stride, layer.groups, **options, **more)


def raw(layer: Layer, packed=None) -> tuple:
    """The raw op's arguments."""
    o = layer.options
    return (layer.x, layer.w, o.get("bias"), layer.geometry.stride, layer.groups, *layer.epilogue(),
            o.get("input_activation", "none"), o.get("input_gate"), o.get("shuffle", 1), packed)  # fmt: skip


def check_forward(layer: Layer, against_torch: bool = False, random_signs: bool = False) -> None:
    want, y = expected(layer), call(layer)
    judge(y, layer, want)
    assert_format(y, layer.x)
    if against_torch:
        judge_against_torch(y, layer, want)
    if random_signs:
        judge_of_random_signs(y, layer, want)
    check_out(lambda out: call(layer, out=out), layer, want)


def check_all(shape, co, stride=(1, 1), groups=1, fused=CLAMPED, *, dtype=torch.float32, layout="contiguous",
              weight_layout="contiguous", dy_layout=None, random_signs=False) -> None:  # fmt: skip
    geometry = Geometry(stride)
    layer = make_layer(shape, co, (1, 1), geometry, groups, fused, dtype=dtype, layout=layout,
                       weight_layout=weight_layout)  # fmt: skip
    check_forward(layer, random_signs=random_signs)
    check_backward(lay(layer.y_shape, dtype, dy_layout or layout), layer.x, layer.w, geometry, groups)


# --- values -----------------------------------------------------------------------------------------------------------
with open(ROOT / "bench/shapes/pointwise_conv2d.csv") as file:
    BENCH = list(csv.DictReader(file))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: f"{row['set']}: {row['name']}")
def test_bench_set(row, layout):
    """Every channel; large images are cut."""
    c, co, h, w, stride, groups, shuffle = (
        int(row[key]) for key in ("c", "co", "h", "w", "stride", "groups", "shuffle")
    )
    h = min(h, max(7, 20_000_000 * groups // (c * co * w)))
    fused = Fused(row["activation"], shuffle=shuffle)
    check_all((1, c, h, w), co, (stride, stride), groups, fused, layout=layout, random_signs=True)


def test_bench_set_is_whole():
    assert {row["set"] for row in BENCH} >= {
        "peers", "mobilenet_v2", "efficientnet_b0", "shufflenet_v1_g3", "shufflenet_v2_x1",
    }  # fmt: skip
    assert len(BENCH) >= 81


REPRESENTATIVE = [  # shape, out channels, stride, groups, fused: one for each road that a kernel may take
    ((1, 32, 14, 14), 16, (1, 1), 1, Fused()),
    ((2, 96, 7, 9), 24, (1, 1), 1, CLAMPED),
    ((2, 17, 9, 11), 33, (1, 1), 1, EVERYTHING),
    ((1, 40, 7, 7), 130, (1, 1), 1, Fused("silu", residual="after")),
    ((1, 257, 5, 5), 20, (1, 1), 1, Fused("relu", scale=True)),
    ((3, 64, 1, 1), 48, (1, 1), 1, Fused("sigmoid")),
    ((2, 60, 6, 7), 240, (1, 1), 3, Fused("none", shuffle=3)),
    ((1, 48, 8, 8), 12, (1, 1), 4, Fused("relu", shuffle=4)),
    ((2, 6, 5, 5), 12, (1, 1), 6, Fused("gelu", residual="before", shuffle=2)),
    ((2, 24, 8, 8), 20, (1, 1), 1, Fused("hardswish", input_activation="silu", input_gate=True)),
    ((2, 18, 6, 5), 14, (1, 1), 2, Fused("prelu", gate=True, input_activation="relu6", shuffle=7)),
    ((1, 18, 6, 5), 12, (1, 1), 2, Fused("prelu", one_slope=True, input_gate=True)),
    ((2, 16, 9, 10), 24, (2, 2), 1, Fused("relu", scale=True, residual="before")),
    ((1, 20, 7, 11), 18, (3, 2), 2, Fused("tanh", input_activation="hardsigmoid")),
    ((2, 3, 1, 50), 4, (1, 3), 1, Fused("hardsigmoid")),
    ((1, 1, 6, 6), 1, (1, 1), 1, Fused("elu", parameter=0.7)),
    ((1, 5, 6, 6), 1, (1, 1), 1, Fused("gelu_tanh", bias=False)),
    ((1, 1, 6, 6), 19, (1, 1), 1, Fused("leaky_relu", parameter=0.3, residual="after", gate=True)),
    ((0, 8, 5, 5), 8, (1, 1), 1, CLAMPED),
]


def case_id(case) -> str:
    return f"{case[0]} {case[1]} s{case[2]} g{case[3]}"


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


channels = st.integers(1, 20) | st.sampled_from([24, 31, 32, 33, 48, 63, 64, 65, 70, 96, 130])


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    c, co = draw(channels) * groups, draw(channels) * groups
    fused = draw(fusions())._replace(
        input_activation=draw(st.sampled_from(["none", "none", "relu", "relu6", "silu", "gelu", "tanh", "hardswish"])),
        input_gate=draw(st.booleans()),
        shuffle=draw(st.sampled_from([1, 1, *(s for s in range(2, co + 1) if co % s == 0)])),
    )
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2)]) | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    shape = draw(st.sampled_from([1, 2, 3, 0])), c, draw(st.integers(1, 15)), draw(st.integers(1, 15))
    return (shape, co, stride, groups, fused), {
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


COUNTS = [*range(1, 71), 96, 100, 130, 257]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_channels_of_any_count(dtype, layout):
    """Vectors and tiles of input and output channels end everywhere."""
    for i, c in enumerate(COUNTS):
        co = COUNTS[(29 * i + 3) % len(COUNTS)]
        check_all((1, c, 3, 5), co, fused=Fused(residual="after"), layout=layout, dtype=dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_pixels_of_any_count(batch, layout):
    """Tiles of pixels end everywhere; in channels_last they may run on into the next image."""
    for pixels in range(1, 201):
        h = next(h for h in (7, 5, 3, 2, 1) if pixels % h == 0)
        check_all((batch, 9, h, pixels // h), 11, layout=layout)
    for size in (7, 14):
        check_all((batch, 33, size, size), 40, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_everything_behind_the_sums(activation, layout, dtype):
    """Each activation with every combination of what else there may be, shuffled and not."""
    for bias, scale, residual, gate, shuffle in itertools.product(
        [False, True], [False, True], [None, "before", "after"], [False, True], [1, 5]
    ):
        fused = Fused(activation, bias, scale, residual, gate, one_slope=gate, shuffle=shuffle)
        check_forward(make_layer((2, 5, 3, 6), 20, (1, 1), Geometry(), 1, fused, dtype=dtype, layout=layout))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
                                        "gelu", "gelu_tanh"])  # fmt: skip
def test_everything_before_the_sums(activation, layout, dtype):
    for gate, groups, stride in itertools.product([False, True], [1, 3], [(1, 1), (2, 1)]):
        fused = Fused("relu", input_activation=activation, input_gate=gate)
        check_forward(make_layer((2, 9, 3, 6), 12, (1, 1), Geometry(stride), groups, fused, dtype=dtype, layout=layout))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activations_far_out(activation, dtype, layout):
    """Sums of -60 to 60, and exactly 0, +-3 and 6, where the pieces meet: a kernel that is the identity."""
    z = torch.cat([torch.linspace(-60, 60, 31 * 64 - 5), torch.tensor([0.0, 3, -3, 6, -0.0])]).to(dtype)
    x = lay((1, 31, 8, 8), dtype, layout).copy_(z.view(1, 31, 8, 8))
    identity = torch.eye(31, dtype=dtype)[:, :, None, None]
    options = {"activation": activation}
    if activation == "prelu":
        options["activation_parameter"] = torch.randn(31).to(dtype)
    check_forward(Layer(x, identity, Geometry(), 1, options), against_torch=True)
    if activation not in ("prelu", "elu", "leaky_relu"):
        check_forward(Layer(x, identity, Geometry(), 1, {"input_activation": activation}), against_torch=True)


@compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_nothing_is_touched_outside(stride, groups, first):
    """Every tensor that goes in or out, weight and packed weight too, ends where memory does."""
    geometry = Geometry((stride,) * 2)
    for shape, co in [((1, 2, 4, 4), 4), ((2, 6, 7, 7), 34), ((1, 16, 14, 14), 16), ((1, 10, 5, 31), 66)]:
        for last, dtype in itertools.product((False, True), (torch.float32, torch.bfloat16)):

            def end(*sizes, last=last, dtype=dtype):
                if last and len(sizes) == 4:
                    n, c, h, w = sizes
                    return at_an_end(torch.randn(n, h, w, c).to(dtype), first).permute(0, 3, 1, 2)
                return at_an_end(torch.randn(sizes).to(dtype), first)

            layer = Layer(end(*shape), end(co, shape[1] // groups, 1, 1), geometry, groups)
            layer.options = {"bias": end(co), "scale": end(co), "gate": end(shape[0], co), "activation": "silu",
                             "residual": end(*layer.y_shape), "input_gate": end(*shape[:2]), "shuffle": 2}  # fmt: skip
            out = end(*layer.y_shape).fill_(torch.nan)
            for options in (layer.options, {"activation": "relu6", "bias": end(co)}, {}):
                layer.options = options
                call(layer, out=out.fill_(torch.nan))
                judge(out, layer, expected(layer))
                packed = PACK(layer.x, layer.w, geometry.stride, groups)
                if packed.numel():
                    FORWARD_OUT(*raw(layer, at_an_end(packed, first)), out.fill_(torch.nan))
                    judge(out, layer, expected(layer))
            check_backward(end(*layer.y_shape), layer.x, layer.w, geometry, groups)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_stay_in_their_pixel(value, layout):
    for c in (1, 9, 40):
        x = lay((2, c, 8, 8), torch.float32, layout)
        x[1, c // 2, 3, 5] = value
        hit = torch.zeros(2, 21, 8, 8, dtype=torch.bool)
        hit[1, :, 3, 5] = True
        assert_exact(~pointwise_conv2d(x, torch.ones(21, c)).isfinite(), hit)
        relu = pointwise_conv2d(x, torch.ones(21, c), activation="relu")
        assert relu[hit].isnan().all() == (value != value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_goes_through_every_activation(activation):
    parameter = torch.tensor([0.5]) if activation == "prelu" else None
    for layout, pixels in itertools.product(("contiguous", "channels_last"), (1, 20)):
        x = lay((1, 3, pixels, 2), torch.float32, layout)
        x[:, :, :, 0] = torch.nan
        ways = [{"activation": activation, "activation_parameter": parameter}]
        if activation not in ("prelu", "elu", "leaky_relu"):
            ways.append({"input_activation": activation})
        for way in ways:
            y = pointwise_conv2d(x, torch.ones(17, 3), **way)
            assert y[..., 0].isnan().all()
            assert y[..., 1].isfinite().all()


def test_against_torch_conv2d():
    """The formula says what torch's convolution says."""
    for shape, co, stride, groups, fused in REPRESENTATIVE:
        if shape[0]:
            layer = make_layer(shape, co, (1, 1), Geometry(stride), groups, fused, dtype=torch.float64,
                               layout="contiguous")  # fmt: skip
            torch.testing.assert_close(expected(layer).y, torchs(layer), atol=1e-10, rtol=1e-10)


def test_shuffle_is_torchs():
    x, w = torch.randn(2, 12, 5, 6), torch.randn(24, 4, 1, 1)
    plain = pointwise_conv2d(x, w, None, 1, 3, "relu")
    for groups in (1, 2, 3, 4, 6, 8, 12, 24):
        shuffle = torch.nn.ChannelShuffle(groups)
        assert_exact(pointwise_conv2d(x, w, None, 1, 3, "relu", shuffle=groups), shuffle(plain))


def test_torchs_own_samples():
    """Those of conv2d, with the first tap of each kernel and without padding: torch has none of 1x1."""
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = [info for info in op_db if info.name == "nn.functional.conv2d"]
    ran = 0
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=False):
        options = {name: value for name, value in sample.kwargs.items() if name in ("stride", "groups")}
        x, (w, b) = sample.input, sample.args
        w = w[..., :1, :1]
        want = info.op(x, w, b, **options)
        torch.testing.assert_close(pointwise_conv2d(x, w, b, **options), want, atol=1e-12, rtol=1e-12)
        y = pointwise_conv2d(x.float(), w.float(), None if b is None else b.float(), **options)
        torch.testing.assert_close(y, want.float(), atol=1e-5, rtol=1e-5)
        ran += 1
    assert ran >= 24


def test_long_sums_keep_their_digits():
    """As many terms of one sign as the widest layers have, and more: five digits."""
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w = torch.rand(1, 40_000, 3, 4).contiguous(memory_format=layout), torch.full((9, 40_000, 1, 1), 1e-3)
        y, y64 = pointwise_conv2d(x, w), conv64(x.double(), w.double(), Geometry(), 1)
        assert ((y - y64) / y64).abs().max() < 3e-5  # a chain of additions: 6 times sqrt(terms) / 3 half ulps


# --- arguments --------------------------------------------------------------------------------------------------------
def test_forms_of_arguments():
    x, w = torch.randn(2, 6, 5, 8), torch.randn(9, 6)
    y = pointwise_conv2d(x, w)
    torch.testing.assert_close(y, torch.einsum("ok,nkhw->nohw", w, x), rtol=1e-5, atol=1e-5)
    assert_exact(pointwise_conv2d(x, w[:, :, None, None]), y)
    assert_exact(pointwise_conv2d(x, w, stride=2), y[:, :, ::2, ::2].contiguous())
    assert_exact(pointwise_conv2d(x, w, stride=(1, 3)), y[:, :, :, ::3].contiguous())
    assert_exact(pointwise_conv2d(x, w, stride=[1, 3]), y[:, :, :, ::3].contiguous())


def test_unbatched():
    x, w, b = torch.randn(6, 5, 8), torch.randn(8, 3), torch.randn(8)
    more = {"residual": torch.randn(8, 5, 8), "gate": torch.randn(8), "input_gate": torch.randn(6)}
    y = pointwise_conv2d(x, w, b, 1, 2, "silu", **more, input_activation="relu", shuffle=4)
    batched = {name: t[None] for name, t in more.items()}
    want = pointwise_conv2d(x[None], w, b, 1, 2, "silu", **batched, input_activation="relu", shuffle=4)
    assert_exact(y, want[0])
    out = torch.empty_like(y)
    assert_exact(pointwise_conv2d(x, w, b, 1, 2, "silu", **more, input_activation="relu", shuffle=4, out=out), y)
    assert_exact(out, y)


def test_concatenation_costs_nothing():
    """Branches write their channels of one image, in either layout; the result is torch.cat's."""
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 12, 7, 7).contiguous(memory_format=form)
        weights = [torch.randn(co, 12) for co in (7, 16, 33)]
        whole = torch.full((2, 56, 7, 7), torch.nan).contiguous(memory_format=form)
        for w, part in zip(weights, whole.split([7, 16, 33], 1)):
            pointwise_conv2d(x, w, activation="relu", out=part)
        want = torch.cat([pointwise_conv2d(x, w, activation="relu") for w in weights], 1)
        torch.testing.assert_close(whole, want, rtol=1e-6, atol=1e-6)


strides4 = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 12, 15, 24, 30, 60, 120]), min_size=4, max_size=4)


@settings(max_examples=200)
@given(st.tuples(*[st.integers(1, 4)] * 4), strides4 | st.permutations([1, 4, 16, 64]))
def test_memory_format_is_torchs_for_any_strides(shape, strides):
    """What answers on the CPU, the fake kernel and torch's own rule agree; and the values are right."""
    buffer = torch.randn(1 + sum((size - 1) * stride for size, stride in zip(shape, strides)))
    x, w = buffer.as_strided(shape, strides), torch.randn(3, shape[1], 1, 1)
    y = pointwise_conv2d(x, w)
    fake = pointwise_conv2d(torch.empty_strided(shape, strides, device="meta"), w.to("meta"))
    assert y.stride() == fake.stride()
    check_forward(Layer(x, w, Geometry()))


# --- packed weights ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=case_id)
def test_packed_weight_gives_the_same_bits(case, layout, dtype):
    shape, co, stride, groups, fused = case
    layer = make_layer(shape, co, (1, 1), Geometry(stride), groups, fused, layout=layout, dtype=dtype,
                       weight_layout=WEIGHT_LAYOUTS[co % 6])  # fmt: skip
    packed = PACK(layer.x, layer.w, stride, groups)
    assert packed.dtype == torch.uint8
    assert_exact(FORWARD(*raw(layer, packed)), FORWARD(*raw(layer)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_packed_weight_is_what_is_read(layout):
    """The weight itself is not looked at, whatever the size of the image and the batch: else packing saves nothing."""
    w, broken = torch.randn(48, 32, 1, 1), torch.full((48, 32, 1, 1), torch.nan)
    packed = PACK(lay((1, 32, 14, 14), torch.float32, layout), w, (1, 1), 1)
    if not packed.numel():
        pytest.skip("what answers here reads weights as they are")
    for n, h, width in [(1, 14, 14), (2, 14, 14), (1, 7, 5), (3, 1, 1), (1, 1, 200)]:
        x = lay((n, 32, h, width), torch.float32, layout)
        got = FORWARD(x, broken, None, (1, 1), 1, *REST[:-1], packed)
        assert_exact(got, FORWARD(x, w, None, (1, 1), 1, *REST))


@compiled
def test_packed_weight_of_another_layer_is_refused():
    x, w = lay((1, 32, 14, 14), torch.float32, "channels_last"), torch.randn(48, 32, 1, 1)
    packed = PACK(x, w, (1, 1), 1)
    if not packed.numel():
        pytest.skip("what answers here reads weights as they are")
    other = lay((1, 16, 14, 14), torch.float32, "channels_last"), torch.randn(20, 16, 1, 1)
    swapped = lay((1, 48, 14, 14), torch.float32, "channels_last"), torch.randn(32, 48, 1, 1)
    for (x1, w1), wrong in [
        (other, packed),
        (swapped, packed),
        ((x.double(), w.double()), packed),
        ((x.contiguous(), w), packed),
        ((x, w), packed[:-1]),
        ((x, w), packed.view(torch.int8)),
        ((x, w), torch.zeros_like(packed)),
    ]:
        with pytest.raises(RuntimeError) as caught:
            FORWARD(x1, w1, None, (1, 1), 1, *REST[:-1], wrong)
        assert_names(caught.value, ["packed was made for", "layer"])


# --- torch's subsystems -----------------------------------------------------------------------------------------------
ALL = Fused("silu", True, True, "after", True, input_activation="gelu", input_gate=True, shuffle=3)


@pytest.mark.parametrize(
    ("layout", "weight_layout"), [("contiguous", "contiguous"), ("channels_last", "packed"), ("reversed", "sliced")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "fused", [Fused(bias=False), ALL, Fused("prelu", residual="before")], ids=["plain", "all", "prelu"]
)
def test_opcheck(fused, dtype, layout, weight_layout):
    layer = make_layer((2, 4, 7, 8), 6, (1, 1), Geometry((2, 1)), 2, fused, dtype=dtype, layout=layout,
                       weight_layout=weight_layout)  # fmt: skip
    for t in (layer.x, layer.w, *(t for t in layer.options.values() if isinstance(t, Tensor))):
        t.requires_grad_()
    outcome = torch.library.opcheck(FORWARD, raw(layer))
    assert len(outcome) == 4
    assert set(outcome.values()) == {"SUCCESS"}


def test_opcheck_of_ops_without_a_derivative():
    layer = make_layer((2, 4, 7, 8), 6, (1, 1), Geometry(), 2, ALL, dtype=torch.float32, layout="contiguous")
    torch.library.opcheck(FORWARD_OUT, (*raw(layer), torch.empty(layer.y_shape)))
    torch.library.opcheck(PACK, (layer.x, layer.w, (1, 1), 2), test_utils=["test_schema"])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fused", [Fused(), ALL, Fused(scale=True, residual="before", one_slope=True, shuffle=2)],
                         ids=["bias", "all", "before"])  # fmt: skip
def test_gradients(fused, activation, layout):
    fused = fused._replace(activation=activation)
    stride = (1, 2) if fused.scale else (1, 1)
    layer = make_layer((2, 4, 2, 3), 6, (1, 1), Geometry(stride), 2, fused, dtype=torch.float64, layout=layout)
    check_gradients(layer, call)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
                                        "gelu", "gelu_tanh"])  # fmt: skip
def test_gradients_through_what_comes_before(activation):
    fused = Fused("relu", input_activation=activation, input_gate=True, shuffle=2)
    layer = make_layer((2, 3, 2, 3), 4, (1, 1), Geometry(), 1, fused, dtype=torch.float64, layout="contiguous")
    check_gradients(layer, call)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_narrow_dtypes(activation, dtype):
    fused = Fused(activation, bias=False, residual="before")
    layer = make_layer((2, 5, 9, 9), 37, (1, 1), Geometry(), 1, fused, dtype=dtype, layout="channels_last")
    check_narrow_gradients(layer, call)


@pytest.mark.parametrize("fused", [Fused(), CLAMPED, ALL, EVERYTHING, Fused("prelu", residual="before", gate=True),
                                   Fused("relu", shuffle=3, input_gate=True)], ids=str)  # fmt: skip
def test_gradients_only_where_wanted(fused):
    layer = make_layer((2, 4, 3, 3), 6, (1, 1), Geometry(), 2, fused, dtype=torch.float64, layout="contiguous")
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
        w = torch.randn(6, 2, requires_grad=frozen != "weight")
        y = pointwise_conv2d(x, w, activation="relu", shuffle=2)
        with Log():
            y.sum().backward()
        assert absent not in calls
        assert {BACKWARD_WEIGHT, BACKWARD_INPUT} - {absent} <= set(calls)
        assert FORWARD not in calls, "relu's derivative shows in its output"
        assert OPS.dilated_conv2d.default not in calls


def test_backward_keeps_the_memory_format():
    for layout in ("contiguous", "channels_last"):
        x, w = lay((2, 3, 5, 5), torch.float64, layout).requires_grad_(), torch.randn(4, 3).double()
        y = pointwise_conv2d(x, w, activation="silu", shuffle=2)
        for dy in (torch.randn_like(y), torch.randn(2, 4, 5, 5).double(), torch.ones(()).double().expand(2, 4, 5, 5)):
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
            assert_format(dx, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic(layout, dtype):
    layer = make_layer((5, 33, 29, 31), 66, (1, 1), Geometry(), 1, ALL, dtype=dtype, layout=layout)
    first = call(layer)
    for _ in range(3):
        assert_exact(call(layer), first)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=case_id)
def test_threads_change_nothing(case, layout):
    (n, c, h, w), co, stride, groups, fused = case
    for shape in ((n * 3, c, h, w), (n, c, 4 * h, 4 * w)):
        layer = make_layer(shape, co, (1, 1), Geometry(stride), groups, fused, dtype=torch.float32, layout=layout)
        torch.set_num_threads(1)
        first = call(layer)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_exact(call(layer), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    layer = make_layer((2, 4, 8, 8), 6, (1, 1), Geometry(), 1, ALL, dtype=torch.float32, layout="contiguous")
    layer, leaves = leaves_of(layer)
    with torch.autocast("cpu", dtype=dtype):
        y = call(layer)
        double = pointwise_conv2d(layer.x.double(), layer.w.double())
        with torch.autocast("cpu", enabled=False):
            inner = pointwise_conv2d(layer.x, layer.w)
    assert (y.dtype, double.dtype, inner.dtype) == (dtype, torch.float64, torch.float32)
    narrow = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in layer.options.items()}
    assert_exact(y, call(Layer(layer.x.to(dtype), layer.w.to(dtype), layer.geometry, 1, narrow)))
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
        return pointwise_conv2d(x * 1.5, w, b, 1, 2, activation, activation_parameter=parameter, scale=scale,
                                residual=x.repeat(1, 2, 1, 1), gate=gate, input_activation="silu",
                                input_gate=gate[:, :4], shuffle=4) + 1  # fmt: skip

    args = lay((2, 4, 7, 8), torch.float32, layout), torch.randn(8, 2), *torch.randn(2, 8), torch.randn(2, 8)
    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled_steps(g, *args), compiled_steps(f, *args)):
        torch.testing.assert_close(a, b)  # torch's own sums for the gates' gradients go another way
        assert a.stride() == b.stride()


def test_compile_inductor():
    def f(x, w, b):
        y = x.new_zeros(1, 12, 6, 6)
        if not torch.is_grad_enabled():
            pointwise_conv2d(x, w, b, out=y[:, 4:])
        return pointwise_conv2d(x.relu(), w, b, 1, 1, "silu", shuffle=2).square() + y[:, 4:]

    args = lay((1, 8, 6, 6), torch.float32, "channels_last"), torch.randn(8, 8), torch.randn(8)
    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True)
    for a, b in zip(compiled_steps(g, *args), compiled_steps(f, *args)):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(g(*args), f(*args))


def test_compile_dynamic():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def f(x, w, gate):
        return pointwise_conv2d(x, w, None, (2, 1), 2, "relu", input_gate=gate, shuffle=2)

    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    aot = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    w = torch.randn(8, 3)
    for n, h, width in ((2, 10, 9), (4, 11, 17), (5, 32, 20)):  # sizes that are equal at first count as one
        x, gate = torch.randn(n, 6, h, width), torch.randn(n, 6)
        assert_exact(g(x, w, gate), f(x, w, gate))
        for a, b in zip(compiled_steps(aot, x, w, gate), compiled_steps(f, x, w, gate)):
            assert_exact(a, b)
    assert len(graphs) == 1, "dynamic shapes recompile"


def test_export():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 4, 1, 1))

        def forward(self, x):
            return pointwise_conv2d(x, self.weight, activation="relu", shuffle=2)

    net, x = Net(), torch.randn(2, 4, 8, 8)
    n, h = torch.export.Dim("n", min=1, max=64), torch.export.Dim("h", min=2, max=512)
    for strict in (False, True):
        program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: n, 2: h}}, strict=strict)
        assert FORWARD in [node.target for node in program.graph.nodes]
        other = torch.randn(5, 4, 21, 8)
        assert_exact(program.module()(other), net(other))
    assert FORWARD in [node.target for node in program.run_decompositions().graph.nodes]


VMAP_SHAPES = {"x": (2, 4, 5, 6), "w": (6, 2, 1, 1), "bias": (6,), "slope": (6,), "scale": (6,),
               "residual": (2, 6, 3, 6), "gate": (2, 6), "input_gate": (2, 4)}  # fmt: skip


@pytest.mark.parametrize("shuffle", [1, 3])
@pytest.mark.parametrize("batched", [*VMAP_SHAPES, "slope of one", "all"])
def test_vmap(batched, shuffle):
    """Each argument has a batch of its own, alone, with x's, with w's, or with all others."""
    shapes = dict(VMAP_SHAPES)
    if batched == "slope of one":
        shapes["slope"], batched = (1,), "slope"
    for with_x, with_w in itertools.product([False, True], [False, True]):
        in_dims, args = [], []
        for name, shape in shapes.items():
            has = batched in ("all", name) or (name == "x" and with_x) or (name == "w" and with_w)
            dim = len(shape) if with_x and has else 0
            in_dims.append(dim if has else None)
            args.append(torch.randn(3, *shape).double().movedim(0, dim) if has else torch.randn(shape).double())

        def f(x, w, bias, slope, scale, residual, gate, input_gate, first=with_w):
            return pointwise_conv2d(x, w, bias, (2, 1), 2, "prelu", activation_parameter=slope, scale=scale,
                                    residual=residual, residual_first=first, gate=gate, input_activation="silu",
                                    input_gate=input_gate, shuffle=shuffle)  # fmt: skip

        check_vmap(f, args, tuple(in_dims), 3)


def test_vmap_nested_and_of_the_raw_op():
    x, w = torch.randn(3, 2, 4, 5, 5), torch.randn(3, 6, 2, 1, 1)
    y = torch.func.vmap(lambda x, w: FORWARD(x, w, None, (1, 1), 2, *REST))(x, w)
    for i in range(3):
        torch.testing.assert_close(y[i], FORWARD(x[i], w[i], None, (1, 1), 2, *REST))
    inner = torch.func.vmap(lambda x, w: pointwise_conv2d(x, w, groups=2, shuffle=3), (0, None))
    outer = torch.func.vmap(inner, (None, 0))(x, w)
    assert outer.shape == (3, 3, 2, 6, 5, 5)
    torch.testing.assert_close(outer[1, 2], pointwise_conv2d(x[2], w[1], groups=2, shuffle=3))


def test_func_transforms():
    x, w = torch.randn(1, 2, 3, 3).double(), torch.randn(4, 2, 1, 1).double()

    def f(x, w):
        return pointwise_conv2d(x, w, None, 1, 1, "hardswish", input_activation="tanh")

    def t(x, w):
        return F.hardswish(F.conv2d(x.tanh(), w))

    def loss(g):
        return lambda *a: g(*a).sin().sum()

    for argnums in (0, 1):
        torch.testing.assert_close(torch.func.grad(loss(f), argnums)(x, w), torch.func.grad(loss(t), argnums)(x, w))
        torch.testing.assert_close(torch.func.jacrev(f, argnums)(x, w), torch.func.jacrev(t, argnums)(x, w))
        second = [torch.func.jacrev(torch.func.grad(loss(g), argnums), argnums)(x, w) for g in (f, t)]
        torch.testing.assert_close(*second)


@pytest.mark.parametrize("groups", [1, 3])
def test_flops_are_those_of_torchs_convolutions(groups):
    """A group at a time: torch counts the weight's gradient of grouped convolutions as if they were dense (2.13)."""
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 9, 8), (12, 6 // groups, 1, 1), (12,)))
    ci, co = 6 // groups, 12 // groups
    forward, backward = flop_counter.FlopCounterMode(display=False), flop_counter.FlopCounterMode(display=False)
    with forward:
        y = FORWARD(x, w, b, (2, 1), groups, *REST)
    with backward:
        y.sum().backward()
    expected_forward, expected_backward = 0, 0
    for i in range(groups):
        conv, of = flop_counter.FlopCounterMode(display=False), slice(co * i, co * i + co)
        with conv:
            y = F.conv2d(x[:, ci * i : ci * i + ci], w[of], b[of], (2, 1))
        expected_forward += conv.get_total_flops()
        with conv:
            y.sum().backward()
        expected_backward += conv.get_total_flops()
    assert forward.get_flop_counts()["Global"] == {OPS.pointwise_conv2d: expected_forward}
    assert backward.get_total_flops() == expected_backward == 2 * expected_forward
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as out:
        FORWARD_OUT(x, w, b, (2, 1), groups, *REST, torch.empty(2, 12, 5, 8))
    assert out.get_total_flops() == expected_forward


def test_inference_mode_and_no_grad():
    x, w = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    want = pointwise_conv2d(x, w)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            y = pointwise_conv2d(x, w)
            out = torch.empty(1, 4, 5, 5)
            assert pointwise_conv2d(x, w, out=out) is out
        assert not y.requires_grad
        assert_exact(y, want.detach())
        assert_exact(out, want.detach())
    with pytest.raises(RuntimeError, match="out= is not differentiable"):
        pointwise_conv2d(x, w, out=out)


def test_forward_mode_derivative_is_refused_rather_than_lost():
    forward_ad = torch.autograd.forward_ad
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward AD|forward mode|jvp"):
        pointwise_conv2d(forward_ad.make_dual(x, torch.ones_like(x)), weight)


# --- implementations --------------------------------------------------------------------------------------------------
def representative(capability: str) -> None:
    """Runs in a process of its own (test_instruction_sets): asserts what is loaded, then runs the subset."""
    assert_library_is_of(capability)
    for case, layout, dtype in itertools.product(REPRESENTATIVE, ("contiguous", "channels_last", "sliced"), DTYPES):
        test_representative(case, layout, dtype)
    for layout in ("contiguous", "channels_last"):
        for activation in ACTIVATIONS:
            test_activations_far_out(activation, torch.float32, layout)
        test_channels_of_any_count(torch.float32, layout)
    print("library", _load.libraries.get("cpu", Path("none")).name)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_instruction_sets(capability):
    if OWN.startswith(capability):
        pytest.skip("the tests above ran on it")
    if capability == "avx2" and not OWN.startswith("avx"):
        pytest.skip(f"this CPU's capability is {OWN}: no AVX2")
    assert "library " in on_capability("test_pointwise_conv2d", capability, capability)


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case, layout, dtype in itertools.product(REPRESENTATIVE, ("contiguous", "channels_last", "sliced"), DTYPES):
            test_representative(case, layout, dtype)


@compiled
def test_compiled_library_answers():
    assert_op_answers("pointwise_conv2d", lambda: pointwise_conv2d(torch.randn(1, 2, 4, 4), torch.randn(2, 2)))


# --- bad input --------------------------------------------------------------------------------------------------------
X, W, B, Y = torch.zeros(2, 4, 4, 4), torch.zeros(8, 2), torch.zeros(8), torch.zeros(2, 8, 4, 4)
W4 = W[:, :, None, None]
V, R, T = ValueError, RuntimeError, TypeError
BAD = {  # arguments, keywords, exception, and what its text must name: argument, what came, what may come
    "x is no tensor": ((1.0, W), {}, T, ["x", "float", "tensor"]),
    "weight is no tensor": ((X, None), {}, T, ["weight", "NoneType", "tensor"]),
    "bias is no tensor": ((X, W, 1), {}, T, ["bias", "int", "tensor or None"]),
    "input_gate is no tensor": ((X, W), {"input_gate": 0.5}, T, ["input_gate", "float", "tensor or None"]),
    "x of rank 2": ((X[0, 0], W), {}, V, ["x must", "[4, 4]", "[n, c, h, w]"]),
    "x of rank 5": ((X[None], W), {}, V, ["x must", "[1, 2, 4, 4, 4]", "[n, c, h, w]"]),
    "weight of rank 1": ((X, W[0]), {}, V, ["weight must", "[2]", "[co, ci / groups, 1, 1]"]),
    "weight of rank 3": ((X, W4[0]), {}, V, ["weight must", "[2, 1, 1]", "[co, ci / groups, 1, 1]"]),
    "weight of 3x3": ((X, torch.zeros(8, 4, 3, 3)), {}, R, ["weight must", "[8, 4, 3, 3]", "[co, ci / groups, 1, 1]"]),
    "weight of 1x2": ((X, torch.zeros(8, 4, 1, 2)), {}, R, ["weight must", "[8, 4, 1, 2]", "[co, ci / groups, 1, 1]"]),
    "other channels": ((X, W), {}, R, ["x must have groups * weight.shape[1] = 2 channels", "4"]),
    "weight without outputs": ((X, W[:0]), {"groups": 2}, R, ["groups", "0 output channels"]),
    "x without channels": ((X[:, :0], W), {"groups": 2}, R, ["x must", "4 channels", "got 0"]),
    "groups 0": ((X, W), {"groups": 0}, R, ["groups", "8 output channels", "0"]),
    "groups 3": ((X, W), {"groups": 3}, R, ["groups", "8 output channels", "3"]),
    "groups float": ((X, W), {"groups": 2.0}, T, ["float"]),
    "dtypes differ": ((X, W.double()), {"groups": 2}, R, ["dtype", "float32", "float64"]),
    "integers": ((X.int(), W.int()), {"groups": 2}, R, ["dtype", "int32", "float32, float64, float16 or bfloat16"]),
    "devices differ": ((X, W.to("meta")), {"groups": 2}, R, ["device", "cpu", "meta"]),
    "stride 0": ((X, W, None, 0), {"groups": 2}, V, ["stride", "0", "positive"]),
    "stride of three": ((X, W, None, (1, 2, 3)), {"groups": 2}, V, ["stride", "(1, 2, 3)", "pair"]),
    "stride float": ((X, W, None, 1.5), {"groups": 2}, T, ["stride", "1.5", "int"]),
    "stride beyond 32 bits": ((X, W, None, 2**40), {"groups": 2}, R, ["stride must not exceed 2147483647"]),
    "empty image": ((X[:, :, :0], W), {"groups": 2}, R, ["height", "0", "empty"]),
    "shuffle 0": ((X, W), {"groups": 2, "shuffle": 0}, R, ["shuffle", "8 output channels", "0"]),
    "shuffle 3": ((X, W), {"groups": 2, "shuffle": 3}, R, ["shuffle", "8 output channels", "3"]),
    "shuffle float": ((X, W), {"groups": 2, "shuffle": 2.0}, T, ["float"]),
    "input_gate of one": ((X, W), {"groups": 2, "input_gate": B[None, :4]}, R, ["input_gate must", "[1, 4]", "[2, 4]"]),
    "input_gate of rank 1": ((X, W), {"groups": 2, "input_gate": B[:4]}, R, ["input_gate must", "[4]", "[2, 4]"]),
    "input_gate of y": ((X, W), {"groups": 2, "input_gate": Y[..., 0, 0]}, R, ["input_gate must", "[2, 8]", "[2, 4]"]),
    "input_gate's dtype": ((X, W), {"groups": 2, "input_gate": X[..., 0, 0].half()}, R, ["input_gate must", "float16"]),
    "input_gate's device": ((X, W), {"groups": 2, "input_gate": X[..., 0, 0].to("meta")}, R, ["input_gate", "meta"]),
    "input_activation": ((X, W), {"groups": 2, "input_activation": "mish"}, V, ["input_activation", "'mish'", "none"]),
    "input_activation None": ((X, W), {"groups": 2, "input_activation": None}, T, ["input_activation", "None"]),
    "input prelu": ((X, W), {"groups": 2, "input_activation": "prelu"}, V, ["input_activation", "'prelu'", "relu6"]),
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
        pointwise_conv2d(*args, **keywords)
    assert type(caught.value) is exception
    assert_names(caught.value, words)


@pytest.mark.parametrize("name", EPILOGUE_BAD)
@pytest.mark.usefixtures("implementation")
def test_bad_epilogue(name):
    keywords, exception, words = EPILOGUE_BAD[name]
    with pytest.raises(exception) as caught:
        pointwise_conv2d(X, W, groups=2, **keywords)
    assert type(caught.value) is exception
    assert_names(caught.value, words)


def rest(**other) -> tuple:
    """The epilogue and what follows, some of it wrong."""
    names = ("activation", "alpha", "slope", "scale", "residual", "residual_first", "gate", "input_activation",
             "input_gate", "shuffle", "packed")  # fmt: skip
    return tuple({**dict(zip(names, REST)), **other}.values())


BAD_RAW = {
    "x of rank 3": (FORWARD, (X[0], W4, None, [1, 1], 2, *REST), ["x must", "[4, 4, 4]", "[n, c, h, w]"]),
    "weight of rank 2": (FORWARD, (X, W, None, [1, 1], 2, *REST), ["weight must", "[8, 2]", "[co, ci / groups,"]),
    "stride 0": (FORWARD, (X, W4, None, [0, 1], 2, *REST), ["stride", "[0, 1]", "positive"]),
    "stride of one": (FORWARD, (X, W4, None, [2], 2, *REST), ["stride", "[2]"]),
    "groups 3": (FORWARD, (X, W4, None, [1, 1], 3, *REST), ["groups", "8", "3"]),
    "activation": (FORWARD, (X, W4, None, [1, 1], 2, *rest(activation="mish")), ["activation", "mish", "hardswish"]),
    "slope without prelu": (FORWARD, (X, W4, None, [1, 1], 2, *rest(slope=B)), ["slope", "prelu"]),
    "prelu without slope": (FORWARD, (X, W4, None, [1, 1], 2, *rest(activation="prelu")), ["slope", "prelu"]),
    "input prelu": (FORWARD, (X, W4, None, [1, 1], 2, *rest(input_activation="prelu")), ["input_activation", "prelu"]),
    "input mish": (FORWARD, (X, W4, None, [1, 1], 2, *rest(input_activation="mish")), ["activation", "mish"]),
    "shuffle": (FORWARD, (X, W4, None, [1, 1], 2, *rest(shuffle=5)), ["shuffle", "8", "5"]),
    "meta": (FORWARD, (X.to("meta"), W4, None, [1, 1], 2, *REST), ["device", "meta", "cpu"]),
    "no tensor": (FORWARD, (1, W4, None, [1, 1], 2, *REST), ["'x'", "Tensor", "int"]),
    "out": (FORWARD_OUT, (X, W4, None, [1, 1], 2, *REST, Y[:1]), ["out must", "[1, 8, 4, 4]", "[2, 8, 4, 4]"]),
    "out's x": (FORWARD_OUT, (X[0], W4, None, [1, 1], 2, *REST, Y), ["x must", "[4, 4, 4]", "[n, c, h, w]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RAW)
@pytest.mark.usefixtures("implementation")
def test_bad_input_of_the_raw_ops(name):
    op, args, words = BAD_RAW[name]
    with pytest.raises(RuntimeError) as caught:
        op(*args)
    assert_names(caught.value, words)


def test_fake_refuses_what_the_kernel_refuses():
    """Under FakeTensorMode, hence in torch.compile, the same inputs fail with the same type."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, (op, args, _) in BAD_RAW.items():
        if name in ("no tensor", "meta"):
            continue
        with FakeTensorMode() as mode, pytest.raises(RuntimeError):
            op(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args])


@pytest.mark.parametrize("implementation", ["default", "reference"])
def test_out_that_overlaps_itself_is_refused(implementation):
    out = torch.full((1, 4, 3, 3), 5.0)
    with contextlib.ExitStack() as stack:
        if implementation == "reference":
            stack.enter_context(pytorch_ext.use("reference"))
        with pytest.raises(RuntimeError, match="out must not overlap itself, its stride along dimension 0 is 0"):
            pointwise_conv2d(torch.ones(2, 2, 3, 3), torch.ones(4, 2), out=out.expand(2, 4, 3, 3))
    assert (out == 5).all()


# --- 2**31 elements ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements_in(gigabytes, layout):
    """Images a power of two apart; what lies between is reserved, never touched."""
    far = 2**29
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (4 * far + 4096)), dtype=torch.bfloat16)
    image = (1, 80, 9) if layout == "channels_last" else (20, 200, 1)
    x, y = memory.as_strided((5, 8, 3, 7), (far, *image)), memory.as_strided((5, 9, 3, 7), (far, *image), 2048)
    x.copy_(torch.randn(5, 8, 3, 7))
    layer = Layer(x, torch.randn(9, 8, 1, 1).bfloat16(), Geometry(), 1, {"activation": "relu"})
    check_forward(layer)
    check_backward(lay(layer.y_shape, torch.bfloat16, layout), x, layer.w, Geometry(), 1)
    call(layer, out=y)
    judge(y, layer, expected(layer))
    check_backward(y, lay(x.shape, torch.bfloat16, layout), layer.w, Geometry(), 1)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements_out(gigabytes, layout):
    """A small image, expanded along the batch in NCHW, and many output channels in channels_last: only y is large."""
    if layout == "contiguous":
        x, w = torch.randn(1, 2, 64, 64).bfloat16().expand(16500, -1, -1, -1), torch.randn(32, 2, 1, 1).bfloat16()
    else:
        x, w = lay((2, 2, 64, 64), torch.bfloat16, "channels_last"), torch.randn(263_000, 2, 1, 1).bfloat16()
    y = pointwise_conv2d(x, w)
    assert y.numel() > 2**31
    assert_format(y, x)
    for n in (0, x.shape[0] // 2, x.shape[0] - 1):
        for channels in (slice(0, 16), slice(len(w) - 16, len(w))):
            part = Layer(x[n : n + 1], w[channels], Geometry())
            judge(y[n : n + 1, channels], part, expected(part))
