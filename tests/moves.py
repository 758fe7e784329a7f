"""What the tests of ops that only move elements share: tensors of any dtype and rank, torch's subsystems."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_exact
from convolution import assert_names
from torch import Tensor
from torch.utils import flop_counter

import pytorch_ext

EVERY_DTYPE = (
    torch.uint8, torch.bool, torch.int16, torch.bfloat16, torch.int32, torch.float32, torch.float64, torch.complex64,
    torch.complex128,
)  # fmt: skip


def numbers(shape, dtype: torch.dtype) -> Tensor:
    """Elements that differ from each other, as far as the dtype can."""
    if dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0, 250, shape).to(dtype) if dtype != torch.bool else torch.rand(shape) < 0.5


def layouts(x: Tensor):
    """x in the layouts of its rank, sliced, with its last two dimensions exchanged, and expanded."""
    yield x
    if x.dim() in (4, 5):
        yield x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    wide = x.new_zeros([2 * n + 1 for n in x.shape])
    wide[tuple(slice(1, None, 2) for _ in x.shape)] = x
    yield wide[tuple(slice(1, None, 2) for _ in x.shape)]
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield x[:1].expand(x.shape)


def assert_format_kept(y: Tensor, x: Tensor) -> None:
    format = torch._prims_common.suggest_memory_format(x) if x.dim() in (4, 5) else torch.contiguous_format
    assert y.is_contiguous(memory_format=format), (x.stride(), y.stride())


def assert_same(y: Tensor, expected: Tensor) -> None:
    """Every bit, of complex numbers too."""
    if y.dtype == torch.bool:
        y, expected = y.view(torch.uint8), expected.view(torch.uint8)
    assert_exact(*(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (y, expected)))


def check_transforms(function, torchs, x: Tensor) -> None:
    """vmap, grad, compile, autocast, inference mode and FLOPs of `function`, which is torch's `torchs`."""
    many = torch.stack([x, x + 1, x + 2])
    assert_same(torch.vmap(function)(many), torch.stack([torchs(t) for t in many]))
    assert_same(torch.vmap(function, in_dims=1)(many.movedim(0, 1)), torch.stack([torchs(t) for t in many]))
    weight = torch.randn_like(torchs(x))

    def loss(f):
        return lambda x: (f(x) * weight).square().sum()

    torch.testing.assert_close(torch.func.grad(loss(function))(x), torch.func.grad(loss(torchs))(x))
    leaf = x.clone().requires_grad_()
    torch._dynamo.reset()
    for dynamic in (False, True):
        compiled = torch.compile(loss(function), backend="aot_eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(
            torch.autograd.grad(compiled(leaf), leaf), torch.autograd.grad(loss(torchs)(leaf), leaf)
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(x).dtype == x.dtype
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert_same(function(x), torchs(x))
    with flop_counter.FlopCounterMode(display=False) as counter:
        function(leaf).sum().backward()
    assert counter.get_total_flops() == 0


def check_export(function, x: Tensor, name: str) -> None:
    class Net(torch.nn.Module):
        def forward(self, x):
            return function(x)

    program = torch.export.export(Net(), (x,))
    assert any(f"pytorch_ext.{name}" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module()(x), function(x))


def check_bad(call, error: type[Exception], words, implementation: str) -> None:
    if implementation == "cpp" and "cpu" not in pytorch_ext._load.libraries:
        pytest.skip("not compiled")
    with pytorch_ext.use(implementation), pytest.raises(error) as caught:
        call()
    assert_names(caught.value, words)
