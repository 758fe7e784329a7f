"""Upsampling in Triton: an element is gathered from its neighbours, forward and backward."""

from __future__ import annotations

import contextlib
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.upsample2d import _backward_fake, _forward_fake, axis, coordinates_of, sources

BLOCK = 512


# --- kernels ----------------------------------------------------------------------------------------------------------
@triton.jit
def _source(o, bits, size, HALF: tl.constexpr, BILINEAR: tl.constexpr, A: tl.constexpr):
    """(lower, upper, weight of upper) of outputs o; csrc/upsample2d.h says why no product and sum may be one."""
    step = bits.to(tl.int64).to(tl.float64, bitcast=True).to(A)
    at = (o.to(A) + HALF) * step
    if BILINEAR:
        at = tl.maximum(at - HALF, 0.0)
    lower = tl.minimum(at.to(tl.int32), size - 1)
    if BILINEAR:
        return lower, tl.minimum(lower + 1, size - 1), tl.minimum(at - lower.to(A), 1.0)
    return lower, lower, at * 0


@triton.jit
def _place(i, c, h, w, LAST: tl.constexpr):
    """(image, channel, row, column) of element i."""
    if LAST:
        return i // (c * w * h), i % c, i // (c * w) % h, i // c % w
    return i // (w * h * c), i // (w * h) % c, i // w % h, i % w


@triton.jit
def _offset(n, c, i, j, channels, h, w, LAST: tl.constexpr):
    if LAST:
        return ((n * h + i) * w + j) * channels + c
    return ((n * channels + c) * h + i) * w + j


# traffic: l2 1.18, loads 4.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def upsample2d_kernel(
    x, add, y, count, channels, ih, iw, oh, ow, bits_h, bits_w,
    HALF_H: tl.constexpr, HALF_W: tl.constexpr, ADD: tl.constexpr, BILINEAR: tl.constexpr, A: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    at = index * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    n, c, i, j = _place(at, channels, oh, ow, LAST)
    top, bottom, down = _source(i, bits_h, ih, HALF_H, BILINEAR, A)
    left, right, across = _source(j, bits_w, iw, HALF_W, BILINEAR, A)
    v = tl.load(x + _offset(n, c, top, left, channels, ih, iw, LAST), inside)
    if BILINEAR:
        upper = v.to(A) * (1 - across)
        upper += tl.load(x + _offset(n, c, top, right, channels, ih, iw, LAST), inside).to(A) * across
        lower = tl.load(x + _offset(n, c, bottom, left, channels, ih, iw, LAST), inside).to(A) * (1 - across)
        lower += tl.load(x + _offset(n, c, bottom, right, channels, ih, iw, LAST), inside).to(A) * across
        v = upper * (1 - down) + lower * down
    if ADD:
        v = v.to(tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32) + tl.load(add + at, inside)
    tl.store(y + at, v.to(y.dtype.element_ty), inside)


@triton.jit
def _first(d, bits, size, HALF: tl.constexpr, BILINEAR: tl.constexpr):
    """An output no later than the first that reads input d: two before where exact numbers have it."""
    step = tl.maximum(bits.to(tl.int64).to(tl.float64, bitcast=True), 1e-30)
    reach = d.to(tl.float64)
    if BILINEAR:
        reach += HALF - 1
    first = (reach / step - HALF).to(tl.int32) - 2
    return tl.where(d == 0, 0, tl.minimum(tl.maximum(first, 0), size - 1))


@triton.jit
def _weight(o, d, bits, size, HALF: tl.constexpr, BILINEAR: tl.constexpr, A: tl.constexpr):
    """(whether output o reads input d, with what weight)."""
    lower, upper, weight = _source(o, bits, size, HALF, BILINEAR, A)
    if not BILINEAR:
        return lower == d, weight + 1
    return (lower == d) | (upper == d), tl.where(lower == d, 1 - weight, 0.0) + tl.where(upper == d, weight, 0.0)


# traffic: l2 1.00, loads 7.20, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def upsample2d_backward_kernel(
    dy, dx, count, channels, ih, iw, oh, ow, bits_h, bits_w, window_h, window_w,
    HALF_H: tl.constexpr, HALF_W: tl.constexpr, BILINEAR: tl.constexpr, A: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SUM: tl.constexpr = tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    at = index * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    n, c, i, j = _place(at, channels, ih, iw, LAST)
    top, left = _first(i, bits_h, oh, HALF_H, BILINEAR), _first(j, bits_w, ow, HALF_W, BILINEAR)
    total = tl.zeros([BLOCK], SUM)
    for u in range(window_h):
        row_read, row_weight = _weight(top + u, i, bits_h, ih, HALF_H, BILINEAR, A)
        row_read = row_read & (top + u < oh) & inside
        for v in range(window_w):
            read, weight = _weight(left + v, j, bits_w, iw, HALF_W, BILINEAR, A)
            read = read & (left + v < ow) & row_read
            g = tl.load(dy + _offset(n, c, top + u, left + v, channels, oh, ow, LAST), read, 0)
            total += g.to(SUM) * (row_weight * weight).to(SUM)
    tl.store(dx + at, total.to(dx.dtype.element_ty), inside)


# --- the ops ----------------------------------------------------------------------------------------------------------
def _bits(number: float) -> int:
    """A Python float would arrive as a float32."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


def _device_of(t: Tensor):
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def _dense(t: Tensor, like: Tensor) -> Tensor:
    """t, or a copy of it in the memory format that `like` has."""
    last = like.dim() == 4 and like.stride(1) == 1 and like.is_contiguous(memory_format=torch.channels_last)
    return t.contiguous(
        memory_format=torch.channels_last if last and not like.is_contiguous() else torch.contiguous_format
    )


def _options(t: Tensor, inputs, outputs, scale_h, scale_w, mode, align_corners, *large: Tensor) -> tuple[tuple, dict]:
    wide = coordinates_of(mode, t.dtype)
    (step_h, half_h), (step_w, half_w) = (
        axis(*sizes, mode, align_corners, wide) for sizes in zip(inputs, outputs, (scale_h, scale_w), strict=True)
    )
    options = {
        "HALF_H": half_h,
        "HALF_W": half_w,
        "BILINEAR": mode == "bilinear",
        "A": tl.float64 if wide == torch.float64 else tl.float32,
        "BLOCK": BLOCK,
        "WIDE": max(x.numel() for x in large) >= 2**31 - BLOCK,
        "enable_fp_fusion": False,
    }
    return (_bits(float(step_h)), _bits(float(step_w))), options


def upsample2d(x, size, scale_h, scale_w, mode, align_corners, add) -> Tensor:
    y = _forward_fake(x, size, scale_h, scale_w, mode, align_corners, add)
    if y.numel() == 0:
        return y
    x, sizes = _dense(x, y), (x.shape[2:], y.shape[2:])
    add = None if add is None else _dense(add, y)
    bits, options = _options(x, *sizes, scale_h, scale_w, mode, align_corners, x, y)
    count, last = y.numel(), not y.is_contiguous()
    with _device_of(x):
        upsample2d_kernel[(triton.cdiv(count, BLOCK),)](
            x, add, y, count, x.shape[1], *sizes[0], *sizes[1], *bits, ADD=add is not None, LAST=last, **options
        )
    return y


def upsample2d_backward(dy, size, scale_h, scale_w, mode, align_corners) -> Tensor:
    dx = _backward_fake(dy, size, scale_h, scale_w, mode, align_corners)
    if dx.numel() == 0:
        return dx
    dy, sizes = _dense(dy, dx), (dx.shape[2:], dy.shape[2:])
    bits, options = _options(dy, *sizes, scale_h, scale_w, mode, align_corners, dy, dx)
    windows = []
    for inputs, outputs, scale in zip(*sizes, (scale_h, scale_w), strict=True):
        lower, upper, _ = sources(inputs, outputs, scale, mode, align_corners, dy.dtype)
        readers = torch.bincount(lower, minlength=inputs) + torch.bincount(upper[upper > lower], minlength=inputs)
        windows.append(min(outputs, int(readers.max()) + 5))  # of outputs that may read an input
    count, last = dx.numel(), not dx.is_contiguous()
    with _device_of(dy):
        upsample2d_backward_kernel[(triton.cdiv(count, BLOCK),)](
            dy, dx, count, dx.shape[1], *sizes[0], *sizes[1], *bits, *windows, LAST=last, **options
        )
    return dx
