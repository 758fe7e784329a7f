"""Activations on their own against their formulas in float64, torch's own subsystems, and every kind of bad input."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact, assert_linear, assert_nonlinear
from convolution import DTYPES, LAYOUTS, assert_names, at_an_end, compiled, lay, needs_capability
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import flop_counter

import pytorch_ext
from pytorch_ext import _load, activation
from pytorch_ext._epilogue import DEFAULTS

ROOT = Path(__file__).resolve().parent.parent
OPS = torch.ops.pytorch_ext
FORWARD, BACKWARD = OPS.activation.default, OPS.activation_backward.default
inf, nan = float("inf"), float("nan")


# --- the formulas, and torch's own functions --------------------------------------------------------------------------
def along(slope, x: Tensor) -> Tensor:
    return slope.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 1 else slope


FORMULAS = {
    "none": lambda x, a, s: x,
    "relu": lambda x, a, s: torch.where(x <= 0, 0, x),
    "relu6": lambda x, a, s: torch.where(x <= 0, 0, torch.where(x >= 6, 6, x)),
    "silu": lambda x, a, s: x / (1 + torch.exp(-x)),
    "hardswish": lambda x, a, s: x * (x + 3).clamp(0, 6) / 6,
    "hardsigmoid": lambda x, a, s: (x + 3).clamp(0, 6) / 6,
    "sigmoid": lambda x, a, s: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x, a, s: torch.tanh(x),
    "gelu": lambda x, a, s: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    # 0.5 * (1 + tanh(u)) is sigmoid(2 u), which keeps its digits
    "gelu_tanh": lambda x, a, s: x / (1 + torch.exp(-2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x, a, s: torch.where(x > 0, x, a * x),
    "elu": lambda x, a, s: torch.where(x > 0, x, a * torch.expm1(x)),
    "prelu": lambda x, a, s: torch.where(x > 0, x, along(s, x) * x),
}
TORCHS = {
    "none": lambda x, a, s: x * 1,
    "relu": lambda x, a, s: F.relu(x),
    "relu6": lambda x, a, s: F.relu6(x),
    "silu": lambda x, a, s: F.silu(x),
    "hardswish": lambda x, a, s: F.hardswish(x),
    "hardsigmoid": lambda x, a, s: F.hardsigmoid(x),
    "sigmoid": lambda x, a, s: torch.sigmoid(x),
    "tanh": lambda x, a, s: torch.tanh(x),
    "gelu": lambda x, a, s: F.gelu(x),
    "gelu_tanh": lambda x, a, s: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x, a, s: F.leaky_relu(x, a),
    "elu": lambda x, a, s: F.elu(x, a),
    "prelu": lambda x, a, s: F.prelu(x, s),
}
ALPHA = {"leaky_relu": 0.2, "elu": 1.3}


def with_gradients(function, x, dy, alpha, slope) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, dx and dslope of a function of torch's."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = None if slope is None else slope.detach().requires_grad_()
        y = function(x, alpha, slope)
        dx, *dslope = torch.autograd.grad(y, [x] if slope is None else [x, slope], dy)
    return y.detach(), dx, dslope[0] if dslope else None


def double(t):
    return None if t is None else t.double()


def as_torch_errs(kind, index, y64, x, dy, alpha, slope) -> Tensor:
    """What bound 3 takes for torch's result: in float64, where torch's is the reference, y64 and an error that is to
    float64's eps as torch's in float32 is to float32's."""
    if x.dtype != torch.float64 or not x.numel():
        return with_gradients(TORCHS[kind], x, dy, alpha, slope)[index]
    narrow = [None if t is None else t.float() for t in (x, dy, slope)]
    got = with_gradients(TORCHS[kind], *narrow[:2], alpha, narrow[2])[index]
    exact = with_gradients(FORMULAS[kind], *map(double, narrow[:2]), alpha, double(narrow[2]))[index]
    return y64 + (got.double() - exact).abs().max() * 2.0**-29


def check(x: Tensor, dy: Tensor, kind: str, slope: Tensor | None = None) -> None:
    """Forward and backward: bound 3, and for the sums of dslope bound 2."""
    alpha = ALPHA.get(kind, 0.0)
    y = FORWARD(x, kind, alpha, slope)
    dx, dslope = BACKWARD(dy, x, kind, alpha, slope)
    assert_order(y, x)
    assert_order(dx, x)
    y64, dx64, dslope64 = with_gradients(FORMULAS[kind], double(x), double(dy), alpha, double(slope))
    for index, (ours, exact) in enumerate(((y, y64), (dx, dx64))):
        assert ours.dtype == x.dtype
        assert_nonlinear(ours, exact, as_torch_errs(kind, index, exact, x, dy, alpha, slope))
    if slope is None:
        assert dslope.shape == (0,)
    else:
        products = torch.where(x > 0, 0, (x.double() * dy.double()).abs())
        channels = [d for d in range(x.dim()) if d != 1 or slope.numel() == 1]
        magnitude = products.sum(channels).view(-1)
        assert_linear(dslope, dslope64, magnitude, max(x.numel() // slope.numel(), 1))


def is_dense(x: Tensor) -> bool:
    run = 1
    if not x.numel():
        return True
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape) if n != 1):
        if stride != run:
            return False
        run *= size
    return True


def assert_order(y: Tensor, x: Tensor) -> None:
    """y lies as x does, where x is dense; else in x's memory format."""
    assert y.shape == x.shape
    if is_dense(x):
        assert y.stride() == x.stride()
    elif x.dim() == 4 and F.interpolate(x.detach(), size=(2, 2)).stride(1) == 1:  # torch's rule
        assert y.is_contiguous(memory_format=torch.channels_last)
    else:
        assert y.is_contiguous()


def check_all(shape, kind, slopes="each", *, dtype=torch.float32, layout="contiguous", dy_layout=None) -> None:
    x, dy = lay(shape, dtype, layout), lay(shape, dtype, dy_layout or layout)
    slope = torch.randn(shape[1] if slopes == "each" else 1).to(dtype) if kind == "prelu" else None
    check(x, dy, kind, slope)


BENCH = list(csv.DictReader((ROOT / "bench/shapes/activation.csv").open()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: row["name"])
def test_bench_set(row, layout):
    check_all((1, *(int(row[name]) for name in "chw")), row["kind"], layout=layout)


# --- values -----------------------------------------------------------------------------------------------------------
REPRESENTATIVE = [
    *[((2, 5, 7, 9), kind) for kind in FORMULAS],
    ((2, 16, 6, 7), "prelu"),  # whole vectors of channels
    ((3, 24, 4, 4), "prelu"),  # and of planes
    ((2, 3, 1, 1), "prelu"),
    ((1, 33, 3, 3), "prelu"),
    ((2, 6, 40, 41), "prelu", "one"),
    ((1, 1, 5, 5), "prelu"),
    ((5, 2, 33, 33), "prelu"),
    ((1, 3, 1, 2), "silu"),
    ((0, 3, 4, 4), "prelu"),
    ((0, 3, 4, 4), "silu"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
def test_representative(case, layout, dtype):
    check_all(*case, dtype=dtype, layout=layout)


@settings(max_examples=max(60, settings.default.max_examples))
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5), st.sampled_from(sorted(FORMULAS)), st.randoms(),
    st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_any_rank_and_any_order_of_dimensions(shape, kind, random, dtype, one):
    def tensor():
        order = list(range(len(shape)))
        random.shuffle(order)
        dense = torch.randn([shape[d] for d in order]).to(dtype)
        return dense.permute([order.index(d) for d in range(len(shape))])

    slope = None
    if kind == "prelu":
        slope = torch.randn(1 if one or len(shape) == 1 else shape[1]).to(dtype)
    check(tensor(), tensor(), kind, slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", FORMULAS)
def test_values_far_out_and_not_finite(kind, dtype):
    """NaN, infinities and zeros of both signs, as the formula has them; torch's gelu is NaN at infinity."""
    far = [
        0.0,
        -0.0,
        3.0,
        -3.0,
        6.0,
        88.0,
        -88.0,
        104.0,
        -104.0,
        200.0,
        -200.0,
        800.0,
        -800.0,
        1e10,
        -1e10,
        1e30,
        -1e30,
    ]
    x = torch.tensor([inf, -inf, nan, *far, 1e-30, -1e-30, 1e-44, -1e-44], dtype=dtype).repeat(8)
    slope = torch.tensor([0.25], dtype=dtype) if kind == "prelu" else None
    alpha = ALPHA.get(kind, 0.0)
    expected = FORMULAS[kind](x.double(), alpha, double(slope)).to(dtype)
    y = FORWARD(x, kind, alpha, slope)
    assert torch.equal(y.isnan(), expected.isnan())
    finite = torch.finfo(dtype)
    torch.testing.assert_close(y, expected, rtol=4 * finite.eps, atol=finite.tiny, equal_nan=True)
    _, dx, _ = with_gradients(TORCHS[kind], x, torch.ones_like(x), alpha, slope)
    ours, _ = BACKWARD(torch.ones_like(x), x, kind, alpha, slope)
    usual = ~x.isinf() & (x.abs() < 1e15)  # there torch's own vectors and scalars disagree
    torch.testing.assert_close(ours[usual], dx[usual], rtol=1e-5, atol=2 * finite.eps, equal_nan=True)


@pytest.mark.parametrize("kind", ["relu", "relu6", "hardswish", "hardsigmoid"])
def test_a_clipped_gradient_is_zero_whatever_comes_in(kind):
    x = torch.tensor([-4.0]).repeat(40)
    for dy in (inf, nan):
        assert not BACKWARD(torch.full_like(x, dy), x, kind, 0.0, None)[0].any()


@pytest.mark.parametrize(("kind", "ulps"), [("silu", 4), ("sigmoid", 4), ("tanh", 4), ("elu", 5)])
def test_digits_of_small_results(kind, ulps):
    """Relative, over a million floats: bound 3 looks at the largest error alone."""
    x = torch.cat([torch.linspace(-20, 20, 1 << 19), torch.logspace(-30, 1, 1 << 18), -torch.logspace(-30, 1, 1 << 18)])
    exact = FORMULAS[kind](x.double(), 1.0, None)
    error = ((FORWARD(x, kind, 1.0, None) - exact) / exact).abs().max().item() / 2**-23
    assert error < ulps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FORMULAS)
def test_every_bit_pattern_of_16_bits(kind, dtype):
    """One rounding of what float32 gives: its own error, of a few eps of x, is the rest of the bound."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = x[x.isfinite() & (x.abs() < 1e9)]
    slope = torch.tensor([0.3], dtype=dtype) if kind == "prelu" else None
    alpha = ALPHA.get(kind, 0.0)
    exact = FORMULAS[kind](x.double(), alpha, double(slope))
    allowed = torch.finfo(dtype).eps * exact.abs() + 4 * 2.0**-23 * x.double().abs().clamp(max=8) + 2.0**-24
    assert ((FORWARD(x, kind, alpha, slope).double() - exact).abs() <= allowed).all()


@compiled
@pytest.mark.parametrize("first", [True, False], ids=["begins", "ends"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (63,), (2, 5, 3), (2, 3, 5, 5), (3, 17)], ids=str)
def test_nothing_is_read_outside(shape, dtype, first):
    x, dy = (at_an_end(torch.randn(shape).to(dtype), first) for _ in range(2))
    check(x, dy, "silu")
    c = shape[1] if len(shape) > 1 else 1
    check(x, dy, "prelu", at_an_end(torch.randn(c).to(dtype), first))


def test_long_sums_of_slopes_keep_their_digits():
    x, dy = -torch.rand(2, 3, 400, 400) - 0.5, torch.rand(2, 3, 400, 400)
    for layout in (torch.contiguous_format, torch.channels_last):
        args = dy.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
        for slope, dims in ((torch.zeros(3), (0, 2, 3)), (torch.zeros(1), (0, 1, 2, 3))):
            _, dslope = BACKWARD(*args, "prelu", 0.0, slope)
            exact = (x.double() * dy.double()).sum(dims)
            assert ((dslope - exact) / exact).abs().max() < 2e-5


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("slopes", ["each", "one"])
def test_threads_change_nothing(slopes, layout):
    x, dy = lay((4, 24, 57, 55), torch.float32, layout), lay((4, 24, 57, 55), torch.float32, layout)
    slope = torch.rand(24 if slopes == "each" else 1)

    def results():
        return [
            FORWARD(x, "silu", 0.0, None),
            FORWARD(x, "prelu", 0.0, slope),
            BACKWARD(dy, x, "gelu", 0.0, None)[0],
            *BACKWARD(dy, x, "prelu", 0.0, slope),
        ]

    alone = results()
    torch.set_num_threads(2)
    for one, two in zip(alone, results()):
        assert_exact(two, one)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@compiled
def test_instruction_sets(capability):
    """The tests above again, in a process whose torch is told of fewer instructions."""
    needs_capability(capability)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "far_out or digits or bit_pattern or (representative and contiguous) or outside or long_sums"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case in REPRESENTATIVE:
            for dtype in DTYPES:
                check_all(*case, dtype=dtype, layout="channels_last")


@compiled
def test_compiled_library_answers():
    for name in ("activation", "activation_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pytorch_ext::{name}", "CPU")


# --- torch's subsystems -----------------------------------------------------------------------------------------------
def parameter_of(kind, dtype=torch.float32, c=3):
    return torch.rand(c, dtype=dtype) if kind == "prelu" else ALPHA.get(kind)


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_opcheck(kind, layout):
    def tensor(t):
        return t.detach().requires_grad_()

    x, dy = (tensor(lay((2, 3, 4, 5), torch.float32, layout)) for _ in range(2))
    slope = tensor(torch.rand(3)) if kind == "prelu" else None
    for call in ((FORWARD, (x, kind, 0.5, slope)), (BACKWARD, (dy, x, kind, 0.5, slope))):
        outcome = torch.library.opcheck(*call)
        assert set(outcome.values()) == {"SUCCESS"}
        assert len(outcome) == 4


@pytest.mark.parametrize("kind", FORMULAS)
def test_gradients(kind):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    parameter = parameter_of(kind, torch.float64)
    leaves = [x] if not isinstance(parameter, Tensor) else [x, parameter.requires_grad_()]

    def call(x, parameter=parameter):
        return activation(x, kind, parameter)

    torch.autograd.gradcheck(call, leaves)
    torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("kind", [kind for kind in FORMULAS if kind != "none"])
def test_gradients_of_the_backward_op(kind):
    x, dy = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    alpha, slope = ALPHA.get(kind, 0.0), torch.rand(3, dtype=torch.float64, requires_grad=True)
    leaves = [dy, x, slope] if kind == "prelu" else [dy, x]

    def call(dy, x, slope=None):
        dx, dslope = BACKWARD(dy, x, kind, alpha, slope)
        return dx if slope is None else (dx, dslope)

    torch.autograd.gradcheck(call, leaves)
    torch.autograd.gradgradcheck(call, leaves)


def test_gradients_only_where_wanted():
    x, slope = torch.randn(2, 3, 4), torch.rand(3, requires_grad=True)
    activation(x, "prelu", slope).sum().backward()
    torch.testing.assert_close(slope.grad, torch.where(x > 0, 0, x).sum((0, 2)))
    x.requires_grad_()
    activation(x, "prelu", slope.detach()).sum().backward()
    assert x.grad is not None


def test_the_gradient_keeps_the_memory_order():
    x = lay((2, 3, 4, 5), torch.float32, "channels_last").requires_grad_()
    activation(x, "silu").backward(torch.randn(2, 3, 4, 5))
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", FORMULAS)
def test_compile_aot(kind):
    x, parameter = lay((2, 3, 4, 5), torch.float32, "channels_last").requires_grad_(), parameter_of(kind)

    torch._dynamo.reset()

    def step(function):
        return torch.autograd.grad(function(x, kind, parameter).square().sum(), x)[0]

    torch.testing.assert_close(step(torch.compile(activation, backend="aot_eager", fullgraph=True)), step(activation))


def test_compile_dynamic():
    step = torch.compile(lambda x: activation(x, "silu"), backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 4, 5), (4, 3, 6, 7), (1, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(step(x), F.silu(x))


def test_export():
    class Net(torch.nn.Module):
        def forward(self, x):
            return activation(x, "hardswish")

    x = torch.randn(2, 3, 4, 5)
    program = torch.export.export(Net(), (x,))
    assert any("pytorch_ext.activation" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), F.hardswish(x))


@pytest.mark.parametrize("in_dims", [(0, None), (2, None), (None, 0), (1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("slopes", [1, 4])
def test_vmap(slopes, shape, in_dims):
    """Against a loop: prelu, whose slopes may be batched too, forward and backward."""
    if len(shape) == 1 and slopes > 1:
        pytest.skip("one dimension has one slope")
    batch = 6

    def batched(shape, dim):
        if dim is None:
            return torch.randn(shape)
        return torch.randn(batch, *shape).movedim(0, min(dim, len(shape)))

    dims = tuple(None if d is None else min(d, n) for d, n in zip(in_dims, (len(shape), 1)))
    x, dy, slope = batched(shape, in_dims[0]), batched(shape, in_dims[0]), batched((slopes,), in_dims[1])

    def both(x, dy, slope):
        return FORWARD(x, "prelu", 0.0, slope), *BACKWARD(dy, x, "prelu", 0.0, slope)

    got = torch.vmap(both, in_dims=(dims[0], dims[0], dims[1]))(x, dy, slope)
    pick = lambda t, d, i: t if d is None else t.select(d, i)
    loop = [both(pick(x, dims[0], i), pick(dy, dims[0], i), pick(slope, dims[1], i)) for i in range(batch)]
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*loop))))


def test_vmap_without_slopes():
    x, dy = torch.randn(2, 5, 3), torch.randn(5, 2, 3)
    got, (dx, _) = (
        torch.vmap(lambda x: activation(x, "gelu"), in_dims=1, out_dims=1)(x),
        torch.vmap(lambda dy, x: BACKWARD(dy, x, "gelu", 0.0, None), in_dims=(0, 1), out_dims=(0, None))(dy, x),
    )
    torch.testing.assert_close(got, F.gelu(x))
    torch.testing.assert_close(dx, BACKWARD(dy, x.transpose(0, 1).contiguous(), "gelu", 0.0, None)[0])


@pytest.mark.parametrize("kind", [kind for kind in FORMULAS if kind != "none"])
def test_func_transforms(kind):
    x, parameter = torch.randn(3, 4), parameter_of(kind, c=4)

    def loss(function):
        return lambda x: function(x).square().sum()

    ours = loss(lambda x: activation(x, kind, parameter))
    torchs = loss(lambda x: TORCHS[kind](x, ALPHA.get(kind, 0.0), parameter if kind == "prelu" else None))
    torch.testing.assert_close(torch.func.grad(ours)(x), torch.func.grad(torchs)(x))
    many = torch.randn(5, 3, 4)
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(ours))(many), torch.stack([torch.func.grad(torchs)(x) for x in many])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_dtype(dtype):
    with torch.autocast("cpu", dtype=dtype):
        assert activation(torch.randn(3), "silu").dtype == torch.float32 == F.silu(torch.randn(3)).dtype


def test_flops_are_none_as_torchs():
    x = torch.randn(2, 3, requires_grad=True)
    with flop_counter.FlopCounterMode(display=False) as counter:
        activation(x, "silu").sum().backward()
    assert counter.get_total_flops() == 0


def test_inference_mode_and_no_grad():
    x = torch.randn(2, 3)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            torch.testing.assert_close(activation(x, "silu"), F.silu(x))


def test_defaults_are_torchs():
    x = torch.randn(50)
    assert DEFAULTS.keys() == {"leaky_relu", "elu"}
    torch.testing.assert_close(activation(x, "leaky_relu"), F.leaky_relu(x))
    torch.testing.assert_close(activation(x, "elu"), F.elu(x))


def test_every_activation_is_here():
    assert set(pytorch_ext.ACTIVATIONS) == FORMULAS.keys() == TORCHS.keys()


# --- what is refused --------------------------------------------------------------------------------------------------
X = torch.randn(2, 3, 4)
BAD = {  # arguments of the public function, exception, and what its text must name
    "no tensor": (([1.0], "relu"), TypeError, ["x must be a tensor", "list"]),
    "kind is no string": ((X, torch.relu), TypeError, ["kind", "silu"]),
    "unknown kind": ((X, "swish"), ValueError, ["kind", "'swish'", "silu"]),
    "a parameter too many": ((X, "relu", 0.1), ValueError, ["relu has no parameter", "0.1"]),
    "no slopes": ((X, "prelu"), TypeError, ["prelu", "parameter", "None"]),
    "slopes of leaky_relu": ((X, "leaky_relu", torch.ones(3)), TypeError, ["parameter of leaky_relu"]),
    "a number's shape": ((torch.tensor(1.0), "relu"), RuntimeError, ["x must have at least one dimension", "[]"]),
    "whole numbers": ((torch.arange(3), "relu"), RuntimeError, ["float32", "torch.int64"]),
    "slopes of another size": ((X, "prelu", torch.ones(4)), RuntimeError, ["slope", "[3]", "[1]", "[4]"]),
    "slopes of one dimension": ((torch.ones(3), "prelu", torch.ones(3)), RuntimeError, ["slope", "[1]", "[3]"]),
    "slopes in a matrix": ((X, "prelu", torch.ones(3, 1)), RuntimeError, ["slope", "[3, 1]"]),
    "slopes in double": ((X, "prelu", torch.ones(3).double()), RuntimeError, ["slope", "torch.float32", "float64"]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, implementation):
    args, exception, words = BAD[name]
    if implementation == "cpp" and "cpu" not in _load.libraries:
        pytest.skip("not compiled")
    with pytorch_ext.use(implementation), pytest.raises(exception) as caught:
        activation(*args)
    assert_names(caught.value, words)


BAD_RAW = {
    "unknown": (FORWARD, (X, "swish", 0.0, None), ["activation must be one of none, relu", "'swish'"]),
    "slope without prelu": (FORWARD, (X, "relu", 0.0, torch.ones(3)), ["slope belongs to prelu"]),
    "prelu without slope": (FORWARD, (X, "prelu", 0.0, None), ["slope belongs to prelu"]),
    "dy of another shape": (BACKWARD, (X[:1], X, "relu", 0.0, None), ["dy", "[2, 3, 4]", "[1, 3, 4]"]),
    "dy of another dtype": (BACKWARD, (X.double(), X, "relu", 0.0, None), ["dy", "torch.float32", "float64"]),
    "a number": (BACKWARD, (X.sum(), X.sum(), "relu", 0.0, None), ["x must have at least one dimension"]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference", "meta"])
@pytest.mark.parametrize("name", BAD_RAW)
def test_bad_input_of_the_raw_ops(name, implementation):
    op, args, words = BAD_RAW[name]
    if implementation == "meta":
        args = [t.to("meta") if isinstance(t, Tensor) else t for t in args]
    elif implementation == "cpp" and "cpu" not in _load.libraries:
        pytest.skip("not compiled")
    forced = "reference" if implementation == "meta" else implementation
    with pytorch_ext.use(forced), pytest.raises(RuntimeError) as caught:
        op(*args)
    assert_names(caught.value, words)


@compiled
def test_more_than_2_to_the_31_elements(gigabytes):
    x = torch.zeros(2**31 + 77, dtype=torch.bfloat16)
    x[-80:] = torch.linspace(-3, 3, 80)
    y = FORWARD(x, "silu", 0.0, None)
    torch.testing.assert_close(y[-80:], F.silu(x[-80:]))
    assert not y[:-80].any()


def beside_bench() -> None:
    """For tests/gpu_budget.py: what no layer of the benchmark calls."""
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.empty(8, 64, 56, 56).contiguous(memory_format=layout)
        OPS.activation_backward(torch.empty_like(x), x, "prelu", 0.0, torch.empty(64))
