"""Depthwise convolution in Triton: y, dx and dweight, for any size, stride, dilation, strides of memory and dtype.

A program computes a tile of BLOCK_C channels x BLOCK_H rows x BLOCK_W columns. One kernel serves both layouts: the
blocks that are chosen follow the dimension that is contiguous. Sums are float32, but float64 for float64.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._epilogue import Epilogue
from ..ops.depthwise_conv2d import _backward_input_fake, _backward_weight_fake, _forward_fake, _fused_fake, both
from .epilogue import activate

INTERPRETED = triton.knobs.runtime.interpret


# --- kernels ----------------------------------------------------------------------------------------------------------
@triton.jit
def _tile(index, c, h, w, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Tile `index` of [.., c, h, w], columns fastest: its batch, channels [C, 1], rows and columns [1, P]."""
    if WIDE:
        index = index.to(tl.int64)
    columns, rows, channels = tl.cdiv(w, BLOCK_W), tl.cdiv(h, BLOCK_H), tl.cdiv(c, BLOCK_C)
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    j = index % columns * BLOCK_W + pixel % BLOCK_W
    index = index // columns
    i = index % rows * BLOCK_H + pixel // BLOCK_W
    index = index // rows
    k = index % channels * BLOCK_C + tl.arange(0, BLOCK_C)
    return index // channels, k[:, None], i[None, :], j[None, :]


# traffic: l2 2.03, loads 6.52, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def forward_kernel(
    x, weight, bias, slope, scale, residual, gate, y,
    c, ih, iw, oh, ow,
    x_n, x_c, x_h, x_w,
    y_n, y_c, y_h, y_w,
    weight_c, weight_h, weight_w,
    padding_t, padding_l,
    slope_c, residual_n, residual_c, residual_h, residual_w, gate_n, gate_c,
    MULTIPLIER: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, RESIDUAL_FIRST: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    n, k, i, j = _tile(tl.program_id(0), c, oh, ow, WIDE, BLOCK_C, BLOCK_H, BLOCK_W)
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    x += n * x_n + k // MULTIPLIER * x_c
    weight += k * weight_c
    z = tl.zeros([BLOCK_C, BLOCK_H * BLOCK_W], SUM)
    if bias is not None and scale is None:
        z += tl.load(bias + k, k < c, 0).to(SUM)
    for u in range(KH):
        row = i * STRIDE_H + u * DILATION_H - padding_t
        row_inside = (row >= 0) & (row < ih)
        for v in range(KW):
            column = j * STRIDE_W + v * DILATION_W - padding_l
            inside = (k < c) & row_inside & (column >= 0) & (column < iw)
            value = tl.load(x + row * x_h + column * x_w, inside, 0)
            z += tl.load(weight + u * weight_h + v * weight_w, k < c, 0).to(SUM) * value.to(SUM)
    if scale is not None:
        z *= tl.load(scale + k, k < c, 0).to(SUM)
        if bias is not None:
            z += tl.load(bias + k, k < c, 0).to(SUM)
    if residual is not None:
        inside = (k < c) & (i < oh) & (j < ow)
        after = tl.load(residual + n * residual_n + k * residual_c + i * residual_h + j * residual_w, inside, 0).to(SUM)
        if RESIDUAL_FIRST:
            z += after
    of_channel = 0.0
    if slope is not None:
        of_channel = tl.load(slope + k * slope_c, k < c, 0).to(SUM)
    z = activate(z, ALPHA, of_channel, ACTIVATION)
    if residual is not None and not RESIDUAL_FIRST:
        z += after
    if gate is not None:
        z *= tl.load(gate + n * gate_n + k * gate_c, k < c, 0).to(SUM)
    y += n * y_n + k * y_c + i * y_h + j * y_w
    tl.store(y, z.to(y.dtype.element_ty), (k < c) & (i < oh) & (j < ow))


# traffic: l2 2.43, loads 3.52, stores 2.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def backward_input_kernel(
    x, weight, y,
    c, ih, iw, oh, ow,
    x_n, x_c, x_h, x_w,
    y_n, y_c, y_h, y_w,
    weight_c, weight_h, weight_w,
    padding_t, padding_l,
    MULTIPLIER: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """dx into x, [n, c, ih, iw]. A tile's pixels are a stride apart, so that all of them meet the same taps."""
    index = tl.program_id(0)
    first_j = index % STRIDE_W
    index = index // STRIDE_W
    first_i = index % STRIDE_H
    n, k, i, j = _tile(
        index // STRIDE_H, c, tl.cdiv(ih, STRIDE_H), tl.cdiv(iw, STRIDE_W), WIDE, BLOCK_C, BLOCK_H, BLOCK_W
    )
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    dx = tl.zeros([BLOCK_C, BLOCK_H * BLOCK_W], SUM)
    for m in range(MULTIPLIER):
        y_m = y + n * y_n + (k * MULTIPLIER + m) * y_c
        weight_m = weight + (k * MULTIPLIER + m) * weight_c
        for u in range(KH):
            top = first_i + padding_t - u * DILATION_H
            if top % STRIDE_H == 0:
                row = i + top // STRIDE_H
                row_inside = (row >= 0) & (row < oh)
                for v in range(KW):
                    left = first_j + padding_l - v * DILATION_W
                    if left % STRIDE_W == 0:
                        column = j + left // STRIDE_W
                        inside = (k < c) & row_inside & (column >= 0) & (column < ow)
                        value = tl.load(y_m + row * y_h + column * y_w, inside, 0)
                        dx += tl.load(weight_m + u * weight_h + v * weight_w, k < c, 0).to(SUM) * value.to(SUM)
    i, j = first_i + i * STRIDE_H, first_j + j * STRIDE_W
    x += n * x_n + k * x_c + i * x_h + j * x_w
    tl.store(x, dx.to(x.dtype.element_ty), (k < c) & (i < ih) & (j < iw))


# traffic: l2 4.45, loads 1.75, stores 2.50, shared 1.54 (tests/test_gpu_traffic.py)
@triton.jit
def backward_weight_kernel(
    x, y, partial,
    tiles, splits, c, ih, iw, oh, ow,
    x_n, x_c, x_h, x_w,
    y_n, y_c, y_h, y_w,
    padding_t, padding_l,
    MULTIPLIER: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """partial [splits, KH * KW + 1, c]: a program sums every splits-th tile, for BLOCK_V taps of one row of taps."""
    TAP_TILES: tl.constexpr = (KW + BLOCK_V - 1) // BLOCK_V
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    first_v = program % TAP_TILES * BLOCK_V
    program = program // TAP_TILES
    u = program % KH
    program = program // KH
    split = program % splits
    block = program // splits
    per_image = tl.cdiv(oh, BLOCK_H) * tl.cdiv(ow, BLOCK_W)
    blocks = tl.cdiv(c, BLOCK_C)
    v = first_v + tl.arange(0, BLOCK_V)[:, None, None]
    dweight = tl.zeros([BLOCK_V, BLOCK_C, BLOCK_H * BLOCK_W], SUM)
    dbias = tl.zeros([BLOCK_C, BLOCK_H * BLOCK_W], SUM)
    for tile in range(split, tiles, splits):
        index = (tile // per_image * blocks + block) * per_image + tile % per_image
        n, k, i, j = _tile(index, c, oh, ow, WIDE, BLOCK_C, BLOCK_H, BLOCK_W)
        dy = tl.load(y + n * y_n + k * y_c + i * y_h + j * y_w, (k < c) & (i < oh) & (j < ow), 0).to(SUM)
        dbias += dy
        row = i * STRIDE_H + u * DILATION_H - padding_t
        column = j[None] * STRIDE_W + v * DILATION_W - padding_l
        inside = ((k < c) & (row >= 0) & (row < ih))[None] & (v < KW) & (column >= 0) & (column < iw)
        value = tl.load(x + (n * x_n + k // MULTIPLIER * x_c + row * x_h)[None] + column * x_w, inside, 0)
        dweight += dy[None] * value.to(SUM)
    TAPS: tl.constexpr = KH * KW
    k = block * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = u * KW + first_v + tl.arange(0, BLOCK_V)[:, None]
    out = partial + split.to(tl.int64) * ((TAPS + 1) * c)
    inside = (first_v + tl.arange(0, BLOCK_V)[:, None] < KW) & (k[None] < c)
    tl.store(out + tap * c + k[None], tl.sum(dweight, 2), inside)
    tl.store(out + TAPS * c + k, tl.sum(dbias, 1), (k < c) & (u == 0) & (first_v == 0))


# traffic: l2 4.15, loads 1.00, stores 7.30, shared 2.60 (tests/test_gpu_traffic.py)
@triton.jit
def backward_weight_finish_kernel(
    partial, dweight, dbias, splits, c, TAPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr
):
    """dweight [c, TAPS] and dbias [c] from partial [splits, TAPS + 1, c]."""
    index = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)  # of [TAPS + 1, c]
    inside = index < (TAPS + 1) * c
    total = tl.zeros([BLOCK_S, BLOCK_T], partial.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)[:, None]
        total += tl.load(partial + s.to(tl.int64) * ((TAPS + 1) * c) + index[None], (s < splits) & inside[None], 0)
    value = tl.sum(total, 0).to(dweight.dtype.element_ty)
    tap, k = index // c, index % c
    tl.store(dweight + k * TAPS + tap, value, inside & (tap < TAPS))
    tl.store(dbias + k, value, inside & (tap == TAPS))


# --- choosing blocks --------------------------------------------------------------------------------------------------
# Tiles of 1024 elements and more take 8 warps: with 4, 5x5 and 7x7 spill.
CONFIGS = [
    triton.Config(
        {"BLOCK_C": block_c, "BLOCK_H": block_h, "BLOCK_W": block_w},
        num_warps=8 if block_c * block_h * block_w >= 1024 else 4,
    )
    for block_c, block_h, block_w in (
        (1, 4, 64), (1, 16, 32), (1, 32, 16), (4, 8, 16), (8, 8, 8), (16, 4, 4),
        (32, 4, 4), (64, 2, 4), (64, 4, 8), (128, 2, 4), (128, 1, 2),
    )
]  # fmt: skip
GEOMETRY = ["c", "ih", "iw", "oh", "ow", "x_c", "MULTIPLIER", "KH", "KW", "STRIDE_H", "STRIDE_W", "DILATION_H"]


def _fitting(configs, arguments, **constants):
    """Of the configs, those whose tile lies along the contiguous dimension, and is not far wider than the tensor."""
    arguments = {**arguments, **constants}
    last, c, w = arguments["CHANNELS_LAST"], arguments["c"], arguments["ow"]

    def fits(config):
        block_c, block_w = config.kwargs["BLOCK_C"], config.kwargs["BLOCK_W"]
        if last:
            return block_c >= 16 and block_c < 2 * max(c, 16)
        return block_c <= 8 and block_w < 2 * max(w, 8)

    return [config for config in configs if fits(config)]


def _tuned(kernel):
    """Autotuned; autotuning measures, which the interpreter cannot."""
    if INTERPRETED:
        return kernel
    return triton.autotune(CONFIGS, GEOMETRY, prune_configs_by={"early_config_prune": _fitting})(kernel)


_forward, _backward_input = _tuned(forward_kernel), _tuned(backward_input_kernel)


def blocks(c: int, h: int, w: int, channels_last: bool, pixels: int) -> dict[str, int]:
    """A tile that was not measured: of `pixels` elements where the tensor has as many."""
    power = triton.next_power_of_2
    block_c = min(power(c), 32) if channels_last else 1
    block_w = min(power(w), 8 if channels_last else 32, pixels // block_c)
    block_h = min(power(h), max(pixels // (block_c * block_w), 1))
    if not channels_last:
        block_c = min(power(c), max(pixels // (block_h * block_w), 1))
    return {"BLOCK_C": block_c, "BLOCK_H": block_h, "BLOCK_W": block_w}


def _channels_last(t: Tensor) -> bool:
    return t.stride(1) == 1 and t.stride(3) != 1


def _wide(*tensors: Tensor) -> bool:
    """Does any tensor reach beyond 2^31 elements?"""
    return any(sum((s - 1) * d for s, d in zip(t.shape, t.stride(), strict=True)) >= 2**31 for t in tensors)


def _device_of(t: Tensor):
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def _geometry(x: Tensor, weight: Tensor, y: Tensor, stride, dilation) -> dict:
    return {
        "MULTIPLIER": y.shape[1] // x.shape[1],
        "KH": weight.shape[2],
        "KW": weight.shape[3],
        "STRIDE_H": stride[0],
        "STRIDE_W": stride[1],
        "DILATION_H": dilation[0],
        "DILATION_W": dilation[1],
        "WIDE": _wide(x, weight, y),
    }


def _launch(kernel, tensors, written: Tensor, step, stride, padding, dilation, strides=(), **constants) -> None:
    """Starts a program for each tile of `written`, whose pixels are `step` (rows, columns) apart."""
    x, weight, *_, y = tensors
    n, c, *size = written.shape
    h, w = (triton.cdiv(pixels, apart) for pixels, apart in zip(size, step))
    last = _channels_last(written)
    fixed = blocks(c, h, w, last, 2048) if INTERPRETED else {}

    def grid(meta):
        per_image = triton.cdiv(c, meta["BLOCK_C"]) * triton.cdiv(h, meta["BLOCK_H"]) * triton.cdiv(w, meta["BLOCK_W"])
        return (n * per_image * step[0] * step[1],)

    with _device_of(x):
        kernel[grid](
            *tensors, c, *x.shape[2:], *y.shape[2:], *x.stride(), *y.stride(),
            weight.stride(0), weight.stride(2), weight.stride(3), padding[0], padding[2], *strides,
            **_geometry(x, weight, y, stride, dilation), CHANNELS_LAST=last, **constants, **fixed,
        )  # fmt: skip


# --- the op -----------------------------------------------------------------------------------------------------------
def depthwise_conv2d(x, weight, bias, stride, padding, dilation, activation) -> Tensor:
    y = _forward_fake(x, weight, bias, stride, padding, dilation, activation)
    return _into(y, x, weight, bias, stride, padding, dilation, Epilogue(activation))


def depthwise_conv2d_fused(x, weight, bias, stride, padding, dilation, *epilogue) -> Tensor:
    y = _fused_fake(x, weight, bias, stride, padding, dilation, *epilogue)
    return _into(y, x, weight, bias, stride, padding, dilation, Epilogue(*epilogue))


def _into(y: Tensor, x, weight, bias, stride, padding, dilation, e: Epilogue) -> Tensor:
    if y.numel() == 0:
        return y
    bias, slope, scale = (None if t is None else t.contiguous() for t in (bias, e.slope, e.scale))
    residual = (0,) * 4 if e.residual is None else e.residual.stride()
    gate = (0,) * 2 if e.gate is None else e.gate.stride()
    strides = (int(slope is not None and slope.numel() > 1), *residual, *gate)
    tensors = (x, weight, bias, slope, scale, e.residual, e.gate, y)
    _launch(
        _forward, tensors, y, (1, 1), stride, padding, dilation, strides,
        ACTIVATION=e.activation, ALPHA=e.alpha, RESIDUAL_FIRST=e.residual_first,
    )  # fmt: skip
    return y


def depthwise_conv2d_backward_input(dy, weight, ih, iw, channels, stride, padding, dilation) -> Tensor:
    dx = _backward_input_fake(dy, weight, ih, iw, channels, stride, padding, dilation)
    if dx.numel() == 0:
        return dx
    _launch(_backward_input, (dx, weight, dy), dx, stride, stride, padding, dilation)
    return dx


def depthwise_conv2d_backward_weight(dy, x, kh, kw, stride, padding, dilation) -> tuple[Tensor, Tensor]:
    """Deterministic: blocks and splits follow from the shapes alone, so they are not tuned."""
    dweight, dbias = _backward_weight_fake(dy, x, kh, kw, stride, padding, dilation)
    if dy.numel() == 0:
        return dweight.zero_(), dbias.zero_()
    n, c, oh, ow = dy.shape
    block = blocks(c, oh, ow, _channels_last(x), 256)
    block_v = min(triton.next_power_of_2(kw), 8)
    tiles = n * triton.cdiv(oh, block["BLOCK_H"]) * triton.cdiv(ow, block["BLOCK_W"])
    programs = triton.cdiv(c, block["BLOCK_C"]) * kh * triton.cdiv(kw, block_v)
    splits = max(1, min(tiles // 4, triton.cdiv(2048, programs), 512))
    taps = kh * kw
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.empty((splits, taps + 1, c), dtype=sums, device=x.device)
    with _device_of(x):
        backward_weight_kernel[(programs * splits,)](
            x, dy, partial, tiles, splits, c, *x.shape[2:], *dy.shape[2:], *x.stride(), *dy.stride(),
            padding[0], padding[2], **_geometry(x, dweight, dy, stride, dilation), BLOCK_V=block_v, **block,
        )  # fmt: skip
        backward_weight_finish_kernel[(triton.cdiv((taps + 1) * c, 32),)](
            partial, dweight, dbias, splits, c, TAPS=taps, BLOCK_S=16, BLOCK_T=32
        )
    return dweight, dbias


depthwise_conv2d_backward = both(depthwise_conv2d_backward_input, depthwise_conv2d_backward_weight)
