"""PixelShuffle and its inverse, which are exact: against their formula, each other, and torch."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact
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
from moves import (
    EVERY_DTYPE,
    assert_format_kept,
    assert_same,
    check_bad,
    check_export,
    check_transforms,
    layouts,
    numbers,
)  # fmt: skip
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import pytorch_ext
from pytorch_ext import pixel_shuffle, pixel_unshuffle

ROOT = Path(__file__).resolve().parent.parent
OPS = torch.ops.pytorch_ext
FORWARD, UNSHUFFLE = OPS.pixel_shuffle.default, OPS.pixel_unshuffle.default


def formula(x: Tensor, r: int) -> Tensor:
    """y[.., c, h * r + i, w * r + j] = x[.., (c * r + i) * r + j, h, w]"""
    *outside, c, h, w = x.shape
    y = x.new_empty(*outside, c // (r * r), h * r, w * r)
    for i in range(r):
        for j in range(r):
            y[..., i::r, j::r] = x[..., i * r + j :: r * r, :, :]
    return y


def check(x: Tensor, r: int) -> None:
    y = FORWARD(x, r)
    expected = formula(x, r)
    assert_same(y, expected)
    assert_format_kept(y, x)
    back = UNSHUFFLE(y, r)
    assert_same(back, x)
    assert_format_kept(back, y)


def check_all(shape, r, *, dtype=torch.float32, layout="contiguous") -> None:
    """`shape` is of x, [n, c * r * r, h, w]."""
    x = lay(shape, dtype, layout)
    expected = formula(x, r)
    y = FORWARD(x, r)
    assert_exact(y, expected)
    assert_format(y, x)
    wide = lay(expected.shape, dtype, layout)
    back = UNSHUFFLE(wide, r)
    assert_format(back, wide)
    assert_exact(formula(back, r), wide)


BENCH = list(csv.DictReader((ROOT / "bench/shapes/pixel_shuffle.csv").open()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: row["name"])
def test_bench_set(row, layout):
    check_all((1, *(int(row[name]) for name in "chw")), int(row["r"]), layout=layout)


REPRESENTATIVE = [
    ((2, 8, 5, 7), 2),
    ((1, 18, 4, 19), 3),
    ((1, 16, 3, 20), 4),
    ((2, 3, 4, 5), 1),
    ((1, 25, 3, 3), 5),
    ((1, 128, 2, 3), 2),
    ((1, 4, 17, 16), 2),
    ((1, 48, 17, 17), 4),
    ((1, 27, 17, 17), 3),  # pixels of a few numbers: short streams in blocks
    ((1, 12, 33, 17), 2),
    ((1, 9, 40, 33), 3),
    ((2, 1024, 2, 3), 2),  # rows that follow each other, and so do their runs
    ((0, 4, 3, 3), 2),
    ((1, 0, 3, 3), 2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
def test_representative(case, layout, dtype):
    check_all(*case, dtype=dtype, layout=layout)


def representative(capability: str) -> None:
    """For `on_capability`."""
    assert_library_is_of(capability)
    for r in (1, 2, 3, 4, 5):
        for c, h, w in ((1, 3, 5), (3, 4, 17), (2, 20, 40), (33, 2, 3), (3, 40, 20)):
            for dtype in EVERY_DTYPE:
                for x in layouts(numbers((1, c * r * r, h, w), dtype)):
                    check(x, r)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@compiled
def test_instruction_sets(capability):
    needs_capability(capability)
    on_capability("test_pixel_shuffle", capability, capability)


@given(
    st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(1, 6), st.integers(1, 9),
    st.integers(1, 40), st.sampled_from(EVERY_DTYPE),
)  # fmt: skip
def test_any_rank_and_dtype(r, outside, c, h, w, dtype):
    for x in layouts(numbers((*outside, c * r * r, h, w), dtype)):
        check(x, r)


@pytest.mark.parametrize("name", ["pixel_shuffle", "pixel_unshuffle"])
def test_torchs_own_samples(name):
    op = next(op for op in op_db if op.name == f"nn.functional.{name}")
    ours = {"pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle}[name]
    for dtype in (torch.float32, torch.bool, torch.int64):
        if dtype in op.dtypes:
            for sample in op.sample_inputs("cpu", dtype):
                assert_same(
                    ours(sample.input, *sample.args, **sample.kwargs), op(sample.input, *sample.args, **sample.kwargs)
                )


def test_five_dimensions_in_channels_last():
    """pytorch #133665: its own refuses them."""
    x = torch.randn(2, 3, 8, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    y = pixel_shuffle(x, 2)
    assert_exact(y, F.pixel_shuffle(x.contiguous(), 2))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_more_axes_than_a_kernel_takes():
    x = numbers((2, 3, 2, 3, 2, 3, 2, 4, 6, 5), torch.float32)[::1, ::2, :, ::2, :, ::2, :, :, ::2, ::2]
    check(x, 2)


def test_large_results_are_stored_past_the_caches():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 128, 192, 192).contiguous(memory_format=layout)
        check(x, 2)


def test_threads_change_nothing():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 36, 61, 59).contiguous(memory_format=layout)
        alone = pixel_shuffle(x, 3)
        torch.set_num_threads(2)
        assert_exact(pixel_shuffle(x, 3), alone)
        assert_exact(pixel_unshuffle(alone, 3), x)
        torch.set_num_threads(1)


@compiled
@pytest.mark.parametrize("first", [True, False], ids=["begins", "ends"])
@pytest.mark.parametrize(("c", "r"), [(1, 3), (3, 3), (3, 4), (20, 2), (2, 2)])
def test_nothing_is_read_outside(c, r, first):
    x = at_an_end(torch.randn(1, 17, 19, c * r * r), first)
    check(x.permute(0, 3, 1, 2), r)
    check(x.view(1, c * r * r, 17, 19), r)


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case in REPRESENTATIVE:
            check_all(*case, layout="channels_last")


@compiled
def test_compiled_library_answers():
    for name in ("pixel_shuffle", "pixel_unshuffle"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pytorch_ext::{name}", "CPU")


def test_adjoint():
    """<A x, y> = <x, A' y>"""
    x, y = torch.randn(2, 18, 4, 5, dtype=torch.float64), torch.randn(2, 2, 12, 15, dtype=torch.float64)
    torch.testing.assert_close((pixel_shuffle(x, 3) * y).sum(), (x * pixel_unshuffle(y, 3)).sum())


# --- torch's subsystems -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", [FORWARD, UNSHUFFLE], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_opcheck(layout, op):
    x = lay((2, 8, 4, 6), torch.float32, layout).detach().requires_grad_()
    outcome = torch.library.opcheck(op, (x, 2))
    assert set(outcome.values()) == {"SUCCESS"}


def test_transforms():
    x = torch.randn(2, 8, 4, 6)
    check_transforms(lambda x: pixel_shuffle(x, 2), lambda x: F.pixel_shuffle(x, 2), x)
    check_transforms(lambda x: pixel_unshuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2), x)
    check_export(lambda x: pixel_shuffle(x, 2), x, "pixel_shuffle")


def test_gradients():
    for shape in ((1, 4, 2, 2), (8, 2, 4), (1, 2, 4, 2, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for function in (pixel_shuffle, pixel_unshuffle):
            torch.autograd.gradcheck(lambda x, f=function: f(x, 2), x)
            torch.autograd.gradgradcheck(lambda x, f=function: f(x, 2), x)


def test_the_gradient_keeps_channels_last():
    x = lay((2, 8, 4, 5), torch.float32, "channels_last").requires_grad_()
    pixel_shuffle(x, 2).square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


# --- what is refused --------------------------------------------------------------------------------------------------
X = torch.randn(2, 8, 4, 5)
BAD = {  # function, arguments, exception, and what its text must name
    "no tensor": (pixel_shuffle, ([1.0], 2), TypeError, ["x must be a tensor", "list"]),
    "no int": (pixel_shuffle, (X, 2.0), TypeError, ["upscale_factor must be an int", "2.0"]),
    "no int back": (pixel_unshuffle, (X, "2"), TypeError, ["downscale_factor must be an int", "'2'"]),
    "channels": (pixel_shuffle, (X, 3), RuntimeError, ["8 channels", "multiple of 9"]),
    "width": (pixel_unshuffle, (X, 2), RuntimeError, ["multiples of 2", "[2, 8, 4, 5]"]),
    "none": (pixel_shuffle, (X, 0), RuntimeError, ["factor", "0"]),
    "negative": (pixel_unshuffle, (X, -1), RuntimeError, ["factor", "-1"]),
    "two dimensions": (pixel_shuffle, (X[0, 0], 2), RuntimeError, ["[..., c, h, w]", "[4, 5]"]),
    "huge": (pixel_shuffle, (X, 2**40), RuntimeError, ["factor", str(2**40)]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, implementation):
    function, args, error, words = BAD[name]
    check_bad(lambda: function(*args), error, words, implementation)
