"""Upsampling against its formula in float64 with torch's own coordinates, against torch, and torch's subsystems."""

import csv
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact, assert_linear
from convolution import (
    DTYPES,
    LAYOUTS,
    assert_format,
    assert_library_is_of,
    at_an_end,
    compiled,
    lay,
    needs_capability,
    on_capability,
)
from hypothesis import given
from hypothesis import strategies as st
from moves import check_bad, check_export, check_transforms
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import pytorch_ext
from pytorch_ext import upsample2d
from pytorch_ext.ops.upsample2d import MODES, sources

ROOT = Path(__file__).resolve().parent.parent
OPS = torch.ops.pytorch_ext
FORWARD, BACKWARD = OPS.upsample2d.default, OPS.upsample2d_backward.default


# --- the formula ------------------------------------------------------------------------------------------------------
def matrix(inputs, outputs, scale, mode, align_corners, dtype) -> Tensor:
    """[outputs, inputs] in float64: what each output takes of each input."""
    lower, upper, weight = sources(inputs, outputs, scale, mode, align_corners, dtype)
    result, each = torch.zeros(outputs, inputs, dtype=torch.float64, device="cpu"), torch.arange(outputs, device="cpu")
    result.index_put_((each, lower), 1 - weight.double(), accumulate=True)
    return result.index_put_((each, upper), weight.double(), accumulate=True)


def check(
    x: Tensor, dy: Tensor, mode: str, align_corners=False, scales=(None, None), add: Tensor | None = None
) -> None:
    """Forward and backward. Nearest alone moves data, so it is exact; all else is linear."""
    size = tuple(dy.shape[2:])
    y = FORWARD(x, size, *scales, mode, align_corners, add)
    dx = BACKWARD(dy, x.shape[2:], *scales, mode, align_corners)
    assert_format(y, x)
    assert_format(dx, dy)
    axes = zip(x.shape[2:], size, scales)
    matrices = [matrix(*axis, mode, align_corners, x.dtype) for axis in axes]
    readers = [int((m != 0).sum(0).max()) for m in matrices]
    h, w = (m.to(x.device) for m in matrices)
    exact = h @ x.double() @ w.T
    if mode != "bilinear" and add is None:
        assert_exact(y, exact.to(x.dtype))
    else:
        magnitude = h @ x.double().abs() @ w.T
        added = 0 if add is None else add.double()
        assert_linear(y, exact + added, magnitude + abs(added), 8)
    assert_linear(dx, h.T @ dy.double() @ w, h.T @ dy.double().abs() @ w, readers[0] * readers[1] + 8)


def check_all(shape, size, mode, align_corners=False, scales=(None, None), with_add=False, *,
              dtype=torch.float32, layout="contiguous") -> None:  # fmt: skip
    x, dy = lay(shape, dtype, layout), lay((*shape[:2], *size), dtype, layout)
    check(x, dy, mode, align_corners, scales, lay((*shape[:2], *size), dtype, layout) if with_add else None)


BENCH = list(csv.DictReader((ROOT / "bench/shapes/upsample2d.csv").open()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: row["name"])
def test_bench_set(row, layout):
    check_all((1, *(int(row[name]) for name in "chw")), (int(row["oh"]), int(row["ow"])), row["mode"], layout=layout)


REPRESENTATIVE = [
    ((2, 3, 5, 7), (10, 14), "nearest"),
    ((2, 3, 5, 7), (10, 14), "bilinear"),
    ((2, 3, 5, 7), (10, 14), "bilinear", True),
    ((1, 16, 9, 20), (18, 40), "bilinear", False, (2.0, 2.0)),
    ((1, 20, 4, 5), (9, 13), "nearest"),
    ((1, 20, 4, 5), (9, 13), "nearest-exact"),
    ((2, 3, 6, 5), (3, 2), "bilinear"),  # smaller
    ((1, 2, 20, 30), (7, 11), "nearest-exact"),
    ((1, 2, 3, 3), (24, 25), "bilinear"),
    ((1, 2, 30, 33), (40, 45), "bilinear", False, (1.37, 1.37)),
    ((2, 5, 4, 4), (8, 8), "bilinear", False, (None, None), True),  # a feature pyramid
    ((2, 5, 4, 4), (8, 8), "nearest", False, (None, None), True),
    ((1, 16, 3, 4), (7, 8), "nearest", False, (None, None), True),
    ((1, 3, 1, 1), (5, 4), "bilinear", True),
    ((1, 3, 4, 5), (1, 1), "bilinear", True),
    ((2, 3, 4, 5), (4, 5), "nearest"),
    ((2, 3, 4, 5), (4, 5), "bilinear", False, (1.2, 1.1)),
    ((0, 3, 4, 5), (8, 10), "bilinear"),
    ((1, 0, 4, 5), (8, 10), "nearest"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
def test_representative(case, layout, dtype):
    check_all(*case, dtype=dtype, layout=layout)


def representative(capability: str) -> None:
    """For `on_capability`."""
    assert_library_is_of(capability)
    for case, dtype, layout in itertools.product(REPRESENTATIVE, DTYPES, ("contiguous", "channels_last", "sliced")):
        check_all(*case, dtype=dtype, layout=layout)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@compiled
def test_instruction_sets(capability):
    needs_capability(capability)
    on_capability("test_upsample2d", capability, capability)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(
    st.integers(1, 2), st.integers(1, 20), SIZES, SIZES, st.sampled_from(MODES), st.booleans(),
    st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.booleans(),
)  # fmt: skip
def test_any_size(n, c, inputs, outputs, mode, align_corners, dtype, layout, with_add):
    check_all(
        (n, c, *inputs),
        outputs,
        mode,
        align_corners and mode == "bilinear",
        with_add=with_add,
        dtype=dtype,
        layout=layout,
    )


# --- torch's coordinates ----------------------------------------------------------------------------------------------
FACTORS = (0.5, 0.7, 1.0, 1.1, 1.2, 1.25, 1.3, 1.5, 2.0, 2.05, 2.3, 3.0, 3.3, 4.0)


def ramp(inputs: int) -> Tensor:
    return torch.arange(inputs, dtype=torch.float32).expand(1, 1, 2, -1).contiguous()


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_is_torchs(mode):
    """Every index of axes up to 40 -> 90, and of factors that do not divide them."""
    for inputs in range(1, 41):
        x = ramp(inputs)
        for outputs in range(1, 91, 1 + inputs % 3):
            assert_exact(upsample2d(x, (2, outputs), mode=mode), F.interpolate(x, (2, outputs), mode=mode))
        for factor in FACTORS:
            for again in (None, True):
                if int(inputs * factor):
                    how = {"scale_factor": (1.0, factor), "mode": mode, "recompute_scale_factor": again}
                    assert_exact(upsample2d(x, **how), F.interpolate(x, **how))


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_is_torchs(align_corners):
    """Of a ramp, the result is the coordinate."""
    for inputs in range(1, 41, 3):
        x = ramp(inputs)
        for outputs in range(1, 91, 2):
            how = {"size": (2, outputs), "mode": "bilinear", "align_corners": align_corners}
            torch.testing.assert_close(upsample2d(x, **how), F.interpolate(x, **how), rtol=1e-6, atol=1e-5)
        for factor, again in itertools.product(FACTORS, (None, True)):
            if int(inputs * factor):
                how = {"scale_factor": (1.0, factor), "mode": "bilinear", "align_corners": align_corners}
                how["recompute_scale_factor"] = again
                torch.testing.assert_close(upsample2d(x, **how), F.interpolate(x, **how), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_torchs_own_samples(mode):
    op = next(op for op in op_db if op.name == "nn.functional.interpolate" and op.variant_test_name == mode)
    count = 0
    for sample in op.sample_inputs("cpu", torch.float32):
        kwargs = dict(sample.kwargs)
        if sample.input.dim() == 4 and kwargs.pop("antialias", None) in (None, False):
            names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
            arguments = {**dict(zip(names, sample.args)), **kwargs}
            if isinstance(arguments.get("size"), float):
                continue
            torch.testing.assert_close(
                upsample2d(sample.input, **arguments), op(sample.input, *sample.args, **sample.kwargs)
            )
            count += 1
    assert count > 3


def test_golden_values():
    """SPEC 12.1, in the interior: bilinear x2 of a ramp goes by halves, a quarter aside."""
    y = upsample2d(ramp(5), scale_factor=2, mode="bilinear", align_corners=False)[0, 0, 0]
    assert y.tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]
    y = upsample2d(ramp(4), (2, 7), mode="bilinear", align_corners=True)[0, 0, 0]
    torch.testing.assert_close(y, torch.arange(7) / 2)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("size", [(14, 18), (10, 20), (3, 5)])
def test_bytes(mode, size):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randint(0, 255, (2, 3, 7, 9), dtype=torch.uint8).contiguous(memory_format=layout)
        assert_exact(upsample2d(x, size, mode=mode), F.interpolate(x, size, mode=mode))


def test_only_what_is_read_counts():
    """An infinity reaches its neighbours, and is a NaN nowhere; forward and backward."""
    x = torch.randn(1, 17, 9, 40)
    x[0, :, 4, 20] = torch.inf
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        y = upsample2d(x, scale_factor=2, mode="bilinear")
        assert not y.isnan().any() and int(y.isinf().sum()) == 17 * 16
        dx = BACKWARD(x, (4, 20), None, None, "bilinear", False)
        assert not dx.isnan().any()


def test_backward_has_the_same_bits_every_time():
    """In torch it is a scatter: #68961."""
    dy = torch.randn(2, 5, 67, 93)
    for mode, layout in itertools.product(MODES, (torch.contiguous_format, torch.channels_last)):
        dy = dy.contiguous(memory_format=layout)
        first = BACKWARD(dy, (30, 41), None, None, mode, False)
        torch.set_num_threads(2)
        assert_exact(BACKWARD(dy, (30, 41), None, None, mode, False), first)
        torch.set_num_threads(1)


def test_adjoint():
    """<A x, y> = <x, A' y>"""
    for mode, (inputs, outputs) in itertools.product(MODES, (((5, 6), (13, 17)), ((13, 17), (5, 6)))):
        x, y = (torch.randn(2, 3, *size, dtype=torch.float64) for size in (inputs, outputs))
        up, down = FORWARD(x, outputs, None, None, mode, False, None), BACKWARD(y, inputs, None, None, mode, False)
        torch.testing.assert_close((up * y).sum(), (x * down).sum())


@compiled
@pytest.mark.parametrize("first", [True, False], ids=["begins", "ends"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_read_outside(dtype, first):
    for c, inputs, outputs in ((3, (5, 7), (10, 14)), (17, (4, 33), (7, 50)), (2, (9, 40), (4, 19))):
        for last in (False, True):
            x, dy = (at_an_end(torch.randn(2, *(s if last else (c,)), *((c,) if last else s)).to(dtype), first)
                     for s in (inputs, outputs))  # fmt: skip
            if last:
                x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
            check(x, dy, "bilinear")
            check(x, dy, "nearest", add=dy)


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case in REPRESENTATIVE:
            for dtype in DTYPES:
                check_all(*case, dtype=dtype, layout="channels_last")


@compiled
def test_compiled_library_answers():
    for name in ("upsample2d", "upsample2d_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pytorch_ext::{name}", "CPU")


# --- torch's subsystems -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_opcheck(layout, mode):
    def leaf(shape):
        return lay(shape, torch.float32, layout).detach().requires_grad_()

    x, y = leaf((2, 3, 4, 5)), leaf((2, 3, 7, 10))
    for call in (
        (FORWARD, (x, (7, 10), None, None, mode, False, None)),
        (FORWARD, (x, (7, 10), None, 2.0, mode, False, y)),
        (BACKWARD, (y, (4, 5), None, None, mode, False)),
    ):
        assert set(torch.library.opcheck(*call).values()) == {"SUCCESS"}


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
def test_gradients(mode):
    x, add = (torch.randn(1, 2, *s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 7)))
    call = lambda x, add: upsample2d(x, (5, 7), mode=mode, add=add)
    torch.autograd.gradcheck(call, (x, add))
    torch.autograd.gradgradcheck(call, (x, add))
    back = lambda y: BACKWARD(y, (3, 4), None, None, mode, False)
    torch.autograd.gradcheck(back, add)
    torch.autograd.gradgradcheck(back, add)


def test_transforms():
    x = torch.randn(2, 3, 4, 5)
    check_transforms(lambda x: upsample2d(x, (8, 10)), lambda x: F.interpolate(x, (8, 10)), x)
    ours = lambda x: upsample2d(x, scale_factor=1.5, mode="bilinear")
    check_export(ours, x, "upsample2d")
    torch.testing.assert_close(torch.vmap(ours)(x[:, None]), ours(x)[:, None])
    torch._dynamo.reset()
    step = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 4, 5), (1, 2, 6, 8), (3, 4, 9, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(step(x), ours(x))


def test_autocast_leaves_the_dtype():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert upsample2d(torch.randn(1, 1, 2, 2), (3, 3), mode="bilinear").dtype == torch.float32


# --- what is refused --------------------------------------------------------------------------------------------------
X = torch.randn(2, 3, 4, 5)
BAD = {  # arguments, exception, and what its text must name
    "no tensor": (([1.0], 2), {}, TypeError, ["x must be a tensor", "list"]),
    "neither": ((X,), {}, ValueError, ["size or scale_factor"]),
    "both": ((X, 4, 2.0), {}, ValueError, ["not both"]),
    "mode": ((X, 4), {"mode": "area"}, ValueError, ["mode", "'area'", "nearest-exact"]),
    "corners of nearest": ((X, 4), {"align_corners": False}, ValueError, ["align_corners", "bilinear"]),
    "no size": ((X, (4, 2.5)), {}, TypeError, ["size", "2.5"]),
    "three sizes": ((X, (4, 2, 3)), {}, ValueError, ["size", "pair"]),
    "size 0": ((X, (4, 0)), {}, RuntimeError, ["positive", "[4, 0]"]),
    "three dimensions": ((X[0], 4), {}, RuntimeError, ["[n, c, h, w]", "[3, 4, 5]"]),
    "bilinear bytes": ((X.byte(), 4), {"mode": "bilinear"}, RuntimeError, ["float32", "uint8"]),
    "whole numbers": ((X.long(), 4), {}, RuntimeError, ["float32", "int64"]),
    "add is no tensor": ((X, 4), {"add": 1.0}, TypeError, ["add", "float"]),
    "add of another shape": ((X, 4), {"add": X}, RuntimeError, ["add", "[2, 3, 4, 4]", "[2, 3, 4, 5]"]),
    "add of another dtype": ((X, (4, 5)), {"add": X.double()}, RuntimeError, ["add", "float32", "float64"]),
    "recompute a size": ((X, 4), {"recompute_scale_factor": True}, ValueError, ["recompute_scale_factor"]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, implementation):
    args, kwargs, error, words = BAD[name]
    check_bad(lambda: upsample2d(*args, **kwargs), error, words, implementation)


BAD_RAW = {
    "mode": (FORWARD, (X, (4, 4), None, None, "cubic", False, None), ["mode", "'cubic'"]),
    "corners": (FORWARD, (X, (4, 4), None, None, "nearest", True, None), ["align_corners", "bilinear"]),
    "sizes": (FORWARD, (X, (4,), None, None, "nearest", False, None), ["size", "[4]"]),
    "dy": (BACKWARD, (X[0], (4, 4), None, None, "nearest", False), ["dy", "[n, c, h, w]", "[3, 4, 5]"]),
    "dy's dtype": (BACKWARD, (X.byte(), (4, 4), None, None, "nearest", False), ["float32", "uint8"]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", BAD_RAW)
def test_bad_input_of_the_raw_ops(name, implementation):
    op, args, words = BAD_RAW[name]
    check_bad(lambda: op(*args), RuntimeError, words, implementation)
