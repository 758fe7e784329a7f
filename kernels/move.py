"""Moves in Triton: a tile has a side along which x is contiguous and one along which y is; Triton turns it between."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTER = 4  # axes that are not the tile's
ELEMENTS = 1024  # of a tile
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Axis(NamedTuple):
    size: int
    x: int  # strides, in elements
    y: int


# traffic: l2 1.00, loads 2.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def move_kernel(
    x, y,
    a_size, a_inner, ax_outer, ax_inner, ay_outer, ay_inner,
    b_size, b_inner, bx_outer, bx_inner, by_outer, by_inner,
    size0, size1, size2, x0, x1, x2, x3, y0, y1, y2, y3,
    A_IS_X: tl.constexpr, B_IS_Y: tl.constexpr, WIDE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Both sides of a tile are up to two axes. A_IS_X: side a runs through x without gaps; B_IS_Y: so does b, in y."""
    program = tl.program_id(0)
    a_blocks, b_blocks = tl.cdiv(a_size, BLOCK_A), tl.cdiv(b_size, BLOCK_B)
    a = program % a_blocks * BLOCK_A + tl.arange(0, BLOCK_A)
    program //= a_blocks
    b = program % b_blocks * BLOCK_B + tl.arange(0, BLOCK_B)
    program //= b_blocks
    if WIDE:
        a, b, program = a.to(tl.int64), b.to(tl.int64), program.to(tl.int64)
    i0, program = program % size0, program // size0
    i1, program = program % size1, program // size1
    i2, i3 = program % size2, program // size2
    x += i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3
    y += i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3
    a_in_y = a // a_inner * ay_outer + a % a_inner * ay_inner
    b_in_x = b // b_inner * bx_outer + b % b_inner * bx_inner
    a_in_x, b_in_y = a, b
    if not A_IS_X:
        a_in_x = a // a_inner * ax_outer + a % a_inner * ax_inner
    if not B_IS_Y:
        b_in_y = b // b_inner * by_outer + b % b_inner * by_inner
    if A_IS_X and B_IS_Y:
        inside = (a < a_size)[None, :] & (b < b_size)[:, None]
        v = tl.trans(tl.load(x + a_in_x[None, :] + b_in_x[:, None], inside))
        inside = (a < a_size)[:, None] & (b < b_size)[None, :]
        tl.store(y + a_in_y[:, None] + b_in_y[None, :], v, inside)
    else:
        inside = (a < a_size)[:, None] & (b < b_size)[None, :]
        v = tl.load(x + a_in_x[:, None] + b_in_x[None, :], inside)
        tl.store(y + a_in_y[:, None] + b_in_y[None, :], v, inside)


def merged(axes: list[Axis]) -> list[Axis]:
    """Outermost in y first, without sizes of 1, neighbours that follow each other as one; csrc/move_boundary.h too."""
    result: list[Axis] = []
    for axis in sorted((a for a in axes if a.size != 1), key=lambda a: -a.y):
        outer = result[-1] if result else None
        if outer and outer.x == axis.x * axis.size and outer.y == axis.y * axis.size:
            result[-1] = Axis(outer.size * axis.size, axis.x, axis.y)
        else:
            result.append(axis)
    return result


def _side(axes: list[Axis], stride: int) -> list[Axis]:
    """One or two axes, innermost last, that fill memory from stride 1 on; `stride` is 1 for x's, 2 for y's."""
    inner = next((a for a in axes if a[stride] == 1), None)
    if inner is None:
        return []
    outer = next((a for a in axes if a[stride] == inner.size and a is not inner), None)
    return [outer, inner] if outer and inner.size < 16 else [inner]


def _two(side: list[Axis]) -> tuple[Axis, Axis]:
    return (Axis(1, 0, 0), *side)[-2:]  # type: ignore[return-value]


def _block(size: int, most: int) -> int:
    return min(triton.next_power_of_2(size), most)


def move(x: Tensor, y: Tensor, axes: list[tuple[int, int, int]]) -> Tensor:
    """y[...] = x[...] along axes of (size, stride in x, stride in y), in elements."""
    if y.numel() == 0:
        return y
    if x.element_size() == 16:
        axes = [*((size, 2 * in_x, 2 * in_y) for size, in_x, in_y in axes), (2, 1, 1)]
    left = merged([Axis(*axis) for axis in axes]) or [Axis(1, 1, 1)]
    count, (x_bits, y_bits) = y.numel() * max(1, y.element_size() // 8), map(_bits, (x, y))
    straight = left[-1].x == 1
    if straight:  # b is what is contiguous in both, a whatever comes next
        b = [left.pop()]
        a = [left.pop()] if left and b[0].size < ELEMENTS else []
    else:
        b = _side(left, 2)
        rest = [axis for axis in left if axis not in b]
        a = _side(rest, 1) or rest[-1:]
        left = [axis for axis in rest if axis not in a]
    (a_outer, a_inner), (b_outer, b_inner) = _two(a) if a else (Axis(1, 0, 0),) * 2, _two(b)
    a_size, b_size = a_outer.size * a_inner.size, b_outer.size * b_inner.size
    block_a = _block(a_size, 32)
    block_b = _block(b_size, ELEMENTS // block_a)
    block_a = _block(a_size, ELEMENTS // block_b)
    if len(left) > OUTER:
        raise RuntimeError("a tensor of too many dimensions")
    outer = [*reversed(left), *[Axis(1, 0, 0)] * (OUTER - len(left))]
    programs = triton.cdiv(a_size, block_a) * triton.cdiv(b_size, block_b)
    for axis in outer:
        programs *= axis.size
    reach = max(sum((axis.size - 1) * axis.x for axis in (*outer, a_outer, a_inner, b_outer, b_inner)), count)
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        move_kernel[(programs,)](
            x_bits, y_bits,
            a_size, a_inner.size, a_outer.x, a_inner.x, a_outer.y, a_inner.y,
            b_size, b_inner.size, b_outer.x, b_inner.x, b_outer.y, b_inner.y,
            *(axis.size for axis in outer[:3]), *(axis.x for axis in outer), *(axis.y for axis in outer),
            A_IS_X=not straight and a_inner.x == 1 and a_outer.x in (0, a_inner.size),
            B_IS_Y=b_inner.y == 1 and b_outer.y in (0, b_inner.size),
            WIDE=reach >= 2**31 - ELEMENTS, BLOCK_A=block_a, BLOCK_B=block_b,
        )  # fmt: skip
    return y


def _bits(t: Tensor) -> Tensor:
    """Triton knows no bools and no complex numbers."""
    return torch.view_as_real(t).view(torch.int64) if t.element_size() == 16 else t.view(INTEGERS[t.element_size()])
