"""Every op on a GPU, by each implementation that a GPU has: values and gradients against float64, and what only shows
there.

Nothing here is written for an op. Its own test, tests/test_<op>.py, has the cases (REPRESENTATIVE, DTYPES, LAYOUTS, the
real layers of BENCH) and judges them (check_all, test_bench_set), under tests/bounds.py: here they run with a GPU as
torch's default device. Where there is none, the same is tried with the CPU in its place.
"""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch
from bounds import assert_exact
from gpu_budget import Calls, families
from torch import Tensor
from torch.utils._pytree import tree_map_only

import pytorch_ext
from pytorch_ext import _op

WHY = _op.no_gpu()
FAMILIES = families()
IMPLEMENTATIONS = ("cuda", "triton")
RUNS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(WHY is not None, reason=f"no GPU: {WHY}; docs/gpu.md says what is proved without"),
        ],
    )
    for name in IMPLEMENTATIONS
]


def modules() -> list:
    """The tests of the op families; their names are what this file goes by."""
    return [importlib.import_module(f"test_{family}") for family in FAMILIES]


def every(*names: str) -> list[tuple]:
    """(family, ...) for all that its test has under these names."""
    found: list[tuple] = []
    for family, module in zip(FAMILIES, modules()):
        rows: list[tuple] = [(family,)]
        for name in names:
            rows = [(*row, value) for row in rows for value in getattr(module, name)]
        found += rows
    return found


@contextlib.contextmanager
def on(implementation: str):
    """Tensors are made on the implementation's device, and its kernels answer; every call of an op is recorded."""
    if reason := _op.unavailable(implementation):
        pytest.skip(f"{implementation}: {reason}")
    device = "cuda" if implementation in IMPLEMENTATIONS else "cpu"
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # torch is a reference here
    try:
        with (
            torch.backends.cudnn.flags(
                torch.backends.cudnn.enabled, allow_tf32=False
            ),  # settable only so after torch.testing
            pytorch_ext.use(implementation),
            torch.device(device),
            Calls() as calls,
        ):
            poison(device)
            yield calls
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
    for name, args in calls.made:
        assert {t.device.type for t in tensors(args)} == {device}, f"{name} was called elsewhere"


def poison(device: str) -> None:
    """What torch's allocator hands out next on a GPU is NaN, as on the CPU (conftest.py), so that gaps show."""
    if device == "cuda":
        blocks = [
            torch.full((size,), torch.nan) for size in (64, 1 << 10, 1 << 16, 1 << 20, 1 << 24) for _ in range(16)
        ]
        del blocks


def tensors(values) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, values)
    return found


def ops_of(family: str) -> set[str]:
    return {op.name for op in _op.OPS.values() if op.family == family}


# --- what is run ------------------------------------------------------------------------------------------------------
def check_representative(implementation: str, family: str, dtype: torch.dtype, layout: str) -> None:
    module = importlib.import_module(f"test_{family}")
    with on(implementation) as calls:
        for case in module.REPRESENTATIVE:
            module.check_all(*case, dtype=dtype, layout=layout)
    assert {name for name, _ in calls.made} >= ops_of(family), "an op of the family is not among its test's cases"


def check_layer(implementation: str, family: str, row: dict, layout: str) -> None:
    with on(implementation):
        importlib.import_module(f"test_{family}").test_bench_set(row, layout)


def again(calls: Calls) -> list[list[Tensor]]:
    """What the recorded calls give, once more."""
    return [tensors(getattr(torch.ops.pytorch_ext, name)(*args)) for name, args in calls.made]


def check_deterministic(implementation: str, family: str) -> None:
    """The same bits twice, and on a stream that is not the default."""
    module = importlib.import_module(f"test_{family}")
    with on(implementation) as calls:
        for case in module.REPRESENTATIVE:
            module.check_all(*case, layout="channels_last")
            module.check_all(*case, dtype=torch.float16)
    with on(implementation):
        first, second = again(calls), again(calls)
        if implementation in IMPLEMENTATIONS:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                third = again(calls)
            stream.synchronize()
        else:
            third = second
    for results in zip(first, second, third):
        for one, two, three in zip(*results):
            assert_exact(two, one)
            assert_exact(three, one)


def check_autograd(implementation: str, family: str) -> None:
    """Derivatives through autograd are the derivatives of the formula: gradcheck, of every call, in float64."""
    module = importlib.import_module(f"test_{family}")
    with on(implementation) as calls:
        for case in module.REPRESENTATIVE:
            module.check_all(*case, dtype=torch.float64)
    with on(implementation):
        for name, args in calls.made:
            inputs = tensors(args)
            if name != family or sum(t.numel() for t in inputs) > 2000 or not inputs[0].numel():
                continue
            leaves = [t.detach().clone().requires_grad_() for t in inputs]

            def call(*leaves, name=name, args=args):
                left = iter(leaves)
                return getattr(torch.ops.pytorch_ext, name)(*tree_map_only(Tensor, lambda _: next(left), args))

            torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize(("family", "dtype", "layout"), every("DTYPES", "LAYOUTS"), ids=str)
@pytest.mark.parametrize("implementation", RUNS)
def test_representative(implementation, family, dtype, layout):
    check_representative(implementation, family, dtype, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("family", "row"), every("BENCH"), ids=lambda v: v["name"] if isinstance(v, dict) else v)
@pytest.mark.parametrize("implementation", RUNS)
def test_real_layers(implementation, family, row, layout):
    check_layer(implementation, family, row, layout)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", RUNS)
def test_same_bits_again_and_on_another_stream(implementation, family):
    check_deterministic(implementation, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", RUNS)
def test_gradcheck(implementation, family):
    check_autograd(implementation, family)


# --- the tests themselves, where there is no GPU ----------------------------------------------------------------------
def test_every_op_has_its_gpu_tests():
    assert set().union(*map(ops_of, FAMILIES)) == set(_op.OPS)
    for name in ("REPRESENTATIVE", "DTYPES", "LAYOUTS", "BENCH", "check_all", "test_bench_set"):
        for module in modules():
            assert hasattr(module, name), f"{module.__name__} has no {name}, by which its op is tested on a GPU"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_on_the_cpu(family):
    implementation = "reference" if _op.unavailable("cpp") else "cpp"
    check_representative(implementation, family, torch.float32, "channels_last")
    check_deterministic(implementation, family)
    check_autograd(implementation, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_kernel_would_be_seen(family, monkeypatch):
    """One that adds a hundredth to all it gives back."""

    class Wrong(Calls):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = super().__torch_dispatch__(func, types, args, kwargs)
            return tree_map_only(Tensor, lambda t: t + 0.01, result) if func.namespace == "pytorch_ext" else result

    monkeypatch.setitem(globals(), "Calls", Wrong)
    with pytest.raises(AssertionError, match=r"outside the bound|differ, first at"):
        check_representative("reference", family, torch.float32, "contiguous")
