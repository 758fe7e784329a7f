"""What convolutions over all channels share: an implicit matrix product over channels and taps, and its epilogue.

A program computes a tile of BLOCK_C channels x BLOCK_P pixels and sums over BLOCK_K channels and one tap at a time.
One order of the tile serves both layouts: Triton moves it along whichever of its dimensions is contiguous.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import activate

INTERPRETED = triton.knobs.runtime.interpret


# --- pieces of kernels ------------------------------------------------------------------------------------------------
@triton.jit
def _work(index, per_group, groups, BLOCK: tl.constexpr):
    """(block of a group's channels, group, what is left): blocks of channels are fastest, as they read one x."""
    blocks = tl.cdiv(per_group, BLOCK)
    block = index % blocks
    index = index // blocks
    return block, index % groups, index // groups


@triton.jit
def _range(first, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    if WIDE:
        first = first.to(tl.int64)
    return first * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _pixel(p, h, w):
    """(n, i, j) of pixel p of [n, h, w]."""
    return p // w // h, p // w % h, p % w


@triton.jit
def _vectors(pointer, at, V0: tl.constexpr, V1: tl.constexpr):
    """Pointers of which V0 x V1 neighbours lie side by side, the first where that many begin.

    Triton ties such a hint to the operation that made a value, which must be in this function: given to an argument, it
    is lost.
    """
    BYTES: tl.constexpr = V0 * V1 * pointer.dtype.element_ty.primitive_bitwidth // 8
    pointers = pointer + at
    if V0 > 1:
        pointers = tl.multiple_of(tl.max_contiguous(pointers, [V0, 1]), [BYTES, 1])
    elif V1 > 1:
        pointers = tl.multiple_of(tl.max_contiguous(pointers, [1, V1]), [1, BYTES])
    return pointers


@triton.jit
def load(pointer, at, inside, also, V0: tl.constexpr, V1: tl.constexpr):
    """Zero where not inside."""
    mask = inside & also
    if V0 * V1 > 1:
        mask = tl.max_constancy(mask, [V0, V1])
    return tl.load(_vectors(pointer, at, V0, V1), mask, 0)


@triton.jit
def store(pointer, at, value, inside, also, V0: tl.constexpr, V1: tl.constexpr):
    value = value.to(pointer.dtype.element_ty)
    mask = inside & also
    if V0 * V1 > 1:
        mask = tl.max_constancy(mask, [V0, V1])
    tl.store(_vectors(pointer, at, V0, V1), value, mask)


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b; PRECISION is of float32: "ieee" or "tf32"."""
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def convolve(
    x, image, row, column, h, w, x_k, x_h, x_w, inside,
    weight, first, outs, weight_k, weight_u, weight_v,
    input_gate, channels, k, us, vs, down, right,
    INPUT_ACTIVATION: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
    XK: tl.constexpr, XP: tl.constexpr, WC: tl.constexpr, WK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[C, P]: sums over k channels and us x vs taps, each `down` rows or `right` columns from the one before.

    image [1, P] is where a pixel's image begins in x, channels [1, P] in input_gate, first [C, 1] where an output's
    weights begin; row and column [1, P] are of the first tap. FLAT: a block holds channels of several taps, so that few
    channels fill it. XK or XP neighbours in x, and WC or WK in weight, can be moved at once.
    """
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([BLOCK_C, BLOCK_P], SUM)
    taps = us * vs
    steps = tl.cdiv(k * taps, BLOCK_K) if FLAT else tl.cdiv(k, BLOCK_K) * taps
    for step in range(steps):
        if FLAT:
            term = step * BLOCK_K + tl.arange(0, BLOCK_K).to(row.dtype)
            channel, tap = term % k, term // k
            more = term < k * taps
            u, v = tap // vs, tap % vs
            a_at = first + (channel * weight_k + u * weight_u + v * weight_v)[None, :]
            i, j = row + (u * down)[:, None], column + (v * right)[:, None]
        else:  # taps are fastest: neighbouring taps read almost the same of x
            channel = step // taps * BLOCK_K + tl.arange(0, BLOCK_K).to(row.dtype)
            more = channel < k
            u, v = step % taps // vs, step % taps % vs
            a_at = first + (u * weight_u + v * weight_v) + channel[None, :] * weight_k
            i, j = row + u * down, column + v * right
        a = load(weight, a_at, outs, more[None, :], WC, WK)
        seen = inside & (i >= 0) & (i < h) & (j >= 0) & (j < w)
        b = load(x, image + (i * x_h + j * x_w) + channel[:, None] * x_k, seen, more[:, None], XK, XP)
        if INPUT_ACTIVATION != "none" or input_gate is not None:
            value = activate(b.to(SUM), 0.0, 0.0, INPUT_ACTIVATION)
            if input_gate is not None:
                value *= tl.load(input_gate + channels + channel[:, None], seen & more[:, None], 0).to(SUM)
            b = value.to(b.dtype)
        total = multiply_add(a, b, total, PRECISION)
    return total


# --- launching --------------------------------------------------------------------------------------------------------
def channels_last(t: Tensor) -> bool:
    return t.stride(1) == 1 and t.stride(3) != 1


def wide(*tensors: Tensor) -> bool:
    """Does any tensor reach beyond 2^31 elements? The last tile of pixels may end up to a tile later."""
    return any(sum((s - 1) * d for s, d in zip(t.shape, t.stride())) >= 2**31 - 2**16 for t in tensors)


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: as cuDNN's convolutions of torch may have it."""
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def device_of(t: Tensor):
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def by_taps(weight: Tensor) -> Tensor:
    """[co, kh, kw, ci] in memory, as channels_last models have it: else each element lies in a sector of its own."""
    return weight if weight.stride(1) == 1 else weight.contiguous(memory_format=torch.channels_last)


def vector(t: Tensor, dimension: int, *sizes: int, taps: bool = False) -> int:
    """How many neighbours along a dimension can be moved at once, 16 bytes at most, where sizes begin and end them.

    Masked addresses must be aligned too, so that a size of 1 excuses no stride; taps: but those of a weight's only one.
    """
    if t.stride(dimension) != 1:
        return 1
    apart = (t.stride(d) for d in range(4) if d != dimension and not (taps and d > 1 and t.shape[d] == 1))
    return math.gcd(16 // t.element_size(), t.data_ptr() // t.element_size(), *sizes, *apart)


def flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
