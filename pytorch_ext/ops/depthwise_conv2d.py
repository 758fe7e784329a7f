"""Depthwise 2-D convolution, and what networks put behind it: the mathematics, schemas, derivatives, public functions.

y[n, c, i, j] = epilogue(b[c] + sum_{u, v} w[c, 0, u, v] * x[n, c // m, i*s_h + u*d_h - p_top, j*s_w + v*d_w - p_left])
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .. import _dense, _epilogue, _geometry, _op
from .._dense import check_types, join, unsqueezed
from .._epilogue import Epilogue
from .._geometry import empty, join_batch, join_channels, output_size, padding4
from .._op import memory_format_of, pair

ACTIVATIONS = _epilogue.PLAIN  # what depthwise_conv2d does itself; all else is depthwise_conv2d_fused's


# --- shapes and checks (also the fake kernels) ------------------------------------------------------------------------
def _check(op: str, x: Tensor, weight: Tensor, stride, padding, dilation) -> None:
    """What every one of the kernels asks of its arguments; csrc/depthwise_conv2d.cpp asks the same."""
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise RuntimeError(f"{op}: weight must have shape [c, 1, kh, kw], got {list(weight.shape)}")
    _geometry.check_tensors(op, x, weight)
    _geometry.check(op, stride, padding, dilation)


def _sizes(op: str, x, weight, stride, padding, dilation) -> tuple:
    """Of y."""
    if x.dim() != 4:
        raise RuntimeError(f"{op}: x must have shape [n, c, h, w], got {list(x.shape)}")
    _check(op, x, weight, stride, padding, dilation)
    n, c, ih, iw = x.shape
    out_channels = weight.shape[0]
    if c == 0 or out_channels == 0 or out_channels % c:
        raise RuntimeError(
            f"{op}: weight must have a positive multiple of x's {c} channels in dimension 0, got {out_channels}"
        )
    oh, ow = output_size(op, (ih, iw), weight.shape[2:], stride, padding, dilation)
    return n, out_channels, oh, ow


def _forward_fake(x, weight, bias, stride, padding, dilation, activation):
    op = "depthwise_conv2d"
    y = empty(x, _sizes(op, x, weight, stride, padding, dilation))
    _epilogue.check(op, Epilogue(), bias, x, y.shape)
    if activation not in ACTIVATIONS:
        raise RuntimeError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got '{activation}'")
    return y


def _fused_fake(x, weight, bias, stride, padding, dilation, *epilogue):
    op = "depthwise_conv2d_fused"
    y = empty(x, _sizes(op, x, weight, stride, padding, dilation))
    _epilogue.check(op, Epilogue(*epilogue), bias, x, y.shape)
    return y


def _backward_input_fake(dy, weight, ih, iw, channels, stride, padding, dilation):
    op = "depthwise_conv2d_backward_input"
    if dy.dim() != 4:
        raise RuntimeError(f"{op}: dy must have shape [n, c, h, w], got {list(dy.shape)}")
    _check(op, dy, weight, stride, padding, dilation)
    if channels < 1 or dy.shape[1] != weight.shape[0] or weight.shape[0] % channels:
        raise RuntimeError(
            f"{op}: dy and weight must have the same positive multiple of {channels} channels, "
            f"got {dy.shape[1]} and {weight.shape[0]}"
        )
    expected = output_size(op, (ih, iw), weight.shape[2:], stride, padding, dilation)
    if tuple(dy.shape[2:]) != expected:
        raise RuntimeError(f"{op}: dy must be {list(expected)} in its last dimensions, got {list(dy.shape[2:])}")
    return empty(dy, (dy.shape[0], channels, ih, iw))


def _backward_weight_fake(dy, x, kh, kw, stride, padding, dilation):
    op = "depthwise_conv2d_backward_weight"
    if dy.dim() != 4 or x.dim() != 4 or dy.shape[0] != x.shape[0]:
        raise RuntimeError(
            f"{op}: dy and x must have shape [n, c, h, w] with one n, got {list(dy.shape)} and {list(x.shape)}"
        )
    if x.shape[1] == 0 or dy.shape[1] == 0 or dy.shape[1] % x.shape[1]:
        raise RuntimeError(f"{op}: dy must have a positive multiple of x's {x.shape[1]} channels, got {dy.shape[1]}")
    dweight = torch.empty((dy.shape[1], 1, kh, kw), dtype=dy.dtype, device=dy.device)
    _check(op, x, dweight, stride, padding, dilation)
    expected = output_size(op, x.shape[2:], (kh, kw), stride, padding, dilation)
    if tuple(dy.shape[2:]) != expected:
        raise RuntimeError(f"{op}: dy must be {list(expected)} in its last dimensions, got {list(dy.shape[2:])}")
    return dweight, dweight.new_empty(dy.shape[1])


def both(backward_input, backward_weight):
    """The op of all gradients from the two ops of one each: of fakes, references, Triton's."""

    def backward(dy, x, weight, stride, padding, dilation):
        if x.dim() != 4:
            raise RuntimeError(f"depthwise_conv2d_backward: x must have shape [n, c, h, w], got {list(x.shape)}")
        _, c, ih, iw = x.shape
        dx = backward_input(dy, weight, ih, iw, c, stride, padding, dilation)
        return dx, *backward_weight(dy, x, *weight.shape[2:], stride, padding, dilation)

    return backward


# --- reference --------------------------------------------------------------------------------------------------------
def _forward_reference(x, weight, bias, stride, padding, dilation, activation):
    y = _forward_fake(x, weight, bias, stride, padding, dilation, activation)
    return _dense.forward_reference(
        y, x, weight, bias, stride, padding, dilation, x.shape[1], Epilogue(activation=activation)
    )


def _fused_reference(x, weight, bias, stride, padding, dilation, *epilogue):
    y = _fused_fake(x, weight, bias, stride, padding, dilation, *epilogue)
    return _dense.forward_reference(y, x, weight, bias, stride, padding, dilation, x.shape[1], Epilogue(*epilogue))


def _backward_input_reference(dy, weight, ih, iw, channels, stride, padding, dilation):
    dx = _backward_input_fake(dy, weight, ih, iw, channels, stride, padding, dilation)
    return _dense.backward_input_reference(dx, dy, weight, stride, padding, dilation, channels)


def _backward_weight_reference(dy, x, kh, kw, stride, padding, dilation):
    sums = _backward_weight_fake(dy, x, kh, kw, stride, padding, dilation)
    return _dense.backward_weight_reference(sums, dy, x, stride, padding, dilation, x.shape[1])


# --- derivatives ------------------------------------------------------------------------------------------------------
def _activation_backward(activation: str, dy: Tensor, saved: Tensor) -> Tensor:
    """dz from dy; saved is y for the activations whose derivative shows in y, and z for the others."""
    if activation in _epilogue.FROM_OUTPUT:
        return _epilogue.derivative_from_output(activation, dy, saved)
    if activation == "silu" and not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(dy, saved)
    return _epilogue.derivative(activation, 0.0, None, dy, saved)


def _forward_setup(ctx, inputs, output):
    x, weight, bias, *ctx.geometry, ctx.activation = inputs
    ctx.save_for_backward(x, weight, bias, output if ctx.activation in _epilogue.FROM_OUTPUT else None)


def _forward_backward(ctx, dy):
    x, weight, bias, y = ctx.saved_tensors
    if ctx.activation != "none":
        saved = forward(x, weight, bias, *ctx.geometry, "none") if y is None else y
        dy = _activation_backward(ctx.activation, dy, saved)
    dy = dy.contiguous(memory_format=memory_format_of(x))
    dx, dweight, dbias = _gradients(dy, x, weight, ctx.geometry, ctx.needs_input_grad)
    return dx, dweight, dbias if bias is not None else None, None, None, None, None


def _gradients(dz, x, weight, geometry, needs) -> tuple:
    """Of x, weight and bias, as far as one of the last two is needed."""
    if needs[0] and (needs[1] or needs[2]):
        return backward(dz, x, weight, *geometry)
    if needs[0]:
        return backward_input(dz, weight, *x.shape[2:], x.shape[1], *geometry), None, None
    if needs[1] or needs[2]:
        return None, *backward_weight(dz, x, *weight.shape[2:], *geometry)
    return None, None, None


def _fused_setup(ctx, inputs, output):
    x, weight, bias, *ctx.geometry = inputs[:6]
    e = Epilogue(*inputs[6:])
    ctx.activation, ctx.alpha, ctx.residual_first = e.activation, e.alpha, e.residual_first
    ctx.save_for_backward(x, weight, bias, _dense.kept(output, e), e.slope, e.scale, e.residual, e.gate)


def _fused_backward(ctx, dy):
    x, weight, bias, y, slope, scale, residual, gate = ctx.saved_tensors
    e = Epilogue(ctx.activation, ctx.alpha, slope, scale, residual, ctx.residual_first, gate)
    needs = ctx.needs_input_grad

    def convolved(bias, e):
        return fused(x, weight, bias, *ctx.geometry, *e)

    found = _dense.dy_behind_epilogue(dy, y, bias, e, convolved, (needs[8], needs[9], needs[10], needs[12]))
    dz, ds, d_slope, d_scale, d_residual, d_gate = found
    ds = ds.contiguous(memory_format=memory_format_of(x))
    dx, dweight, dbias = _gradients(ds, x, weight, ctx.geometry, needs)
    if needs[2] and e.scale is not None:
        dbias = dz.sum((0, 2, 3))
    dbias = dbias if needs[2] else None
    return dx, dweight if needs[1] else None, dbias, *(None,) * 5, d_slope, d_scale, d_residual, None, d_gate


def _backward_input_setup(ctx, inputs, output):
    dy, weight, _, _, _, *ctx.geometry = inputs
    ctx.save_for_backward(dy, weight)


def _backward_input_backward(ctx, g):
    dy, weight = ctx.saved_tensors
    d_dy = forward(g, weight, None, *ctx.geometry, "none") if ctx.needs_input_grad[0] else None
    d_weight = backward_weight(dy, g, *weight.shape[2:], *ctx.geometry)[0] if ctx.needs_input_grad[1] else None
    return d_dy, d_weight, None, None, None, None, None, None


def _backward_weight_setup(ctx, inputs, output):
    dy, x, _, _, *ctx.geometry = inputs
    ctx.save_for_backward(dy, x)


def _backward_weight_backward(ctx, g_weight, g_bias):
    dy, x = ctx.saved_tensors
    d_dy = forward(x, g_weight, g_bias, *ctx.geometry, "none") if ctx.needs_input_grad[0] else None
    d_x = backward_input(dy, g_weight, *x.shape[2:], x.shape[1], *ctx.geometry) if ctx.needs_input_grad[1] else None
    return d_dy, d_x, None, None, None, None, None


def _backward_setup(ctx, inputs, output):
    dy, x, weight, *ctx.geometry = inputs
    ctx.save_for_backward(dy, x, weight)


def _backward_backward(ctx, g, g_weight, g_bias):
    dy, x, weight = ctx.saved_tensors
    d_dy = d_x = d_weight = None
    if ctx.needs_input_grad[0]:
        d_dy = forward(g, weight, None, *ctx.geometry, "none") + forward(x, g_weight, g_bias, *ctx.geometry, "none")
    if ctx.needs_input_grad[1]:
        d_x = backward_input(dy, g_weight, *x.shape[2:], x.shape[1], *ctx.geometry)
    if ctx.needs_input_grad[2]:
        d_weight = backward_weight(dy, g, *weight.shape[2:], *ctx.geometry)[0]
    return d_dy, d_x, d_weight, None, None, None


# --- vmap: the batch joins n where the weight is shared, and the channels where each has its own ----------------------
def _forward_vmap(info, in_dims, x, weight, bias, *rest):
    dx, dw, db, b = in_dims[0], in_dims[1], in_dims[2], info.batch_size
    if dw is None and db is None:
        y = forward(join_batch(x, dx, b), weight, bias, *rest)
        return y.unflatten(0, (b, -1)), 0
    bias = None if bias is None else join_batch(bias, db, b)
    y = forward(join_channels(x, dx, b), join_batch(weight, dw, b), bias, *rest)
    return y.unflatten(1, (b, -1)), 1


def _fused_vmap(info, in_dims, x, weight, bias, stride, padding, dilation, *epilogue):
    dims = Epilogue(*in_dims[6:])
    (x, weight, bias), e, _, axis = join(info.batch_size, in_dims[:3], (x, weight, bias), dims, Epilogue(*epilogue))
    y = fused(x, weight, bias, stride, padding, dilation, *e)
    return y.unflatten(axis, (info.batch_size, -1)), axis


def _backward_input_vmap(info, in_dims, dy, weight, ih, iw, channels, *rest):
    b = info.batch_size
    if in_dims[1] is None:
        dx = backward_input(join_batch(dy, in_dims[0], b), weight, ih, iw, channels, *rest)
        return dx.unflatten(0, (b, -1)), 0
    dy, weight = join_channels(dy, in_dims[0], b), join_batch(weight, in_dims[1], b)
    return backward_input(dy, weight, ih, iw, channels * b, *rest).unflatten(1, (b, -1)), 1


def _backward_weight_vmap(info, in_dims, dy, x, *rest):
    b = info.batch_size
    dw, db = backward_weight(join_channels(dy, in_dims[0], b), join_channels(x, in_dims[1], b), *rest)
    return (dw.unflatten(0, (b, -1)), db.unflatten(0, (b, -1))), (0, 0)


def _backward_vmap(info, in_dims, dy, x, weight, *rest):
    d_dy, d_x, d_weight = in_dims[:3]
    x_shape = x.shape if d_x is None else x.movedim(d_x, 0).shape[1:]
    w_shape = weight.shape if d_weight is None else weight.movedim(d_weight, 0).shape[1:]
    dx, dx_dim = _backward_input_vmap(info, (d_dy, d_weight), dy, weight, *x_shape[2:], x_shape[1], *rest)
    sums, sums_dims = _backward_weight_vmap(info, (d_dy, d_x), dy, x, *w_shape[2:], *rest)
    return (dx, *sums), (dx_dim, *sums_dims)


# --- FLOPs: two for each multiply-add, those on padding too, as torch counts convolutions -----------------------------
def _forward_flops(x, weight, *_, out_shape):
    return 2 * prod(out_shape) * prod(weight[2:])


def _backward_input_flops(dy, weight, *_, out_shape):
    return 2 * prod(dy) * prod(weight[2:])


def _backward_weight_flops(dy, x, kh, kw, *_, out_shape):
    return 2 * prod(dy) * kh * kw


def _backward_flops(dy, x, weight, *_, out_shape):
    return 4 * prod(dy) * prod(weight[2:])


# --- registration -----------------------------------------------------------------------------------------------------
forward = _op.register(
    f"depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, {_geometry.SCHEMA}, str activation) -> Tensor",
    reference=_forward_reference,
    fake=_forward_fake,
    setup_context=_forward_setup,
    backward=_forward_backward,
    vmap=_forward_vmap,
    flops=_forward_flops,
    autocast=True,
)
fused = _op.register(
    f"depthwise_conv2d_fused(Tensor x, Tensor weight, Tensor? bias, {_geometry.SCHEMA}, {_epilogue.SCHEMA}) -> Tensor",
    reference=_fused_reference,
    fake=_fused_fake,
    setup_context=_fused_setup,
    backward=_fused_backward,
    vmap=_fused_vmap,
    flops=_forward_flops,
    autocast=True,
)
backward_input = _op.register(
    "depthwise_conv2d_backward_input(Tensor dy, Tensor weight, SymInt ih, SymInt iw, SymInt channels, "
    f"{_geometry.SCHEMA}) -> Tensor",
    reference=_backward_input_reference,
    fake=_backward_input_fake,
    setup_context=_backward_input_setup,
    backward=_backward_input_backward,
    vmap=_backward_input_vmap,
    flops=_backward_input_flops,
)
backward_weight = _op.register(
    f"depthwise_conv2d_backward_weight(Tensor dy, Tensor x, SymInt kh, SymInt kw, {_geometry.SCHEMA}) "
    "-> (Tensor dweight, Tensor dbias)",
    reference=_backward_weight_reference,
    fake=_backward_weight_fake,
    setup_context=_backward_weight_setup,
    backward=_backward_weight_backward,
    vmap=_backward_weight_vmap,
    flops=_backward_weight_flops,
)

backward = _op.register(
    f"depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor weight, {_geometry.SCHEMA}) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=both(_backward_input_reference, _backward_weight_reference),
    fake=both(_backward_input_fake, _backward_weight_fake),
    setup_context=_backward_setup,
    backward=_backward_backward,
    vmap=_backward_vmap,
    flops=_backward_flops,
)


# --- public functions -------------------------------------------------------------------------------------------------
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[int, int, int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    *,
    activation_parameter: float | Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_first: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """Depthwise convolution: each channel with kernels of its own, then bias, activation and more, in one pass.

    y = (act(conv(x) * scale + bias) + residual) * gate, or act(conv(x) * scale + bias + residual) * gate.

    Args:
        x: ``[n, c, h, w]`` or ``[c, h, w]``; float32, float64, bfloat16 or float16 (16-bit sums are carried in
            float32). Any strides; channels_last in gives channels_last out.
        weight: ``[c * m, 1, kh, kw]``, output channel ``o`` reading input channel ``o // m``. Kernels of 1 to 31 are
            tuned, larger ones work. Stored as ``[kh, kw, c]`` (a permuted view) it is used without repacking.
        bias: ``[c * m]`` or None.
        stride: positive int, or (height, width).
        padding: zeros around the image, in pixels: int, (height, width), (top, bottom, left, right), ``"same"``
            (TensorFlow's: ceil(size / stride) outputs, the odd pixel at bottom and right) or ``"valid"`` (none).
        dilation: positive int, or (height, width).
        activation: a name of ``pytorch_ext.ACTIVATIONS``; differentiable. activation_parameter: leaky_relu's slope
            (0.01), elu's alpha (1.0), or prelu's slopes, ``[c * m]`` or ``[1]``.
        scale: ``[c * m]``, what the sums are multiplied by (a folded batch normalisation).
        residual: y's shape, added behind the activation, or before it with residual_first.
        gate: ``[n, c * m]``, what each channel is multiplied by at last.

    Returns:
        ``[n, c * m, oh, ow]`` with ``oh = (h + top + bottom - d_h * (kh - 1) - 1) // s_h + 1``, likewise ``ow``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: stride, padding, dilation or activation out of range.
        RuntimeError: tensors whose shapes, dtypes or devices do not fit together, or an empty output.

    Source: Chollet, "Xception", 2017 (arXiv 1610.02357); Howard et al., "MobileNets", 2017 (arXiv 1704.04861), eq. 3.
    """
    check_types(x, weight, bias=bias, scale=scale, residual=residual, gate=gate)
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    activation, alpha, slope = _epilogue.parse(activation, activation_parameter)
    dim = x.dim()
    if dim == 3:
        x, residual, gate = unsqueezed(x, residual, gate)
    elif dim != 4:
        raise ValueError(f"x must have shape [n, c, h, w] or [c, h, w], got {list(x.shape)}")
    geometry = stride, padding4(padding, x, weight, stride, dilation), dilation
    if scale is None and residual is None and gate is None and activation in ACTIVATIONS:
        y = forward(x, weight, bias, *geometry, activation)
    else:
        rest = activation, alpha, slope, scale, residual, bool(residual_first), gate
        y = fused(x, weight, bias, *geometry, *rest)
    return y.squeeze(0) if dim == 3 else y


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int = 1,
    activation: str = "none",
    **epilogue,
) -> Tensor:
    """Depthwise 1-D convolution: :func:`depthwise_conv2d` on one row.

    Args:
        x: ``[n, c, length]`` or ``[c, length]``.
        weight: ``[c * m, 1, k]``; bias: ``[c * m]`` or None.
        stride, dilation: positive ints. padding: int, (left, right), ``"same"`` or ``"valid"``.
        activation, and by keyword activation_parameter, scale, residual (y's shape), residual_first, gate: as in
            :func:`depthwise_conv2d`.

    Returns:
        ``[n, c * m, (length + left + right - dilation * (k - 1) - 1) // stride + 1]``.

    Raises: as :func:`depthwise_conv2d`.
    """
    x, weight, stride2, padding2, dilation2 = _geometry.on_one_row(x, weight, stride, padding, dilation, "[c, 1, k]")
    if isinstance(residual := epilogue.get("residual"), Tensor):
        epilogue["residual"] = residual.unsqueeze(-2)
    y = depthwise_conv2d(x, weight, bias, stride2, padding2, dilation2, activation, **epilogue)
    return y.squeeze(-2)
