"""Dense convolution in Triton: y, dx, dweight and dbias, for any size, stride, dilation, groups, strides and dtype.

An implicit matrix product (dense_conv2d.py); sums are float32, but float64 for float64.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._epilogue import Epilogue
from ..ops.dilated_conv2d import _backward_input_fake, _backward_weight_fake, _forward_fake, _out_fake
from .dense_conv2d import (
    INTERPRETED,
    _pixel,
    _range,
    _work,
    by_taps,
    channels_last,
    convolve,
    device_of,
    flat,
    load,
    multiply_add,
    precision,
    store,
    vector,
    wide,
)
from .epilogue import activate


# --- kernels ----------------------------------------------------------------------------------------------------------
# traffic: l2 1.70, loads 1.67, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def dense_forward_kernel(
    x, weight, bias, slope, scale, residual, gate, input_gate, y,
    pixels, co, ci, groups, ih, iw, oh, ow,
    x_n, x_c, x_h, x_w,
    y_n, y_c, y_h, y_w,
    r_n, r_c, r_h, r_w,
    weight_o, weight_k, weight_u, weight_v, slope_c,
    stride_h, stride_w, padding_t, padding_l, dilation_h, dilation_w,
    KH: tl.constexpr, KW: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, RESIDUAL_FIRST: tl.constexpr,
    INPUT_ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr, FLAT: tl.constexpr,
    PRECISION: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    XK: tl.constexpr, XP: tl.constexpr, WK: tl.constexpr, YC: tl.constexpr, YP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """co and ci are the channels of a group."""
    block, group, tile = _work(tl.program_id(0), co, groups, BLOCK_C)
    p = _range(tile, WIDE, BLOCK_P)[None, :]
    local = _range(block, WIDE, BLOCK_C)[:, None]
    n, i, j = _pixel(p, oh, ow)
    o = group * co + local
    outs = local < co
    z = convolve(
        x, n * x_n + group * ci * x_c, i * stride_h - padding_t, j * stride_w - padding_l, ih, iw,
        x_c, x_h, x_w, p < pixels, weight, o * weight_o, outs, weight_k, weight_u, weight_v,
        input_gate, n * (ci * groups) + group * ci, ci, KH, KW, dilation_h, dilation_w,
        INPUT_ACTIVATION, FLAT, PRECISION, XK, XP, 1, WK, BLOCK_C, BLOCK_P, BLOCK_K,
    )  # fmt: skip
    SUM: tl.constexpr = z.dtype
    inside = outs & (p < pixels)
    if scale is not None:
        z *= tl.load(scale + o, outs, 0).to(SUM)
    if bias is not None:
        z += tl.load(bias + o, outs, 0).to(SUM)
    if residual is not None:
        added = load(residual, n * r_n + o * r_c + i * r_h + j * r_w, outs, p < pixels, YC, YP).to(SUM)
        if RESIDUAL_FIRST:
            z += added
    slopes = 0.0
    if slope is not None:
        slopes = tl.load(slope + o * slope_c, outs, 0).to(SUM)
    z = activate(z, ALPHA, slopes, ACTIVATION)
    if residual is not None and not RESIDUAL_FIRST:
        z += added
    if gate is not None:
        z *= tl.load(gate + n * (co * groups) + o, inside, 0).to(SUM)
    if SHUFFLE > 1:
        o = o % (co * groups // SHUFFLE) * SHUFFLE + o // (co * groups // SHUFFLE)
    store(y, n * y_n + o * y_c + i * y_h + j * y_w, z, outs, p < pixels, YC, YP)


@triton.jit
def _first_tap(place, dilation, stride, apart):
    """The first of the taps, `apart` from each other, that meet a pixel at `place` of the padded image; or `apart`."""
    first = place * 0 + apart
    for back in range(1, apart + 1):
        first = tl.where((place - (apart - back) * dilation) % stride == 0, apart - back, first)
    return first


# traffic: l2 3.94, loads 1.11, stores 2.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def dense_backward_input_kernel(
    dx, weight, dy,
    pixels, co, ci, groups, ih, iw, oh, ow,
    dx_n, dx_c, dx_h, dx_w,
    dy_n, dy_c, dy_h, dy_w,
    weight_o, weight_k, weight_u, weight_v,
    stride_h, stride_w, padding_t, padding_l, dilation_h, dilation_w, apart_h, apart_w,
    KH: tl.constexpr, KW: tl.constexpr,
    PRECISION: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    XC: tl.constexpr, XP: tl.constexpr, WC: tl.constexpr, YK: tl.constexpr, YP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile's pixels are a stride apart, so that all of them meet the same taps: every apart-th from the first."""
    block, group, index = _work(tl.program_id(0), ci, groups, BLOCK_C)
    first_j = index % stride_w
    index = index // stride_w
    first_i = index % stride_h
    p = _range(index // stride_h, WIDE, BLOCK_P)[None, :]
    local = _range(block, WIDE, BLOCK_C)[:, None]
    n, i, j = _pixel(p, tl.cdiv(ih, stride_h), tl.cdiv(iw, stride_w))
    place_i, place_j = first_i + padding_t, first_j + padding_l
    u = _first_tap(place_i, dilation_h, stride_h, apart_h)
    v = _first_tap(place_j, dilation_w, stride_w, apart_w)
    us = tl.where(u < apart_h, tl.cdiv(tl.maximum(KH - u, 0), apart_h), 0)
    vs = tl.where(v < apart_w, tl.cdiv(tl.maximum(KW - v, 0), apart_w), 0)
    none = us * vs == 0  # then there are no channels either, of one tap: masked addresses are aligned, nothing is 0 / 0
    u, v, us, vs = tl.where(none, 0, u), tl.where(none, 0, v), tl.where(none, 1, us), tl.where(none, 1, vs)
    row = i + (place_i - u * dilation_h) // stride_h
    column = j + (place_j - v * dilation_w) // stride_w
    total = convolve(
        dy, n * dy_n + group * co * dy_c, row, column, oh, ow, dy_c, dy_h, dy_w, p < pixels,
        weight, group * co * weight_o + u * weight_u + v * weight_v + local * weight_k, local < ci,
        weight_o, apart_h * weight_u, apart_w * weight_v, None, 0, tl.where(none, 0, co), us, vs,
        -(apart_h * dilation_h // stride_h), -(apart_w * dilation_w // stride_w),
        "none", False, PRECISION, YK, YP, WC, 1, BLOCK_C, BLOCK_P, BLOCK_K,
    )  # fmt: skip
    i, j = first_i + i * stride_h, first_j + j * stride_w
    at = n * dx_n + (group * ci + local) * dx_c + i * dx_h + j * dx_w
    store(dx, at, total, local < ci, (p < pixels) & (i < ih) & (j < iw), XC, XP)


# traffic: l2 6.17, loads 1.33, stores 1.00, shared 2.79 (tests/test_gpu_traffic.py)
@triton.jit
def dense_backward_weight_kernel(
    x, dy, dweight, dbias,
    pixels, steps, co, ci, groups, ih, iw, oh, ow,
    x_n, x_c, x_h, x_w,
    dy_n, dy_c, dy_h, dy_w,
    out_split, out_tap, out_pair,
    stride_h, stride_w, padding_t, padding_l, dilation_h, dilation_w,
    kh, kw, FLAT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    XK: tl.constexpr, XP: tl.constexpr, YC: tl.constexpr, YP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dweight [split, tap, pair of channels] and dbias [split, o]: sums of `steps` blocks of pixels each.

    A program has BLOCK_K input channels of one tap; FLAT: of several taps.
    """
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    block, group, index = _work(tl.program_id(0), co, groups, BLOCK_C)
    if FLAT:
        k_block, _, split = _work(index, kh * kw * ci, 1, BLOCK_K)
        term = _range(k_block, WIDE, BLOCK_K)
        tap, k, more = term // ci, term % ci, term < kh * kw * ci
        once = k_block == 0
        down, right = (tap // kw * dilation_h)[:, None], (tap % kw * dilation_w)[:, None]
        place = (tap * out_tap + k * out_pair)[None, :]
    else:
        k_block, tap, split = _work(index, ci, kh * kw, BLOCK_K)
        k = _range(k_block, WIDE, BLOCK_K)
        more = k < ci
        once = (tap == 0) & (k_block == 0)
        down, right = tap // kw * dilation_h, tap % kw * dilation_w
        place = tap.to(k.dtype) * out_tap + (k * out_pair)[None, :]
    local = _range(block, WIDE, BLOCK_C)
    o = group * co + local
    x_channel = (group * ci + k)[:, None] * x_c
    total = tl.zeros([BLOCK_C, BLOCK_K], SUM)
    bias = tl.zeros([BLOCK_C], SUM)
    for step in range(split * steps, (split + 1) * steps):
        p = _range(step, WIDE, BLOCK_P)
        n, i, j = _pixel(p, oh, ow)
        a_at = o[:, None] * dy_c + (n * dy_n + i * dy_h + j * dy_w)[None, :]
        a = load(dy, a_at, (local < co)[:, None], (p < pixels)[None, :], YC, YP)
        row, column = (i * stride_h - padding_t)[None, :] + down, (j * stride_w - padding_l)[None, :] + right
        seen = (p < pixels)[None, :] & (row >= 0) & (row < ih) & (column >= 0) & (column < iw)
        b = load(x, (n * x_n)[None, :] + row * x_h + column * x_w + x_channel, seen, more[:, None], XK, XP)
        total = multiply_add(a, tl.trans(b), total, PRECISION)
        if once:
            bias += tl.sum(a.to(SUM), 1)
    dweight += split.to(tl.int64) * out_split + o[:, None] * (ci * out_pair) + place
    tl.store(dweight, total.to(dweight.dtype.element_ty), (local < co)[:, None] & more[None, :])
    dbias += split.to(tl.int64) * out_split + o
    tl.store(dbias, bias.to(dbias.dtype.element_ty), (local < co) & once)


# traffic: l2 1.47, loads 2.94, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
@triton.jit
def dense_backward_weight_finish_kernel(
    partial, dweight, dbias, splits, pairs, co, TAPS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """dweight [pairs, TAPS] and dbias [co] from partial [splits, TAPS * pairs + co], splits in a fixed order."""
    index = _range(tl.program_id(0), WIDE, BLOCK_T)
    weights = pairs * TAPS
    inside = index < weights + co
    source = tl.where(index < weights, index % TAPS * pairs + index // TAPS, index)
    total = tl.zeros([BLOCK_S, BLOCK_T], partial.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)[:, None]
        total += tl.load(partial + s * (weights + co) + source[None, :], (s < splits) & inside[None, :], 0)
    value = tl.sum(total, 0).to(dweight.dtype.element_ty)
    tl.store(dweight + index, value, index < weights)
    tl.store(dbias + index - weights, value, (index >= weights) & inside)


# --- choosing blocks --------------------------------------------------------------------------------------------------
# Without a limit of registers ptxas aims at more blocks than they leave room for, and spills a few for that.
CONFIGS = [
    triton.Config({"BLOCK_C": c, "BLOCK_P": p, "BLOCK_K": k}, num_warps=warps, num_stages=stages, maxnreg=255)
    for c, p, k, warps, stages in (
        (16, 128, 16, 4, 3), (32, 64, 32, 4, 3), (32, 128, 32, 4, 3), (64, 64, 16, 4, 3),
        (64, 64, 32, 4, 3), (64, 128, 32, 8, 3), (128, 128, 32, 8, 3),
    )
]  # fmt: skip
GEOMETRY = ["co", "ci", "groups", "ih", "iw", "oh", "ow", "KH", "KW", "stride_h", "dilation_h", "PRECISION"]


def _by_threads(dtype: torch.dtype) -> bool:
    """Is it multiplied without tensor cores? (float64 has some, on a few GPUs.) A thread then holds rows and columns of
    a whole block in registers: longer blocks spill."""
    return dtype == torch.float64 or (dtype == torch.float32 and precision(dtype) == "ieee")


def _fitting(configs, arguments, **constants):
    """Of the configs, those that are not far larger than the problem and leave room for 256 threads on each GPU."""
    arguments = {**arguments, **constants}
    written, summed = (arguments[name] for name in (("co", "ci") if "y" in arguments else ("ci", "co")))
    weight = arguments["weight"]
    longest = 16 if _by_threads(weight.dtype) or summed <= 16 else 32

    def fits(config):
        c, p, k = (config.kwargs[f"BLOCK_{name}"] for name in "CPK")
        shared = config.num_stages * (c + p) * k * weight.element_size()
        return (
            c < 2 * max(written, 16)
            and p < 2 * max(arguments["pixels"], 64)
            and (k == longest or (c == 16 and k < longest))
            and c * p * weight.element_size() <= 2**15  # larger ones' addresses spill, where channels lie oddly
            and shared <= (96 if config.num_warps == 8 else 48) * 1024
        )

    return [config for config in configs if fits(config)] or configs[:1]


def _tuned(kernel, keys):
    """Autotuned; autotuning measures, which the interpreter cannot."""
    if INTERPRETED:
        return kernel
    return triton.autotune(CONFIGS, keys, prune_configs_by={"early_config_prune": _fitting})(kernel)


_forward = _tuned(dense_forward_kernel, [*GEOMETRY, "x_c"])
_backward_input = _tuned(dense_backward_input_kernel, [*GEOMETRY, "dx_c"])


def _launch(kernel, written: Tensor, groups: int, step, arguments, **constants) -> None:
    """Starts a program for each tile of `written`, whose pixels are `step` (rows, columns) apart."""
    n, c, h, w = written.shape
    per_group, pixels = c // groups, n * triton.cdiv(h, step[0]) * triton.cdiv(w, step[1])
    power = triton.next_power_of_2
    fixed = {"BLOCK_C": max(16, min(power(per_group), 64)), "BLOCK_P": min(power(pixels), 256), "BLOCK_K": 16}

    def grid(meta):
        tiles = triton.cdiv(per_group, meta["BLOCK_C"]) * triton.cdiv(pixels, meta["BLOCK_P"])
        return (tiles * groups * step[0] * step[1],)

    with device_of(written):
        kernel[grid](
            *arguments,
            CHANNELS_LAST=channels_last(written),
            PRECISION=precision(written.dtype),
            **constants,
            **(fixed if INTERPRETED else {}),
        )


def _few(weight: Tensor) -> bool:
    """Too few input channels to fill a block by those of one tap?"""
    return weight.shape[1] < 16 and weight[0, 0].numel() > 1


def _plain(weight: Tensor, stride, padding) -> bool:
    """Does each pixel of y see one of x, and that at its own place?"""
    return tuple(weight.shape[2:]) == (1, 1) and tuple(stride) == (1, 1) and not any(padding)


def _along_rows(image: Tensor, weight: Tensor, stride, padding) -> int:
    """As `vector`, for what is read or written of an image in the order of the other's pixels."""
    return vector(image, 3, image.shape[3]) if _plain(weight, stride, padding) else 1


def _collapsed(weight: Tensor, stride, padding, *images: Tensor | None):
    """The images as one row each, where a 1x1 kernel sees no difference and their strides allow it."""
    together = all(t is None or t.shape[2] == 1 or t.stride(2) == t.shape[3] * t.stride(3) for t in images)
    if not together or not _plain(weight, stride, padding):
        return images
    return tuple(None if t is None else t.view(*t.shape[:2], 1, -1) for t in images)


# --- the op -----------------------------------------------------------------------------------------------------------
def forward_into(
    y,
    x,
    weight,
    bias,
    stride,
    padding,
    dilation,
    groups,
    e: Epilogue,
    input_activation="none",
    input_gate=None,
    shuffle=1,
) -> None:
    """Also of pointwise_conv2d; everything was checked."""
    if y.numel() == 0:
        return
    x, y, residual = _collapsed(weight, stride, padding, x, y, e.residual)
    weight = by_taps(weight)
    stored = (y,) if residual is None else (y, residual)
    _launch(
        _forward,
        y,
        groups,
        (1, 1),
        (
            x, weight, *map(flat, (bias, e.slope, e.scale)), residual, flat(e.gate), flat(input_gate), y,
            y.numel() // y.shape[1], y.shape[1] // groups, weight.shape[1], groups, *x.shape[2:], *y.shape[2:],
            *x.stride(), *y.stride(), *stored[-1].stride(), *weight.stride(),
            int(e.slope is not None and e.slope.numel() > 1), *stride, padding[0], padding[2], *dilation,
        ),
        KH=weight.shape[2],
        KW=weight.shape[3],
        ACTIVATION=e.activation,
        ALPHA=e.alpha,
        RESIDUAL_FIRST=e.residual_first,
        INPUT_ACTIVATION=input_activation,
        SHUFFLE=shuffle,
        FLAT=_few(weight),
        XK=1 if _few(weight) else vector(x, 1, weight.shape[1]),
        XP=_along_rows(x, weight, stride, padding),
        WK=1 if _few(weight) else vector(weight, 1, weight.shape[1], taps=True),
        YC=min(vector(t, 1, y.shape[1] // groups) for t in stored) if shuffle == 1 else 1,
        YP=min(vector(t, 3, y.shape[3]) for t in stored),
        WIDE=wide(x, weight, *stored),
    )  # fmt: skip


def dilated_conv2d(x, weight, bias, stride, padding, dilation, groups, *rest) -> Tensor:
    y = _forward_fake(x, weight, bias, stride, padding, dilation, groups, *rest)
    forward_into(y, x, weight, bias, stride, padding, dilation, groups, Epilogue(*rest[:-2]))
    return y


def dilated_conv2d_out(x, weight, bias, stride, padding, dilation, groups, *rest) -> None:
    *epilogue, _, _, out = rest
    _out_fake(x, weight, bias, stride, padding, dilation, groups, *rest)
    forward_into(out, x, weight, bias, stride, padding, dilation, groups, Epilogue(*epilogue))


def dilated_conv2d_backward_input(dy, weight, ih, iw, stride, padding, dilation, groups) -> Tensor:
    result = _backward_input_fake(dy, weight, ih, iw, stride, padding, dilation, groups)
    if result.numel() == 0:
        return result
    dy, dx = _collapsed(weight, stride, padding, dy, result)
    weight = by_taps(weight)
    apart = [s // math.gcd(s, d) for s, d in zip(stride, dilation)]
    n, c, *size = dx.shape
    pixels = n * math.prod(triton.cdiv(pixels, s) for pixels, s in zip(size, stride))
    _launch(
        _backward_input,
        dx,
        groups,
        stride,
        (
            dx, weight, dy,
            pixels, dy.shape[1] // groups, c // groups, groups, *size, *dy.shape[2:],
            *dx.stride(), *dy.stride(), *weight.stride(), *stride, padding[0], padding[2], *dilation, *apart,
        ),
        KH=weight.shape[2],
        KW=weight.shape[3],
        WIDE=wide(dx, weight, dy),
        XC=vector(dx, 1, c // groups),
        XP=_along_rows(dx, weight, stride, padding),
        WC=vector(weight, 1, c // groups, taps=True),
        YK=vector(dy, 1, dy.shape[1] // groups),
        YP=_along_rows(dy, weight, stride, padding),
    )  # fmt: skip
    return result


def dilated_conv2d_backward_weight(dy, x, kh, kw, stride, padding, dilation, groups) -> tuple[Tensor, Tensor]:
    """Deterministic: blocks and splits follow from the shapes alone, so they are not tuned."""
    dweight, dbias = _backward_weight_fake(dy, x, kh, kw, stride, padding, dilation, groups)
    if dy.numel() == 0:
        return dweight.zero_(), dbias.zero_()
    dy, x = _collapsed(dweight, stride, padding, dy, x)
    co, ci, taps = dy.shape[1] // groups, x.shape[1] // groups, kh * kw
    few = _few(dweight)
    columns = ci * taps if few else ci
    block_c, block_k = (max(16, min(triton.next_power_of_2(size), 64)) for size in (co, columns))
    if block_k == block_c > 16 and not channels_last(x):  # Triton spreads tiles of one shape over threads alike, but
        block_k //= 2  # dy's pixels lie side by side by the eight, x's one by one
    pixels = dy.numel() // dy.shape[1]
    block_p = 256 if INTERPRETED else 16 if _by_threads(x.dtype) else 32
    programs = groups * triton.cdiv(co, block_c) * triton.cdiv(columns, block_k) * (1 if few else taps)
    blocks = triton.cdiv(pixels, block_p)
    steps = triton.cdiv(blocks, max(1, min(blocks // 8, triton.cdiv(512, programs))))
    splits = triton.cdiv(blocks, steps)
    pairs = dweight.numel() // taps
    if splits == 1:
        out, into = (dweight, dbias), (0, 1, taps)
    else:
        sums = torch.float64 if x.dtype == torch.float64 else torch.float32
        partial = torch.empty((splits, pairs * taps + dbias.numel()), dtype=sums, device=x.device)
        out, into = (partial, partial[0, pairs * taps :]), (partial.shape[1], pairs, 1)
    with device_of(x):
        dense_backward_weight_kernel[(programs * splits,)](
            x, dy, *out, pixels, steps, co, ci, groups, *x.shape[2:], *dy.shape[2:],
            *x.stride(), *dy.stride(), *into, *stride, padding[0], padding[2], *dilation,
            kh, kw, FLAT=few, PRECISION=precision(x.dtype), WIDE=wide(x, dy, dweight),
            XK=1 if few else vector(x, 1, ci), XP=_along_rows(x, dweight, stride, padding), YC=vector(dy, 1, co),
            YP=vector(dy, 3, dy.shape[3]),
            BLOCK_C=block_c, BLOCK_P=block_p, BLOCK_K=block_k, num_warps=4, num_stages=3, maxnreg=255,
        )  # fmt: skip
        if splits > 1:
            dense_backward_weight_finish_kernel[(triton.cdiv(partial.shape[1], 128),)](
                partial, dweight, dbias, splits, pairs, dbias.numel(), TAPS=taps, WIDE=wide(partial),
                BLOCK_S=min(triton.next_power_of_2(splits), 16), BLOCK_T=128,
            )  # fmt: skip
    return dweight, dbias
