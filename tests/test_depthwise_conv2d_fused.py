"""Depthwise convolution with all that networks put behind it: the judge of the dense convolutions (dense.py), of which
it is the one with as many groups as channels."""

import itertools

import pytest
import torch
from bounds import assert_exact
from convolution import DTYPES, Geometry, assert_format, assert_names, at_an_end, compiled
from dense import (
    ACTIVATIONS,
    EVERYTHING,
    Fused,
    Layer,
    check_gradients,
    check_gradients_only_where_wanted,
    check_narrow_gradients,
    check_vmap,
    compiled_steps,
    expected,
    judge,
    make_layer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_depthwise_conv2d import FORWARD, FUSED, LAYOUTS, REPRESENTATIVE, WEIGHT_LAYOUTS, cases

import pytorch_ext
from pytorch_ext import _load, depthwise_conv1d, depthwise_conv2d

SAME = Geometry((1, 1), (1, 1, 1, 1))
MANY = [
    EVERYTHING,
    Fused("prelu", residual="before"),
    Fused("prelu", scale=True, one_slope=True, gate=True),
    Fused("elu", bias=False, residual="after", parameter=0.7),
    Fused("leaky_relu", scale=True, residual="before", gate=True, parameter=0.2),
    Fused("none", residual="after"),
    Fused("hardsigmoid", gate=True),
]


def call(layer: Layer):
    """The public function; padding as torch has it, which may not be negative."""
    return depthwise_conv2d(layer.x, layer.w, layer.options.get("bias"), *layer.geometry,
                            **{k: v for k, v in layer.options.items() if k != "bias"})  # fmt: skip


def make(shape, co, k, geometry, fused, **options) -> Layer:
    return make_layer(shape, co, k, geometry, shape[1], fused, **options)


def check(layer: Layer) -> None:
    y = call(layer)
    judge(y, layer, expected(layer))
    assert_format(y, layer.x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", MANY, ids=str)
def test_values(fused, layout, dtype):
    for shape, co, k, geometry in REPRESENTATIVE[:3] + REPRESENTATIVE[12:15] + REPRESENTATIVE[-2:]:
        check(make(shape, co, k, geometry, fused, dtype=dtype, layout=layout))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_activation(activation, layout):
    for fused in (Fused(activation), Fused(activation, scale=True, residual="before", gate=True)):
        for dtype in DTYPES:
            check(make((2, 12, 7, 9), 12, (3, 3), SAME, fused, dtype=dtype, layout=layout))


@settings(max_examples=max(200, settings.default.max_examples))
@given(cases(), st.sampled_from(MANY), st.integers(0, 2**31))
def test_drawn(case, fused, seed):
    torch.manual_seed(seed)
    (shape, co, k, geometry), options = case
    options = {name: options[name] for name in ("dtype", "layout", "weight_layout")}
    check(make(shape, co, k, geometry, fused, **options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "geometry"), [
    ((1, 96, 60, 61), 3, SAME),  # several parts of an image
    ((2, 40, 70, 33), 5, Geometry((2, 2), (3, 0, 1, 2))),
    ((1, 3, 300, 200), 3, SAME),  # a channel is more than a part
    ((1, 9, 40, 41), 3, Geometry((1, 2), (5, 30, 4, 4), (4, 3))),  # rows that meet no image
], ids=str)  # fmt: skip
def test_images_in_parts(shape, k, geometry, dtype, layout):
    check(make(shape, shape[1], (k, k), geometry, EVERYTHING, dtype=dtype, layout=layout))
    check(make(shape, 2 * shape[1], (k, k), geometry, MANY[1], dtype=dtype, layout=layout))


@compiled
@pytest.mark.parametrize("first", [True, False], ids=["begins", "ends"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_read_outside(dtype, first):
    for layout, fused in itertools.product(["contiguous", "channels_last"], MANY[:2]):
        layer = make((2, 5, 6, 7), 5, (3, 3), SAME, fused, dtype=dtype, layout=layout)
        last = layout == "channels_last"
        edge = lambda t: at_an_end(t.permute(0, 2, 3, 1).contiguous(), first).permute(0, 3, 1, 2)
        four = edge if last else lambda t: at_an_end(t, first)
        options = {
            name: value if not isinstance(value, torch.Tensor) else four(value) if value.dim() == 4
            else at_an_end(value, first) for name, value in layer.options.items()
        }  # fmt: skip
        check(Layer(four(layer.x), at_an_end(layer.w, first), layer.geometry, layer.groups, options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_change_nothing(layout):
    for dtype in (torch.float32, torch.bfloat16):
        layer = make((3, 33, 50, 40), 33, (3, 3), SAME, EVERYTHING, dtype=dtype, layout=layout)
        torch.set_num_threads(1)
        alone = call(layer)
        torch.set_num_threads(2)
        assert_exact(call(layer), alone)


def test_only_what_is_more_than_an_activation_takes_the_second_op():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made.append(func)
            return func(*args, **(kwargs or {}))

    x, w, ones = torch.randn(1, 2, 4, 4), torch.randn(2, 1, 3, 3), torch.ones(2)
    for options, op in (
        ({"activation": "gelu"}, FORWARD),
        ({"activation": "leaky_relu"}, FUSED),
        ({"scale": ones}, FUSED),
        ({"gate": ones[None]}, FUSED),
    ):
        made = []
        with Log():
            depthwise_conv2d(x, w, padding=1, **options)
        assert op in made
        assert {FORWARD, FUSED} - {op} - set(made)


# --- torch's subsystems -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fused", MANY, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(fused, layout):
    layer = make((2, 3, 5, 6), 6, (3, 3), Geometry((2, 1), (1, 2, 0, 1)), fused, dtype=torch.float32, layout=layout)
    tensors = [t.detach().requires_grad_() for t in (layer.x, layer.w)]
    args = (*tensors, layer.options.get("bias"), *layer.geometry, *layer.epilogue())
    outcome = torch.library.opcheck(FUSED, args)
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fused", [Fused(), EVERYTHING, Fused(scale=True, residual="before", gate=True)], ids=str)
def test_gradients(fused, activation):
    fused = fused._replace(activation=activation)
    geometry = Geometry((2, 1), (0, 1, 2, 1), (1, 2))
    check_gradients(make((2, 2, 4, 5), 4, (3, 2), geometry, fused, dtype=torch.float64, layout="contiguous"), call)


@pytest.mark.parametrize("fused", [Fused(), EVERYTHING, Fused("prelu", residual="before", gate=True)], ids=str)
def test_gradients_only_where_wanted(fused):
    layer = make((2, 4, 6, 6), 8, (3, 3), SAME, fused, dtype=torch.float64, layout="contiguous")
    check_gradients_only_where_wanted(layer, call)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_narrow_dtypes(activation, dtype):
    fused = Fused(activation, bias=False, residual="before")
    layer = make((2, 37, 9, 9), 37, (3, 3), SAME, fused, dtype=dtype, layout="channels_last")
    check_narrow_gradients(layer, call)


SHAPES = {"slope": (4,), "scale": (4,), "residual": (2, 4, 3, 6), "gate": (2, 4)}


@pytest.mark.parametrize("batched", [*SHAPES, "all"])
def test_vmap(batched):
    """Each argument of the epilogue has a batch of its own, alone, with x's, with w's, or with all others."""
    shapes = {"x": (2, 2, 5, 6), "w": (4, 1, 3, 3), **SHAPES}
    for with_x, with_w in itertools.product([False, True], [False, True]):
        in_dims, args = [], []
        for name, shape in shapes.items():
            has = batched in ("all", name) or (name == "x" and with_x) or (name == "w" and with_w)
            in_dims.append(0 if has else None)
            args.append(torch.randn(3, *shape).double() if has else torch.randn(shape).double())

        def f(x, w, slope, scale, residual, gate):
            return depthwise_conv2d(x, w, None, (2, 1), 1, 1, "prelu", activation_parameter=slope, scale=scale,
                                    residual=residual, gate=gate)  # fmt: skip

        check_vmap(f, args, tuple(in_dims), 3)


def test_compile():
    torch._dynamo.reset()

    def f(x, w, scale, gate):
        return depthwise_conv2d(x, w, None, 1, 1, 1, "silu", scale=scale, residual=x, gate=gate)

    args = torch.randn(2, 4, 5, 6), torch.randn(4, 1, 3, 3), torch.randn(4), torch.randn(2, 4)
    for dynamic in (False, True):
        fast = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(compiled_steps(fast, *args), compiled_steps(f, *args))


def test_unbatched_and_1d():
    layer = make((1, 4, 6, 7), 4, (3, 3), SAME, EVERYTHING, dtype=torch.float32, layout="contiguous")
    o = {name: value for name, value in layer.options.items() if name != "bias"}
    single = o | {"residual": o["residual"][0], "gate": o["gate"][0]}
    y = depthwise_conv2d(layer.x[0], layer.w, layer.options["bias"], *layer.geometry, **single)
    assert_exact(y, call(layer)[0])
    row = make((2, 4, 1, 9), 4, (1, 3), Geometry((1, 1), (0, 0, 1, 1)), EVERYTHING, dtype=torch.float32,
               layout="contiguous")  # fmt: skip
    o = {name: value for name, value in row.options.items() if name != "bias"} | {
        "residual": row.options["residual"].squeeze(-2)
    }
    y = depthwise_conv1d(row.x.squeeze(-2), row.w.squeeze(-2), row.options["bias"], padding=1, **o)
    assert_exact(y, call(row).squeeze(-2))


def test_autocast():
    x, w, scale = torch.randn(1, 3, 5, 5), torch.randn(3, 1, 3, 3), torch.randn(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = depthwise_conv2d(x, w, scale=scale)
    assert_exact(y, depthwise_conv2d(x.bfloat16(), w.bfloat16(), scale=scale.bfloat16()))


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for fused, dtype in itertools.product(MANY, DTYPES):
            check(make((2, 6, 7, 8), 12, (3, 2), Geometry((2, 1), (1, 0, 1, 1)), fused, dtype=dtype, layout="sliced",
                       weight_layout=WEIGHT_LAYOUTS[1]))  # fmt: skip


# --- what is refused --------------------------------------------------------------------------------------------------
X, W = torch.randn(2, 3, 5, 5), torch.randn(6, 1, 3, 3)
BAD = {
    "activation": ({"activation": "swish"}, ValueError, ["activation", "'swish'", "silu"]),
    "no slopes": ({"activation": "prelu"}, TypeError, ["prelu", "activation_parameter", "None"]),
    "a parameter too many": ({"activation_parameter": 0.1}, ValueError, ["none has no parameter", "0.1"]),
    "slopes": ({"activation": "prelu", "activation_parameter": torch.ones(3)}, RuntimeError, ["slope", "[6]", "[3]"]),
    "scale is no tensor": ({"scale": 2.0}, TypeError, ["scale must be a tensor or None", "float"]),
    "scale": ({"scale": torch.ones(3)}, RuntimeError, ["scale", "[6]", "[3]"]),
    "scale in double": ({"scale": torch.ones(6).double()}, RuntimeError, ["scale", "torch.float32", "torch.float64"]),
    "bias": ({"scale": torch.ones(6), "bias": torch.ones(5)}, RuntimeError, ["bias", "[6]", "[5]"]),
    "residual": ({"residual": torch.ones(2, 6, 5, 5)}, RuntimeError, ["residual", "[2, 6, 3, 3]", "[2, 6, 5, 5]"]),
    "gate": ({"gate": torch.ones(6)}, RuntimeError, ["gate", "[2, 6]", "[6]"]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, implementation):
    options, exception, words = BAD[name]
    if implementation == "cpp" and "cpu" not in _load.libraries:
        pytest.skip("not compiled")
    with pytorch_ext.use(implementation), pytest.raises(exception) as caught:
        depthwise_conv2d(X, W, **options)
    assert_names(caught.value, words)
