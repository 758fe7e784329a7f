"""Channel shuffle, which is exact: against its formula, its inverse, and torch's subsystems."""

import csv
from pathlib import Path

import numpy as np
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

import pytorch_ext
from pytorch_ext import channel_shuffle

ROOT = Path(__file__).resolve().parent.parent
FORWARD = torch.ops.pytorch_ext.channel_shuffle.default


def formula(x: Tensor, groups: int) -> Tensor:
    """y[n, j * groups + i] = x[n, i * (c / groups) + j]"""
    c = x.shape[1]
    return x[:, [i * (c // groups) + j for j in range(c // groups) for i in range(groups)]]


def check(x: Tensor, groups: int) -> None:
    y = FORWARD(x, groups)
    assert_same(y, formula(x, groups))
    assert_format_kept(y, x)
    assert_same(FORWARD(y, x.shape[1] // groups if x.shape[1] else 1), x)


def check_all(shape, groups, *, dtype=torch.float32, layout="contiguous") -> None:
    x = lay(shape, dtype, layout)
    y = FORWARD(x, groups)
    assert_exact(y, formula(x, groups))
    assert_format(y, x)


BENCH = list(csv.DictReader((ROOT / "bench/shapes/channel_shuffle.csv").open()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("row", BENCH, ids=lambda row: row["name"])
def test_bench_set(row, layout):
    check_all((1, *(int(row[name]) for name in "chw")), int(row["groups"]), layout=layout)


REPRESENTATIVE = [
    ((2, 6, 5, 7), 2),
    ((1, 12, 3, 4), 3),
    ((2, 8, 4, 4), 4),
    ((2, 5, 3, 3), 1),
    ((2, 5, 3, 3), 5),
    ((1, 116, 3, 2), 2),
    ((1, 116, 3, 2), 58),  # the derivative of two groups
    ((3, 72, 2, 2), 8),
    ((1, 64, 1, 1), 4),
    ((1, 700, 2, 3), 25),  # more streams than vectors are kept of
    ((0, 4, 3, 3), 2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
def test_representative(case, layout, dtype):
    check_all(*case, dtype=dtype, layout=layout)


def representative(capability: str) -> None:
    """For `on_capability`."""
    assert_library_is_of(capability)
    for groups in (1, 2, 3, 4, 6, 8, 9, 16, 29):
        for each in (1, 3, 17, 33, 70):
            for dtype in EVERY_DTYPE:
                for x in layouts(numbers((2, groups * each, 2, 3), dtype)):
                    check(x, groups)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@compiled
def test_instruction_sets(capability):
    needs_capability(capability)
    on_capability("test_channel_shuffle", capability, capability)


@given(st.integers(1, 9), st.integers(1, 40), st.lists(st.integers(1, 6), max_size=3), st.sampled_from(EVERY_DTYPE))
def test_any_rank_and_dtype(groups, each, rest, dtype):
    for x in layouts(numbers((2, groups * each, *rest), dtype)):
        check(x, groups)


def test_golden_value():
    """SPEC A2."""
    y = channel_shuffle(torch.arange(12).view(1, 12, 1, 1), 3)
    assert y.flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_is_torchs():
    x = torch.randn(2, 12, 5, 4)
    for groups in (1, 2, 3, 4, 6, 12):
        assert_exact(channel_shuffle(x, groups), F.channel_shuffle(x, groups))


def test_threads_change_nothing():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, 60, 57, 55).contiguous(memory_format=layout)
        alone = channel_shuffle(x, 3)
        torch.set_num_threads(2)
        assert_exact(channel_shuffle(x, 3), alone)
        torch.set_num_threads(1)


@compiled
@pytest.mark.parametrize("first", [True, False], ids=["begins", "ends"])
@pytest.mark.parametrize(("c", "groups"), [(6, 2), (116, 2), (27, 9), (34, 17)])
def test_nothing_is_read_outside(c, groups, first):
    x = at_an_end(torch.randn(2, 3, 3, c), first)
    check(x.permute(0, 3, 1, 2), groups)
    check(x.view(2, c, 3, 3), groups)


def test_reference_judged_too():
    with pytorch_ext.use("reference"):
        for case in REPRESENTATIVE:
            check_all(*case, layout="channels_last")


@compiled
def test_compiled_library_answers():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("pytorch_ext::channel_shuffle", "CPU")


@compiled
def test_offsets_beyond_2_to_the_31():
    """Of memory that is only touched where it is read."""
    memory = torch.from_numpy(np.zeros(3 * 2**30 + 9, dtype=np.uint8))
    x = memory.as_strided((1, 4, 9), (0, 2**30, 1))
    x[0, 3, -1], x[0, 2, 0] = 7, 8
    y = channel_shuffle(x, 2)
    assert (y[0, 3, -1], y[0, 1, 0]) == (7, 8)
    assert y.count_nonzero() == 2


# --- torch's subsystems -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_opcheck(layout):
    x = lay((2, 6, 4, 5), torch.float32, layout).detach().requires_grad_()
    outcome = torch.library.opcheck(FORWARD, (x, 3))
    assert set(outcome.values()) == {"SUCCESS"}


def test_transforms():
    x = torch.randn(2, 6, 3, 4)
    check_transforms(lambda x: channel_shuffle(x, 3), lambda x: F.channel_shuffle(x, 3), x)
    check_export(lambda x: channel_shuffle(x, 2), x, "channel_shuffle")


def test_gradients():
    for shape in ((1, 6, 2, 2), (2, 4), (1, 4, 2, 1, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda x: channel_shuffle(x, 2), x)
        torch.autograd.gradgradcheck(lambda x: channel_shuffle(x, 2), x)


def test_the_gradient_keeps_channels_last():
    x = lay((2, 6, 4, 5), torch.float32, "channels_last").requires_grad_()
    channel_shuffle(x, 2).square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_inductor_keeps_channels_last():
    """pytorch #197109: its own loses it."""
    x = lay((2, 6, 4, 5), torch.float32, "channels_last")
    fake = torch._subclasses.FakeTensorMode()
    with fake:
        assert channel_shuffle(fake.from_tensor(x), 2).is_contiguous(memory_format=torch.channels_last)


def test_conjugated_numbers():
    x = torch.randn(2, 6, 3, dtype=torch.complex64).conj()
    assert_same(channel_shuffle(x, 2), formula(x.resolve_conj(), 2))


# --- what is refused --------------------------------------------------------------------------------------------------
X = torch.randn(2, 6, 4, 4)
BAD = {  # arguments, exception, and what its text must name
    "no tensor": (([1.0], 2), TypeError, ["x must be a tensor", "list"]),
    "no int": ((X, 2.0), TypeError, ["groups must be an int", "2.0"]),
    "does not divide": ((X, 4), RuntimeError, ["groups", "6", "4"]),
    "none": ((X, 0), RuntimeError, ["groups", "6", "0"]),
    "negative": ((X, -2), RuntimeError, ["groups", "-2"]),
    "one dimension": ((torch.randn(6), 2), RuntimeError, ["[n, c, ...]", "[6]"]),
}


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, implementation):
    args, error, words = BAD[name]
    check_bad(lambda: channel_shuffle(*args), error, words, implementation)
