"""Dense convolution with any kernel, stride, dilation and groups, and what networks put behind it, in one pass.

y[n, o, i, j] = epilogue(sum_{k, u, v} w[o, k, u, v] * x[n, g*ci + k, i*s_h + u*d_h - p_top, j*s_w + v*d_w - p_left])
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import _dense, _epilogue, _geometry, _op
from .._dense import check_types, join, refuse_gradients, unsqueezed
from .._epilogue import Epilogue
from .._geometry import empty, join_batch, join_channels, output_size, padding4
from .._op import pair

ALGORITHMS = ("auto", "direct", "winograd2", "winograd3", "winograd4", "winograd6")


# --- shapes and checks (also the fake kernels) ------------------------------------------------------------------------
def _forward_fake(x, weight, bias, stride, padding, dilation, groups, *rest):
    *epilogue, algorithm, _ = rest
    op = "dilated_conv2d"
    y = _dense.forward_fake(op, x, weight, bias, stride, padding, dilation, groups, Epilogue(*epilogue))
    if algorithm not in ALGORITHMS:
        raise RuntimeError(f"{op}: algorithm must be one of {list(ALGORITHMS)}, got '{algorithm}'")
    if algorithm.startswith("winograd") and (tuple(weight.shape[2:]) != (3, 3) or tuple(stride) != (1, 1)):
        raise RuntimeError(
            f"{op}: {algorithm} is for 3x3 kernels of stride 1, got {list(weight.shape[2:])} and {list(stride)}"
        )
    return y


def _out_fake(x, weight, bias, stride, padding, dilation, groups, *rest):
    y = _forward_fake(x, weight, bias, stride, padding, dilation, groups, *rest[:-1])
    _dense.check_out("dilated_conv2d", y, rest[-1])


def _backward_input_fake(dy, weight, ih, iw, stride, padding, dilation, groups):
    op = "dilated_conv2d_backward_input"
    if dy.dim() != 4 or weight.dim() != 4:
        raise RuntimeError(
            f"{op}: dy must have shape [n, c, h, w] and weight [co, ci / groups, kh, kw], "
            f"got {list(dy.shape)} and {list(weight.shape)}"
        )
    _geometry.check(op, stride, padding, dilation)
    expected = (dy.shape[0], weight.shape[0], *output_size(op, (ih, iw), weight.shape[2:], stride, padding, dilation))
    dx = empty(dy, (dy.shape[0], weight.shape[1] * max(groups, 0), ih, iw))
    _dense.check(op, dx, weight, stride, padding, dilation, groups, "dx")
    if tuple(dy.shape) != expected:
        raise RuntimeError(f"{op}: dy must have shape {list(expected)}, got {list(dy.shape)}")
    return dx


def _backward_weight_fake(dy, x, kh, kw, stride, padding, dilation, groups):
    op = "dilated_conv2d_backward_weight"
    if dy.dim() != 4 or x.dim() != 4 or dy.shape[0] != x.shape[0]:
        raise RuntimeError(
            f"{op}: dy and x must have shape [n, c, h, w] with one n, got {list(dy.shape)} and {list(x.shape)}"
        )
    if groups < 1 or x.shape[1] % groups or dy.shape[1] % groups or min(x.shape[1], dy.shape[1]) < 1:
        raise RuntimeError(f"{op}: groups must divide x's {x.shape[1]} and dy's {dy.shape[1]} channels, got {groups}")
    dweight = torch.empty((dy.shape[1], x.shape[1] // groups, kh, kw), dtype=dy.dtype, device=dy.device)
    _dense.check(op, x, dweight, stride, padding, dilation, groups)
    expected = output_size(op, x.shape[2:], (kh, kw), stride, padding, dilation)
    if tuple(dy.shape[2:]) != expected:
        raise RuntimeError(f"{op}: dy must be {list(expected)} in its last dimensions, got {list(dy.shape[2:])}")
    return dweight, dweight.new_empty(dy.shape[1])


# --- reference --------------------------------------------------------------------------------------------------------
def _forward_reference(x, weight, bias, stride, padding, dilation, groups, *rest):
    y = _forward_fake(x, weight, bias, stride, padding, dilation, groups, *rest)
    return _dense.forward_reference(y, x, weight, bias, stride, padding, dilation, groups, Epilogue(*rest[:-2]))


def _out_reference(*args):
    _out_fake(*args)
    args[-1].copy_(_forward_reference(*args[:-1]))


def _backward_input_reference(dy, weight, ih, iw, stride, padding, dilation, groups):
    dx = _backward_input_fake(dy, weight, ih, iw, stride, padding, dilation, groups)
    return _dense.backward_input_reference(dx, dy, weight, stride, padding, dilation, groups)


def _backward_weight_reference(dy, x, kh, kw, stride, padding, dilation, groups):
    sums = _backward_weight_fake(dy, x, kh, kw, stride, padding, dilation, groups)
    return _dense.backward_weight_reference(sums, dy, x, stride, padding, dilation, groups)


# --- derivatives ------------------------------------------------------------------------------------------------------
_PLAIN = (*Epilogue(), "auto", None)  # a convolution and nothing else


def _forward_setup(ctx, inputs, output):
    x, weight, bias, *ctx.geometry = inputs[:7]
    e = Epilogue(*inputs[7:-2])
    ctx.activation, ctx.alpha, ctx.residual_first = e.activation, e.alpha, e.residual_first
    ctx.save_for_backward(x, weight, bias, _dense.kept(output, e), e.slope, e.scale, e.residual, e.gate)


def _forward_backward(ctx, dy):
    *saved, slope, scale, residual, gate = ctx.saved_tensors
    e = Epilogue(ctx.activation, ctx.alpha, slope, scale, residual, ctx.residual_first, gate)
    needs = ctx.needs_input_grad
    found = gradients(dy, saved, e, ctx.geometry, (*needs[:3], needs[9], needs[10], needs[11], needs[13]))
    dx, dweight, dbias, d_slope, d_scale, d_residual, d_gate = found
    nothing = (None,) * 6  # stride, padding, dilation, groups, activation, alpha
    return dx, dweight, dbias, *nothing, d_slope, d_scale, d_residual, None, d_gate, None, None


def gradients(dy, saved, e: Epilogue, geometry, needed) -> tuple[Any, ...]:
    """Those needed of (x, weight, bias, slope, scale, residual, gate); saved is (x, weight, bias, y if kept)."""
    x, weight, bias, y = saved
    need_x, need_weight, need_bias, *others = needed

    def convolved(bias, e):
        return forward(x, weight, bias, *geometry, *e, "auto", None)

    dz, ds, *found = _dense.dy_behind_epilogue(dy, y, bias, e, convolved, others)
    ds = ds.contiguous(memory_format=_op.memory_format_of(x))
    dx = backward_input(ds, weight, *x.shape[2:], *geometry) if need_x else None
    dweight = dbias = None
    if need_weight or (need_bias and e.scale is None):
        dweight, dbias = backward_weight(ds, x, *weight.shape[2:], *geometry)
    if need_bias and e.scale is not None:
        dbias = dz.sum((0, 2, 3))
    return dx, dweight if need_weight else None, dbias if need_bias else None, *found


def _backward_input_setup(ctx, inputs, output):
    dy, weight, _, _, *ctx.geometry = inputs
    ctx.save_for_backward(dy, weight)


def _backward_input_backward(ctx, g):
    dy, weight = ctx.saved_tensors
    d_dy = forward(g, weight, None, *ctx.geometry, *_PLAIN) if ctx.needs_input_grad[0] else None
    d_weight = backward_weight(dy, g, *weight.shape[2:], *ctx.geometry)[0] if ctx.needs_input_grad[1] else None
    return d_dy, d_weight, None, None, None, None, None, None


def _backward_weight_setup(ctx, inputs, output):
    dy, x, _, _, *ctx.geometry = inputs
    ctx.save_for_backward(dy, x)


def _backward_weight_backward(ctx, g_weight, g_bias):
    dy, x = ctx.saved_tensors
    d_dy = forward(x, g_weight, g_bias, *ctx.geometry, *_PLAIN) if ctx.needs_input_grad[0] else None
    d_x = backward_input(dy, g_weight, *x.shape[2:], *ctx.geometry) if ctx.needs_input_grad[1] else None
    return d_dy, d_x, None, None, None, None, None, None


# --- vmap: the batch joins n where the weight is shared, and the groups where each has its own ------------------------
def _forward_vmap(info, in_dims, x, weight, bias, stride, padding, dilation, groups, *rest):
    *epilogue, algorithm, _ = rest
    batch, dim, e = info.batch_size, Epilogue(*in_dims[7:-2]), Epilogue(*epilogue)
    (x, weight, bias), e, times, axis = join(batch, in_dims[:3], (x, weight, bias), dim, e)
    y = forward(x, weight, bias, stride, padding, dilation, groups * times, *e, algorithm, None)
    return y.unflatten(axis, (info.batch_size, -1)), axis


def _backward_input_vmap(info, in_dims, dy, weight, ih, iw, stride, padding, dilation, groups):
    b, geometry = info.batch_size, (stride, padding, dilation)
    if in_dims[1] is None:
        dx = backward_input(join_batch(dy, in_dims[0], b), weight, ih, iw, *geometry, groups)
        return dx.unflatten(0, (b, -1)), 0
    dy, weight = join_channels(dy, in_dims[0], b), join_batch(weight, in_dims[1], b)
    return backward_input(dy, weight, ih, iw, *geometry, groups * b).unflatten(1, (b, -1)), 1


def _backward_weight_vmap(info, in_dims, dy, x, kh, kw, stride, padding, dilation, groups):
    b, geometry = info.batch_size, (stride, padding, dilation)
    dy, x = join_channels(dy, in_dims[0], b), join_channels(x, in_dims[1], b)
    dw, db = backward_weight(dy, x, kh, kw, *geometry, groups * b)
    return (dw.unflatten(0, (b, -1)), db.unflatten(0, (b, -1))), (0, 0)


# --- FLOPs: two for each multiply-add, those on padding too, as torch counts convolutions -----------------------------
def _backward_input_flops(dy, weight, *_, out_shape):
    return 2 * prod(dy) * prod(weight[1:])


def _backward_weight_flops(dy, x, kh, kw, stride, padding, dilation, groups, *, out_shape):
    return 2 * prod(dy) * x[1] // groups * kh * kw


# --- registration -----------------------------------------------------------------------------------------------------
_ARGUMENTS = (
    f"Tensor x, Tensor weight, Tensor? bias, {_geometry.SCHEMA}, SymInt groups, {_epilogue.SCHEMA}, "
    "str algorithm, Tensor? packed"
)
forward = _op.register(
    f"dilated_conv2d({_ARGUMENTS}) -> Tensor",
    reference=_forward_reference,
    fake=_forward_fake,
    setup_context=_forward_setup,
    backward=_forward_backward,
    vmap=_forward_vmap,
    flops=_dense.forward_flops,
    autocast=True,
)
backward_input = _op.register(
    f"dilated_conv2d_backward_input(Tensor dy, Tensor weight, SymInt ih, SymInt iw, {_geometry.SCHEMA}, SymInt groups) "
    "-> Tensor",
    reference=_backward_input_reference,
    fake=_backward_input_fake,
    setup_context=_backward_input_setup,
    backward=_backward_input_backward,
    vmap=_backward_input_vmap,
    flops=_backward_input_flops,
)
backward_weight = _op.register(
    f"dilated_conv2d_backward_weight(Tensor dy, Tensor x, SymInt kh, SymInt kw, {_geometry.SCHEMA}, SymInt groups) "
    "-> (Tensor dweight, Tensor dbias)",
    reference=_backward_weight_reference,
    fake=_backward_weight_fake,
    setup_context=_backward_weight_setup,
    backward=_backward_weight_backward,
    vmap=_backward_weight_vmap,
    flops=_backward_weight_flops,
)
forward_out = _op.register_out(
    f"dilated_conv2d_out({_ARGUMENTS}, Tensor(a!) out) -> ()",
    reference=_out_reference,
    fake=_out_fake,
    flops=_dense.out_flops,
)
pack = _op.register_pack(
    f"dilated_conv2d_pack(Tensor x, Tensor weight, {_geometry.SCHEMA}, SymInt groups, str algorithm) -> Tensor"
)


# --- public functions -------------------------------------------------------------------------------------------------
def dilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[int, int, int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "none",
    *,
    activation_parameter: float | Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_first: bool = False,
    gate: Tensor | None = None,
    algorithm: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Convolution over all channels of a group, then scale, bias, activation, residual and gate, in one pass.

    y = (act(conv(x) * scale + bias) + residual) * gate, or act(conv(x) * scale + bias + residual) * gate.

    Args:
        x: ``[n, c, h, w]`` or ``[c, h, w]``; float32, float64, bfloat16 or float16 (16-bit sums are carried in
            float32). Any strides; channels_last in gives channels_last out.
        weight: ``[co, c / groups, kh, kw]``; bias: ``[co]`` or None.
        stride, dilation: positive int, or (height, width).
        padding: zeros around the image, in pixels: int, (height, width), (top, bottom, left, right), ``"same"``
            (TensorFlow's: ceil(size / stride) outputs, the odd pixel at bottom and right) or ``"valid"`` (none).
        groups: divides c and co.
        activation: a name of ``pytorch_ext.ACTIVATIONS``; activation_parameter: leaky_relu's slope (0.01), elu's alpha
            (1.0), or prelu's slopes, ``[co]`` or ``[1]``.
        scale: ``[co]``, what the sums are multiplied by (a folded batch normalisation).
        residual: y's shape, added behind the activation, or before it with residual_first.
        gate: ``[n, co]``, what each channel is multiplied by at last.
        algorithm: ``"auto"``; ``"direct"``, an implicit matrix product; or, for 3x3 kernels of stride 1,
            ``"winograd2"``, ``"winograd3"``, ``"winograd4"``, ``"winograd6"``: tiles of that many outputs squared, on
            the sub-grids of a dilated one. Fewer multiplications, larger rounding errors (docs/measured.md). A
            machine that has no Winograd for a dtype or device computes directly. It says how y is made; gradients
            are made by what is fastest, Winograd too.
        out: where y is written, e.g. a channel slice of a larger tensor; no gradients then.

    Returns:
        ``[n, co, oh, ow]`` with ``oh = (h + top + bottom - d_h * (kh - 1) - 1) // s_h + 1``, likewise ``ow``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: stride, padding, dilation, activation or algorithm out of range.
        RuntimeError: tensors whose shapes, dtypes or devices do not fit together, or an empty output.

    Source: Yu & Koltun, "Multi-scale context aggregation by dilated convolutions", 2016 (arXiv 1511.07122), eq. 2;
        Winograd tiles: Lavin & Gray, "Fast algorithms for convolutional neural networks", 2016 (arXiv 1509.09308).
    """
    check_types(x=x, weight=weight, bias=bias, scale=scale, residual=residual, gate=gate, out=out)
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    activation, alpha, slope = _epilogue.parse(activation, activation_parameter)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    dim = x.dim()
    if dim == 3:
        x, residual, gate, out = unsqueezed(x, residual, gate, out)
    elif dim != 4:
        raise ValueError(f"x must have shape [n, c, h, w] or [c, h, w], got {list(x.shape)}")
    sides = padding4(padding, x, weight, stride, dilation)
    geometry = (stride, sides, dilation, _op.whole(groups))
    e = Epilogue(activation, alpha, slope, scale, residual, bool(residual_first), gate)
    tensors = (x, weight, bias, slope, scale, residual, gate)
    if out is None:
        fused, rest = _dense.parted(e, 1, *tensors)
        y = _dense.behind("dilated_conv2d", forward(x, weight, bias, *geometry, *fused, algorithm, None), rest)
    else:
        refuse_gradients(*tensors, out)
        forward_out(x, weight, bias, *geometry, *e, algorithm, None, out)
        y = out
    return y.squeeze(0) if dim == 3 else y


def dilated_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int = 1,
    groups: int = 1,
    activation: str = "none",
    **epilogue,
) -> Tensor:
    """1-D convolution: :func:`dilated_conv2d` on one row.

    Args:
        x: ``[n, c, length]`` or ``[c, length]``.
        weight: ``[co, c / groups, k]``; bias: ``[co]`` or None.
        stride, dilation: positive ints. padding: int, (left, right), ``"same"`` or ``"valid"``.
        groups, activation, and by keyword activation_parameter, scale, residual (y's shape), residual_first, gate: as
            in :func:`dilated_conv2d`.

    Returns:
        ``[n, co, (length + left + right - dilation * (k - 1) - 1) // stride + 1]``.

    Raises: as :func:`dilated_conv2d`.
    """
    x, weight, stride2, padding2, dilation2 = _geometry.on_one_row(
        x, weight, stride, padding, dilation, "[co, ci / groups, k]"
    )
    if isinstance(residual := epilogue.get("residual"), Tensor):
        epilogue["residual"] = residual.unsqueeze(-2)
    if epilogue.get("out") is not None:
        raise TypeError("dilated_conv1d takes no out")
    y = dilated_conv2d(x, weight, bias, stride2, padding2, dilation2, groups, activation, **epilogue)
    return y.squeeze(-2)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Transposed convolution, the gradient of a convolution by its input: every output gathers, nothing is scattered.

    Any derivatives; the same bits every time.

    Args:
        x: ``[n, c, h, w]`` or ``[c, h, w]``; float32, float64, bfloat16 or float16 (16-bit sums are carried in
            float32). Any strides; channels_last in gives channels_last out.
        weight: ``[c, co / groups, kh, kw]``; bias: ``[co]`` or None.
        stride, dilation: positive int, or (height, width). padding: int, or (height, width): what the convolution pads.
        output_padding: rows and columns more, at bottom and right; less than the stride.
        groups: divides c.

    Returns:
        ``[n, co, oh, ow]`` with ``oh = (h - 1) * s_h - 2 * p_h + d_h * (kh - 1) + output_padding_h + 1``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: stride, padding, output_padding or dilation out of range.
        RuntimeError: tensors whose shapes, dtypes or devices do not fit together, or an empty output.

    Source: Zeiler et al., "Deconvolutional networks", CVPR 2010; Long et al., 2015 (arXiv 1411.4038), section 3.3.
    """
    check_types(x=x, weight=weight, bias=bias)
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    more = tuple(p - 1 for p in pair(_one_more(output_padding), "output_padding"))
    if x.dim() not in (3, 4) or weight.dim() != 4:
        raise ValueError(
            f"x must be [n, c, h, w] or [c, h, w] and weight 4-D, got {list(x.shape)}, {list(weight.shape)}"
        )
    if more[0] >= stride[0] or more[1] >= stride[1]:
        raise ValueError(f"output_padding must be less than the stride, got {output_padding!r} and {stride}")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    top, bottom, left, right = sides = padding4(padding, x, weight, stride, dilation)
    size = (
        (n - 1) * s - before - after + d * (k - 1) + extra + 1
        for n, s, before, after, d, k, extra in zip(
            x.shape[-2:], stride, (top, left), (bottom, right), dilation, weight.shape[-2:], more, strict=True
        )
    )
    images = x if x.dim() == 4 else x.unsqueeze(0)
    y = backward_input(images, weight, *size, stride, sides, dilation, _op.whole(groups))
    if bias is not None:
        if bias.shape != y.shape[1:2]:
            raise RuntimeError(f"conv_transpose2d: bias must have shape [{y.shape[1]}], got {list(bias.shape)}")
        y = y + bias.view(-1, 1, 1)
    return y if x.dim() == 4 else y.squeeze(0)


def _one_more(value):
    """What may be 0, as what must be positive."""
    return tuple(v + 1 for v in value) if isinstance(value, (tuple, list)) else value + 1
