"""Activations on their own in Triton: one pass over dense memory; prelu's dslope is summed in two, in a fixed order."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.activation import _backward_fake, _forward_fake
from .epilogue import activate, derivative

BLOCK = 1024


# --- kernels ----------------------------------------------------------------------------------------------------------
# traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def activation_kernel(
    x, slope, y, count, channels, inner,
    ALPHA: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    i = index * BLOCK + tl.arange(0, BLOCK)
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    z = tl.load(x + i, i < count, 0).to(SUM)
    of_channel = 0.0
    if ACTIVATION == "prelu":
        of_channel = tl.load(slope + i // inner % channels).to(SUM)
    tl.store(y + i, activate(z, ALPHA, of_channel, ACTIVATION).to(y.dtype.element_ty), i < count)


# traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def activation_backward_kernel(
    dy, x, dx, count, ALPHA: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    i = index * BLOCK + tl.arange(0, BLOCK)
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    z, g = tl.load(x + i, i < count, 0).to(SUM), tl.load(dy + i, i < count, 0).to(SUM)
    tl.store(dx + i, derivative(g, z, ALPHA, 0.0, ACTIVATION).to(dx.dtype.element_ty), i < count)


# traffic: l2 1.01, loads 1.00, stores 1.00, shared 4.29 (tests/test_gpu_traffic.py)
@triton.jit
def prelu_backward_kernel(
    dy, x, slope, dx, partial,
    tiles, splits, channels, length, per_row, x_row, x_c, x_at,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx, and partial [splits, channels]: a program sums every splits-th tile of BLOCK_P elements of each channel."""
    program = tl.program_id(0)
    split, block = program % splits, program // splits
    c = (block * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    of_channel = tl.load(slope + c, c < channels, 0).to(SUM)
    total = tl.zeros([BLOCK_C, BLOCK_P], SUM)
    if WIDE:
        c = c.to(tl.int64)
    for tile in range(split, tiles, splits):
        row, first = tile // per_row, tile % per_row * BLOCK_P
        if WIDE:
            row, first = row.to(tl.int64), first.to(tl.int64)
        at = first + tl.arange(0, BLOCK_P)[None]
        inside = (c < channels) & (at < length)
        i = row * x_row + c * x_c + at * x_at
        z, g = tl.load(x + i, inside, 0).to(SUM), tl.load(dy + i, inside, 0).to(SUM)
        tl.store(dx + i, tl.where(z > 0, g, g * of_channel).to(dx.dtype.element_ty), inside)
        total += tl.where(z > 0, 0.0, g * z)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(partial + split.to(tl.int64) * channels + c, tl.sum(total, 1), c < channels)


# traffic: l2 1.00, loads 1.00, stores 1.00, shared 2.60 (tests/test_gpu_traffic.py)
@triton.jit
def prelu_backward_finish_kernel(partial, dslope, splits, channels, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """dslope [channels] from partial [splits, channels]."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_S, BLOCK_C], partial.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)[:, None]
        total += tl.load(partial + s.to(tl.int64) * channels + c[None], (s < splits) & (c < channels)[None], 0)
    tl.store(dslope + c, tl.sum(total, 0).to(dslope.dtype.element_ty), c < channels)


# --- the ops ----------------------------------------------------------------------------------------------------------
def _device_of(t: Tensor):
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def _as(t: Tensor, like: Tensor) -> Tensor:
    """t, or a copy of it that lies in memory as `like` does."""
    return t if t.stride() == like.stride() else like.new_empty_strided(like.shape, like.stride()).copy_(t)


def _channels(x: Tensor, slope: Tensor) -> tuple[int, int, int]:
    """Rows, channels and inner size of dense memory, as csrc/activation.h has them."""
    if slope.shape[0] == 1:
        return 1, 1, x.numel()
    inside = [d for d in range(x.dim()) if d != 1 and x.shape[d] > 1 and x.stride(d) < x.stride(1)]
    inner = 1
    for d in inside:
        inner *= x.shape[d]
    return x.numel() // (inner * x.shape[1]), x.shape[1], inner


def activation(x, activation, alpha, slope) -> Tensor:
    y = _forward_fake(x, activation, alpha, slope)
    if y.numel() == 0:
        return y
    x = _as(x, y)
    _, channels, inner = (1, 1, 1) if slope is None else _channels(x, slope)
    count = x.numel()
    slope = None if slope is None else slope.contiguous()
    with _device_of(x):
        activation_kernel[(triton.cdiv(count, BLOCK),)](
            x, slope, y, count, channels, inner, ALPHA=alpha, ACTIVATION=activation, WIDE=count >= 2**31 - BLOCK,
            BLOCK=BLOCK,
        )  # fmt: skip
    return y


def activation_backward(dy, x, activation, alpha, slope) -> tuple[Tensor, Tensor]:
    dx, dslope = _backward_fake(dy, x, activation, alpha, slope)
    if x.numel() == 0:
        return dx, dslope.zero_()
    x, dy = _as(x, dx), _as(dy, dx)
    count = x.numel()
    wide = count >= 2**31 - BLOCK
    if slope is None:
        with _device_of(x):
            activation_backward_kernel[(triton.cdiv(count, BLOCK),)](
                dy, x, dx, count, ALPHA=alpha, ACTIVATION=activation, WIDE=wide, BLOCK=BLOCK
            )
        return dx, dslope
    rows, channels, inner = _channels(x, slope)
    if channels > 1 and inner == 1:  # a channel's elements are down the rows
        length, x_row, x_c, x_at, rows = rows, 0, 1, channels, 1
        block_c = min(triton.next_power_of_2(channels), 64)
    else:
        length, x_row, x_c, x_at, block_c = inner, channels * inner, inner, 1, 1
    block_p = min(triton.next_power_of_2(length), BLOCK // block_c)
    per_row = triton.cdiv(length, block_p)
    tiles, blocks = rows * per_row, triton.cdiv(channels, block_c)
    splits = max(1, min(tiles // 4, triton.cdiv(2048, blocks), 512))
    partial = x.new_empty(splits, channels, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    with _device_of(x):
        prelu_backward_kernel[(splits * blocks,)](
            dy, x, slope.contiguous(), dx, partial, tiles, splits, channels, length, per_row, x_row, x_c, x_at,
            WIDE=wide, BLOCK_C=block_c, BLOCK_P=block_p,
        )  # fmt: skip
        prelu_backward_finish_kernel[(triton.cdiv(channels, 32),)](
            partial, dslope, splits, channels, BLOCK_S=16, BLOCK_C=32
        )
    return dx, dslope
