"""Upsampling of two dimensions, nearest or bilinear, with torch's coordinates, and its gradient.

y[.., i, j] = sum of h[i, u] * w[j, v] * x[.., u, v] over u and v, where a row of h and of w has one 1 (nearest) or two
neighbours whose sum is 1 (bilinear); dx is the transposed of it. Also + add[.., i, j].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _move, _op

MODES = ("nearest", "nearest-exact", "bilinear")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# --- shapes and checks (also the fake kernels); csrc/upsample2d.cpp asks the same -------------------------------------
def _check(op: str, name: str, x: Tensor, size, mode: str, align_corners: bool) -> None:
    if x.dim() != 4:
        raise RuntimeError(f"{op}: {name} must have shape [n, c, h, w], got {list(x.shape)}")
    if len(size) != 2:
        raise RuntimeError(f"{op}: size must be (height, width), got {list(size)}")
    if mode not in MODES:
        raise RuntimeError(f"{op}: mode must be one of {', '.join(MODES)}, got '{mode}'")
    if align_corners and mode != "bilinear":
        raise RuntimeError(f"{op}: align_corners belongs to bilinear")
    if min(*x.shape[2:], *size) < 1:
        raise RuntimeError(f"{op}: sizes must be positive, got {list(x.shape[2:])} and {list(size)}")


def _check_dtype(op: str, x: Tensor) -> None:
    if x.dtype not in FLOATS:
        raise RuntimeError(f"{op}: dtype must be float32, float64, float16 or bfloat16, got {x.dtype}")


def _forward_fake(x, size, scale_h, scale_w, mode, align_corners, add):
    op = "upsample2d"
    _check(op, "x", x, size, mode, align_corners)
    if x.dtype != torch.uint8 or mode == "bilinear" or add is not None:
        _check_dtype(op, x)
    shape = (*x.shape[:2], *size)
    if add is not None:
        if tuple(add.shape) != shape:
            raise RuntimeError(f"{op}: add must have y's shape {list(shape)}, got {list(add.shape)}")
        if add.dtype != x.dtype:
            raise RuntimeError(f"{op}: add must be {x.dtype}, got {add.dtype}")
        if add.device != x.device:
            raise RuntimeError(f"{op}: tensors must be on one device, add is on another than x")
    return _move.empty_as(x, shape)


def _backward_fake(dy, size, scale_h, scale_w, mode, align_corners):
    op = "upsample2d_backward"
    _check(op, "dy", dy, size, mode, align_corners)
    _check_dtype(op, dy)
    return _move.empty_as(dy, (*dy.shape[:2], *size))


# --- coordinates ------------------------------------------------------------------------------------------------------
def axis(inputs: int, outputs: int, scale: float | None, mode: str, align_corners: bool, dtype: torch.dtype):
    """(step, half), in `dtype`: output o lies at input (o + half) * step, of bilinear minus half again.

    These are torch's coordinates (ATen/native/UpSample.h), to the last bit: a scale that is given decides, not the
    sizes. But sizes that stay, and of nearest those that double, come before any scale.
    """
    if outputs == inputs and mode != "nearest-exact":
        return torch.tensor(1.0, dtype=dtype, device="cpu"), 0.0
    if outputs == 2 * inputs and mode == "nearest":
        return torch.tensor(0.5, dtype=dtype, device="cpu"), 0.0
    half = 0.0 if mode == "nearest" or align_corners else 0.5
    if align_corners:
        return torch.tensor(inputs - 1, dtype=dtype, device="cpu") / max(outputs - 1, 1) * (outputs > 1), half
    if scale is not None and scale > 0:
        return torch.tensor(1.0 / scale, dtype=torch.float64, device="cpu").to(dtype), half
    return torch.tensor(inputs, dtype=dtype, device="cpu") / outputs, half


def coordinates_of(mode: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 and mode == "bilinear" else torch.float32


def sources(inputs: int, outputs: int, scale: float | None, mode: str, align_corners: bool, dtype: torch.dtype):
    """(lower, upper, weight of upper) [outputs] of one axis."""
    wide = coordinates_of(mode, dtype)
    step, half = axis(inputs, outputs, scale, mode, align_corners, wide)
    at = (torch.arange(outputs, dtype=wide, device="cpu") + half) * step
    if mode == "bilinear":
        at = (at - half).clamp(min=0)
    lower = at.floor().clamp(max=inputs - 1).long()
    if mode != "bilinear":
        return lower, lower, torch.zeros_like(at)
    return lower, (lower + 1).clamp(max=inputs - 1), (at - lower).clamp(max=1)


# --- reference --------------------------------------------------------------------------------------------------------
def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _forward_reference(x, size, scale_h, scale_w, mode, align_corners, add):
    y = _forward_fake(x, size, scale_h, scale_w, mode, align_corners, add)
    value = x if mode != "bilinear" and add is None else _wide(x)
    for dim, scale in ((2, scale_h), (3, scale_w)):
        table = sources(x.shape[dim], size[dim - 2], scale, mode, align_corners, x.dtype)
        lower, upper, weight = (t.to(x.device) for t in table)
        low = value.index_select(dim, lower)
        if mode == "bilinear":
            weight = weight.view(-1, *[1] * (3 - dim))
            low = low * (1 - weight) + value.index_select(dim, upper) * weight
        value = low
    return y.copy_(value if add is None else value + _wide(add))


def _backward_reference(dy, size, scale_h, scale_w, mode, align_corners):
    dx = _backward_fake(dy, size, scale_h, scale_w, mode, align_corners)
    value = _wide(dy)
    for dim, scale in ((2, scale_h), (3, scale_w)):
        table = sources(size[dim - 2], dy.shape[dim], scale, mode, align_corners, dy.dtype)
        lower, upper, weight = (t.to(dy.device) for t in table)
        shape = list(value.shape)
        shape[dim] = size[dim - 2]
        weight = weight.view(-1, *[1] * (3 - dim))
        result = value.new_zeros(shape).index_add_(dim, lower, value * (1 - weight))
        value = result.index_add_(dim, upper, value * weight) if mode == "bilinear" else result
    return dx.copy_(value)


# --- derivatives ------------------------------------------------------------------------------------------------------
def _forward_setup(ctx, inputs, output):
    x, _, *ctx.how, add = inputs
    ctx.size, ctx.has_add = x.shape[2:], add is not None


def _forward_backward(ctx, dy):
    dx = backward(dy, ctx.size, *ctx.how) if ctx.needs_input_grad[0] else None
    return dx, None, None, None, None, None, dy if ctx.has_add else None


def _backward_setup(ctx, inputs, output):
    dy, _, *ctx.how = inputs
    ctx.size = dy.shape[2:]


def _backward_backward(ctx, g):
    return forward(g, ctx.size, *ctx.how, None), None, None, None, None, None


# --- vmap: the batch joins n ------------------------------------------------------------------------------------------
def _join(t: Any, dim: int | None, batch: int) -> Any:
    if t is None:
        return None
    return (t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)


def _forward_vmap(info, in_dims, x, size, scale_h, scale_w, mode, align_corners, add):
    b = info.batch_size
    y = forward(_join(x, in_dims[0], b), size, scale_h, scale_w, mode, align_corners, _join(add, in_dims[-1], b))
    return y.unflatten(0, (b, -1)) if y.shape[0] else y.view(b, 0, *y.shape[1:]), 0


def _backward_vmap(info, in_dims, dy, *how):
    b = info.batch_size
    dx = backward(_join(dy, in_dims[0], b), *how)
    return dx.unflatten(0, (b, -1)) if dx.shape[0] else dx.view(b, 0, *dx.shape[1:]), 0


forward = _op.register(
    "upsample2d(Tensor x, SymInt[] size, float? scale_h, float? scale_w, str mode, bool align_corners, Tensor? add) "
    "-> Tensor",
    reference=_forward_reference,
    fake=_forward_fake,
    setup_context=_forward_setup,
    backward=_forward_backward,
    vmap=_forward_vmap,
    flops=_move.no_flops,
)
backward = _op.register(
    "upsample2d_backward(Tensor dy, SymInt[] size, float? scale_h, float? scale_w, str mode, bool align_corners) "
    "-> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_backward,
    vmap=_backward_vmap,
    flops=_move.no_flops,
)


# --- public function --------------------------------------------------------------------------------------------------
def _two(value, name: str) -> tuple[Any, Any]:
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be a number or a pair of numbers, got {value!r}")
    return values


def upsample2d(
    x: Tensor,
    size: int | tuple[int, int] | None = None,
    scale_factor: float | tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    *,
    recompute_scale_factor: bool | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """An image in another size, as ``torch.nn.functional.interpolate`` has it, and optionally plus another image.

    Differentiable, twice and more. The gradient is a gather: its bits are the same every time.

    Args:
        x: ``[n, c, h, w]``; float32, float64, bfloat16 or float16 (16-bit types are computed in float32), nearest
            without `add` also uint8. Any strides.
        size: height and width of the result, or one number for both. Either this or `scale_factor`.
        scale_factor: result over input, one number or (vertical, horizontal): the size is rounded down, and coordinates
            go by the factor, not by the sizes.
        mode: ``"nearest"`` (input ``floor(i * h / oh)``), ``"nearest-exact"`` (``floor((i + 0.5) * h / oh)``) or
            ``"bilinear"`` (between the neighbours of ``(i + 0.5) * h / oh - 0.5``).
        align_corners: bilinear's coordinates are ``i * (h - 1) / (oh - 1)`` instead: corners stay where they are.
        recompute_scale_factor: coordinates go by the sizes, although `scale_factor` is given.
        add: of the result's shape and dtype, added to it in the same pass (a feature pyramid's lateral map, Lin et al.,
            2017, arXiv 1612.03144, section 3).

    Returns:
        ``[n, c, oh, ow]``, in x's memory format.

    Raises:
        TypeError: x or add is no tensor.
        ValueError: not exactly one of size and scale_factor, an unknown mode, align_corners without bilinear.
        RuntimeError: a shape, size or dtype that does not fit.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if add is not None and not isinstance(add, Tensor):
        raise TypeError(f"add must be a tensor or None, got {type(add).__name__}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if align_corners is not None and mode != "bilinear":
        raise ValueError("align_corners belongs to bilinear")
    if (size is None) == (scale_factor is None):
        raise ValueError("either size or scale_factor must be given, and not both")
    if recompute_scale_factor and size is not None:
        raise ValueError("recompute_scale_factor belongs to scale_factor")
    scales: tuple[Any, ...] = (None, None)
    if scale_factor is not None:
        scales = tuple(float(s) for s in _two(scale_factor, "scale_factor"))
        sizes: tuple[Any, ...] = tuple(int(n * s) for n, s in zip(x.shape[-2:], scales, strict=True))
        if recompute_scale_factor:
            scales = (None, None)
    else:
        try:
            sizes = tuple(_op.whole(n) for n in _two(size, "size"))
        except TypeError:
            raise TypeError(f"size must be an int or a pair of ints, got {size!r}") from None
    return forward(x, sizes, *scales, mode, bool(align_corners), add)
