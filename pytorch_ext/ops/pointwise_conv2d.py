"""1x1 convolution, with what networks put before and behind it, in one pass.

y = shuffle(epilogue(sum_k w[o, k] * x'[n, g*ci + k, i*s_h, j*s_w])), x' = act(x) * input_gate
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _dense, _epilogue, _op
from .._dense import check_types, join, refuse_gradients, unsqueezed
from .._epilogue import Epilogue, channelwise
from .._geometry import join_batch, join_channels, plain
from .._op import pair
from . import dilated_conv2d as dense

OP = "pointwise_conv2d"
NO_PADDING, NO_DILATION = (0, 0, 0, 0), (1, 1)


# --- shapes and checks (also the fake kernels) ------------------------------------------------------------------------
def _forward_fake(x, weight, bias, stride, groups, *rest):
    *epilogue, input_activation, input_gate, shuffle, _ = rest
    y = _dense.forward_fake(OP, x, weight, bias, stride, NO_PADDING, NO_DILATION, groups, Epilogue(*epilogue))
    if tuple(weight.shape[2:]) != (1, 1):
        raise RuntimeError(f"{OP}: weight must have shape [co, ci / groups, 1, 1], got {list(weight.shape)}")
    if input_activation not in _epilogue.PLAIN:
        raise RuntimeError(f"{OP}: input_activation must be one of {list(_epilogue.PLAIN)}, got '{input_activation}'")
    if input_gate is not None:
        if tuple(input_gate.shape) != tuple(x.shape[:2]):
            raise RuntimeError(f"{OP}: input_gate must have shape {list(x.shape[:2])}, got {list(input_gate.shape)}")
        if input_gate.dtype != x.dtype or input_gate.device != x.device:
            raise RuntimeError(
                f"{OP}: input_gate must be {x.dtype} on {x.device}, got {input_gate.dtype} on {input_gate.device}"
            )
    if shuffle < 1 or y.shape[1] % shuffle:
        raise RuntimeError(f"{OP}: shuffle must divide the {y.shape[1]} output channels, got {shuffle}")
    return y


def _out_fake(x, weight, bias, stride, groups, *rest):
    _dense.check_out(OP, _forward_fake(x, weight, bias, stride, groups, *rest[:-1]), rest[-1])


# --- reference --------------------------------------------------------------------------------------------------------
def _enter(x: Tensor, activation: str, gate: Tensor | None) -> Tensor:
    """What the convolution sees of x."""
    x = _epilogue.ACTIVATIONS[activation](x, 0.0, None)
    return x if gate is None else x * channelwise(gate, x)


def _shuffle(y: Tensor, groups: int, dim: int = 1) -> Tensor:
    return y if groups == 1 else y.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _forward_reference(x, weight, bias, stride, groups, *rest):
    y = _forward_fake(x, weight, bias, stride, groups, *rest)
    *epilogue, input_activation, input_gate, shuffle, _ = rest
    if input_activation != "none" or input_gate is not None:
        x = _enter(plain(x), input_activation, None if input_gate is None else plain(input_gate))
    geometry = (stride, NO_PADDING, NO_DILATION, groups)
    if shuffle == 1:
        return _dense.forward_reference(y, x, weight, bias, *geometry, Epilogue(*epilogue))
    ordered = _dense.forward_reference(torch.empty_like(y), x, weight, bias, *geometry, Epilogue(*epilogue))
    return y.copy_(_shuffle(ordered, shuffle))


def _out_reference(*args):
    _out_fake(*args)
    args[-1].copy_(_forward_reference(*args[:-1]))


# --- derivatives: dilated_conv2d has the convolution's ----------------------------------------------------------------
def _forward_setup(ctx, inputs, output):
    x, weight, bias, ctx.stride, ctx.groups, *rest = inputs
    *epilogue, ctx.input_activation, input_gate, ctx.shuffle, _ = rest
    e = Epilogue(*epilogue)
    ctx.activation, ctx.alpha, ctx.residual_first = e.activation, e.alpha, e.residual_first
    ctx.save_for_backward(x, weight, bias, _dense.kept(output, e), e.slope, e.scale, e.residual, e.gate, input_gate)


def _forward_backward(ctx, dy):
    x, weight, bias, y, slope, scale, residual, gate, input_gate = ctx.saved_tensors
    e = Epilogue(ctx.activation, ctx.alpha, slope, scale, residual, ctx.residual_first, gate)
    needs = ctx.needs_input_grad
    need_x, need_input_gate = needs[0], needs[13]
    if ctx.shuffle > 1:  # undone by a shuffle into as many groups as one had channels
        inverse = dy.shape[1] // ctx.shuffle
        dy, y = _shuffle(dy, inverse), None if y is None else _shuffle(y, inverse)
    entered = ctx.input_activation != "none" or input_gate is not None
    seen = _enter(x, ctx.input_activation, input_gate) if entered else x
    dx, dweight, dbias, d_slope, d_scale, d_residual, d_gate = dense.gradients(
        dy,
        (seen, weight, bias, y),
        e,
        (ctx.stride, NO_PADDING, NO_DILATION, ctx.groups),
        (need_x or need_input_gate, *needs[1:3], needs[7], needs[8], needs[9], needs[11]),
    )
    d_input_gate = None
    if need_input_gate:
        d_input_gate = (dx * _epilogue.ACTIVATIONS[ctx.input_activation](x, 0.0, None)).sum((2, 3))
    if need_x and entered:
        dx = dx if input_gate is None else dx * channelwise(input_gate, dx)
        dx = _epilogue.derivative(ctx.input_activation, 0.0, None, dx, x)
    epilogue = None, None, d_slope, d_scale, d_residual, None, d_gate
    return dx if need_x else None, dweight, dbias, None, None, *epilogue, None, d_input_gate, None, None


# --- vmap: as dilated_conv2d's, but the shuffle comes behind it -------------------------------------------------------
def _forward_vmap(info, in_dims, x, weight, bias, stride, groups, *rest):
    *epilogue, input_activation, input_gate, shuffle, _ = rest
    batch, dim, e = info.batch_size, Epilogue(*in_dims[5:-4]), Epilogue(*epilogue)
    (x, weight, bias), e, times, axis = join(batch, in_dims[:3], (x, weight, bias), dim, e)
    input_gate = (join_channels if axis else join_batch)(input_gate, in_dims[-3], batch)
    y = forward(x, weight, bias, stride, groups * times, *e, input_activation, input_gate, 1 if axis else shuffle, None)
    y = y.unflatten(axis, (batch, -1))
    return _shuffle(y, shuffle, 2) if axis else y, axis


# --- registration -----------------------------------------------------------------------------------------------------
_ARGUMENTS = (
    f"Tensor x, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt groups, {_epilogue.SCHEMA}, "
    "str input_activation, Tensor? input_gate, SymInt shuffle, Tensor? packed"
)
forward = _op.register(
    f"pointwise_conv2d({_ARGUMENTS}) -> Tensor",
    reference=_forward_reference,
    fake=_forward_fake,
    setup_context=_forward_setup,
    backward=_forward_backward,
    vmap=_forward_vmap,
    flops=_dense.forward_flops,
    autocast=True,
)
forward_out = _op.register_out(
    f"pointwise_conv2d_out({_ARGUMENTS}, Tensor(a!) out) -> ()",
    reference=_out_reference,
    fake=_out_fake,
    flops=_dense.out_flops,
)
pack = _op.register_pack("pointwise_conv2d_pack(Tensor x, Tensor weight, SymInt[2] stride, SymInt groups) -> Tensor")


# --- public function --------------------------------------------------------------------------------------------------
def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "none",
    *,
    activation_parameter: float | Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_first: bool = False,
    gate: Tensor | None = None,
    input_activation: str = "none",
    input_gate: Tensor | None = None,
    shuffle: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """1x1 convolution, then scale, bias, activation, residual, gate and a channel shuffle, in one pass.

    y = (act(conv(x') * scale + bias) + residual) * gate, or act(conv(x') * scale + bias + residual) * gate, with
    x' = input_activation(x) * input_gate.

    Args:
        x: ``[n, c, h, w]`` or ``[c, h, w]``; float32, float64, bfloat16 or float16 (16-bit sums are carried in
            float32). Any strides; channels_last in gives channels_last out.
        weight: ``[co, c / groups, 1, 1]`` or ``[co, c / groups]``; bias: ``[co]`` or None.
        stride: positive int, or (height, width).
        groups: divides c and co.
        activation: a name of ``pytorch_ext.ACTIVATIONS``; activation_parameter: leaky_relu's slope (0.01), elu's alpha
            (1.0), or prelu's slopes, ``[co]`` or ``[1]``.
        scale: ``[co]``, what the sums are multiplied by (a folded batch normalisation).
        residual: y's shape (in the order before the shuffle), added behind the activation, or before it with
            residual_first.
        gate: ``[n, co]``, what each channel is multiplied by.
        input_activation: any without a parameter; input_gate: ``[n, c]``, squeeze-excite's scale of the input.
        shuffle: y's channels are at last shuffled as by ``torch.nn.ChannelShuffle(shuffle)``.
        out: where y is written, e.g. a channel slice of a larger tensor; no gradients then.

    Returns:
        ``[n, co, ceil(h / s_h), ceil(w / s_w)]``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: stride or an activation out of range, or x or weight with a wrong number of dimensions.
        RuntimeError: tensors whose shapes, dtypes or devices do not fit together.

    Source: Lin, Chen & Yan, "Network in network", 2014 (arXiv 1312.4400); groups and shuffle: Zhang et al.,
        "ShuffleNet", 2018 (arXiv 1707.01083); input_gate: Hu et al., "Squeeze-and-excitation networks", 2018 (arXiv
        1709.01507), eq. 4.
    """
    check_types(
        x=x, weight=weight, bias=bias, scale=scale, residual=residual, gate=gate, input_gate=input_gate, out=out
    )
    stride = pair(stride, "stride")
    activation, alpha, slope = _epilogue.parse(activation, activation_parameter)
    _epilogue.parse(input_activation, None, _epilogue.PLAIN, "input_activation")
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    elif weight.dim() != 4:
        raise ValueError(
            f"weight must have shape [co, ci / groups, 1, 1] or [co, ci / groups], got {list(weight.shape)}"
        )
    dim = x.dim()
    if dim == 3:
        x, residual, gate, input_gate, out = unsqueezed(x, residual, gate, input_gate, out)
    elif dim != 4:
        raise ValueError(f"x must have shape [n, c, h, w] or [c, h, w], got {list(x.shape)}")
    e = Epilogue(activation, alpha, slope, scale, residual, bool(residual_first), gate)
    tensors = (x, weight, bias, slope, scale, residual, gate, input_gate)
    shuffle = _op.whole(shuffle)
    layer, back = (x, weight, bias, stride, _op.whole(groups)), (input_activation, input_gate, shuffle, None)
    if out is None:
        fused, rest = _dense.parted(e, shuffle, *tensors)
        y = _dense.behind(OP, forward(*layer, *fused, *back), rest)
    else:
        refuse_gradients(*tensors, out)
        forward_out(*layer, *e, *back, out)
        y = out
    return y.squeeze(0) if dim == 3 else y
