"""What pointwise_conv2d and dilated_conv2d share: checks, reference, and the way back through the epilogue."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _epilogue, _geometry
from ._epilogue import Epilogue, channelwise
from ._geometry import empty, join_batch, join_channels, output_size, pad, plain
from .ops import activation


def check(op: str, x: Tensor, weight: Tensor, stride, padding, dilation, groups, name: str = "x") -> None:
    """What every kernel asks of its arguments; csrc/dense_boundary.h asks the same. x has weight's input channels."""
    if x.dim() != 4:
        raise RuntimeError(f"{op}: {name} must have shape [n, c, h, w], got {list(x.shape)}")
    if weight.dim() != 4:
        raise RuntimeError(f"{op}: weight must have shape [co, ci / groups, kh, kw], got {list(weight.shape)}")
    if groups < 1 or weight.shape[0] < 1 or weight.shape[0] % groups:
        raise RuntimeError(f"{op}: groups must divide weight's {weight.shape[0]} output channels, got {groups}")
    if weight.shape[1] < 1 or x.shape[1] != weight.shape[1] * groups:
        raise RuntimeError(
            f"{op}: {name} must have groups * weight.shape[1] = {groups * weight.shape[1]} channels, got {x.shape[1]}"
        )
    _geometry.check_tensors(op, x, weight)
    _geometry.check(op, stride, padding, dilation)


def forward_fake(op: str, x, weight, bias, stride, padding, dilation, groups, e: Epilogue) -> Tensor:
    check(op, x, weight, stride, padding, dilation, groups)
    size = output_size(op, x.shape[2:], weight.shape[2:], stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *size)
    _epilogue.check(op, e, bias, x, shape)
    return empty(x, shape)


def forward_reference(y: Tensor, x, weight, bias, stride, padding, dilation, groups, e: Epilogue) -> Tensor:
    """Into y, which forward_fake made."""
    if y.numel() == 0:
        return y
    wide = [None if t is None else plain(t) for t in (x, weight, bias, e.slope, e.scale, e.residual, e.gate)]
    x, weight, bias, slope, scale, residual, gate = wide
    sums = F.conv2d(pad(x, padding), weight, None, stride, 0, dilation, groups)
    e = e._replace(slope=slope, scale=scale, residual=residual, gate=gate)
    return y.copy_(_epilogue.apply(sums, bias, e))


def _backward(dy, xp, weight, stride, dilation, groups, mask):
    return torch.ops.aten.convolution_backward(
        dy, xp, weight, None, stride, [0, 0], dilation, False, [0, 0], groups, mask
    )


def backward_input_reference(dx: Tensor, dy, weight, stride, padding, dilation, groups) -> Tensor:
    """Into dx, which a fake made; depthwise_conv2d's too, as forward_reference is."""
    if dy.numel() == 0:
        return dx.zero_()
    top, bottom, left, right = padding
    dy, weight = plain(dy), plain(weight)
    n, c, ih, iw = dx.shape
    xp = dy.new_empty(()).expand(n, c, ih + top + bottom, iw + left + right)
    dxp = _backward(dy, xp, weight, stride, dilation, groups, [True, False, False])[0]
    return dx.copy_(pad(dxp, (-top, -bottom, -left, -right)))


def backward_weight_reference(sums: tuple[Tensor, Tensor], dy, x, stride, padding, dilation, groups):
    """Into sums = (dweight, dbias), which a fake made."""
    dweight, dbias = sums
    if dy.numel() == 0:
        return dweight.zero_(), dbias.zero_()
    dy, x = plain(dy), plain(x)
    dw = _backward(dy, pad(x, padding), plain(dweight), stride, dilation, groups, [False, True, False])[1]
    return dweight.copy_(dw), dbias.copy_(dy.sum((0, 2, 3)))


def check_out(op: str, y: Tensor, out: Tensor) -> None:
    """out is where y, which forward_fake made, shall be written."""
    if out.shape != y.shape or out.dtype != y.dtype or out.device != y.device:
        raise RuntimeError(
            f"{op}: out must be {list(y.shape)}, {y.dtype} on {y.device}, "
            f"got {list(out.shape)}, {out.dtype} on {out.device}"
        )
    for axis, (size, stride) in enumerate(zip(out.shape, out.stride())):
        if size > 1 and stride == 0:
            raise RuntimeError(f"{op}: out must not overlap itself, its stride along dimension {axis} is 0")


def forward_flops(x, weight, *_, out_shape):
    return 2 * prod(out_shape) * prod(weight[1:])


def out_flops(x, weight, *rest, out_shape):
    return 2 * prod(rest[-1]) * prod(weight[1:])


def dy_behind_epilogue(dy: Tensor, y: Tensor | None, bias, e: Epilogue, convolved, needs) -> tuple:
    """(gradient of the sums with scale and bias done, i.e. of z; of the sums; of slope, scale, residual, gate).

    y is what `kept` kept; else `convolved(bias, epilogue)` computes the convolution anew. `needs` says which of
    (slope, scale, residual, gate) are asked for.
    """
    need_slope, need_scale, need_residual, need_gate = needs
    d_slope = d_scale = d_residual = d_gate = None
    if e == Epilogue():
        return dy, dy, None, None, None, None
    if y is not None:
        dz = _epilogue.derivative_from_output(e.activation, dy, y)
        return dz, dz, None, None, dz if need_residual else None, None
    if need_scale:
        s = convolved(None, Epilogue())
        z = _epilogue.preactivation(s, bias, e)
    else:  # rounded to 16 bits once, as the forward pass's was, not before the bias is added too
        z = convolved(bias, _up_to_z(e))
    if e.gate is not None:
        if need_gate:
            a = _epilogue.ACTIVATIONS[e.activation](z, e.alpha, e.slope)
            d_gate = (dy * _epilogue.behind_activation(a, e._replace(gate=None))).sum((2, 3))
        dy = dy * channelwise(e.gate, dy)
    if need_residual and not e.residual_first:
        d_residual = dy
    dz = _epilogue.derivative(e.activation, e.alpha, e.slope, dy, z)
    if need_slope and e.slope is not None:
        d_slope = _epilogue.slope_gradient(dy, z, e.slope)
    if need_residual and e.residual_first:
        d_residual = dz
    if need_scale:
        d_scale = (dz * s).sum((0, 2, 3))
    return dz, dz if e.scale is None else dz * channelwise(e.scale, dz), d_slope, d_scale, d_residual, d_gate


def kept(y: Tensor, e: Epilogue) -> Tensor | None:
    """The op's output where it alone tells the derivative, so that nothing is computed anew."""
    return y if e != Epilogue() and _shows_in_output(e) else None


def parted(e: Epilogue, shuffle: int, *tensors: Tensor | None) -> tuple[Epilogue, Epilogue | None]:
    """(What the convolution does in one pass, what is left to do behind it or None).

    Where a derivative would have to compute the convolution anew to know z, z is better a tensor of its own, which
    autograd keeps. A shuffle lies between the two: only what is the same for every channel may change places with it.
    """
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    channelwise_behind = e.slope is not None or e.gate is not None or (e.residual is not None and not e.residual_first)
    if not wanted or _shows_in_output(e) or (shuffle > 1 and channelwise_behind):
        return e, None
    return _up_to_z(e), e._replace(scale=None, residual=None if e.residual_first else e.residual)


def behind(op: str, z: Tensor, e: Epilogue | None) -> Tensor:
    """What `parted` left to do, under the same conditions as in one pass."""
    if e is None:
        return z
    if torch.is_autocast_enabled(z.device.type):  # which casts the arguments of one op alike
        slope, residual, gate = (None if t is None else t.to(z.dtype) for t in (e.slope, e.residual, e.gate))
        e = e._replace(slope=slope, residual=residual, gate=gate)
    _epilogue.check(op, e, None, z, z.shape)
    return _epilogue.behind_activation(activation.forward(z, e.activation, e.alpha, e.slope), e)


def _up_to_z(e: Epilogue) -> Epilogue:
    """What comes before the activation."""
    return Epilogue(scale=e.scale, residual=e.residual if e.residual_first else None, residual_first=e.residual_first)


def _shows_in_output(e: Epilogue) -> bool:
    behind = e.gate is not None or (e.residual is not None and not e.residual_first)
    return e.activation in ("none", *_epilogue.FROM_OUTPUT) and e.scale is None and not behind


# --- what the public functions share ----------------------------------------------------------------------------------
def check_types(x, weight, **others) -> None:
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        raise TypeError(f"x and weight must be tensors, got {type(x).__name__} and {type(weight).__name__}")
    for name, value in others.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(value).__name__}")


def unsqueezed(*tensors) -> Any:
    """An image as a batch of one."""
    return (None if t is None else t.unsqueeze(0) for t in tensors)


def refuse_gradients(*tensors: Tensor | None) -> None:
    """out= has no derivative, as in torch."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError("out= is not differentiable, but an argument requires a gradient: call it without out=")


# --- vmap: the batch joins n where the weight is shared, and the groups where each has its own ------------------------
def join(b: int, dims, tensors, dim: Any, e: Epilogue):
    """((x, weight, bias), epilogue, what groups are multiplied by, the dimension of y that holds the batch)."""
    (x, weight, bias), (dx, dw, db) = tensors, dims
    if (dw, db, dim.slope, dim.scale) == (None,) * 4:
        residual, gate = join_batch(e.residual, dim.residual, b), join_batch(e.gate, dim.gate, b)
        return (join_batch(x, dx, b), weight, bias), e._replace(residual=residual, gate=gate), 1, 0
    channels = weight.shape[0] if dw is None else weight.movedim(dw, 0).shape[1]
    slope = e.slope
    if slope is not None:
        slope = slope.expand(channels) if dim.slope is None else slope.movedim(dim.slope, 0).expand(b, channels)
    e = e._replace(
        slope=join_batch(slope, None if dim.slope is None else 0, b),
        scale=join_batch(e.scale, dim.scale, b),
        residual=join_channels(e.residual, dim.residual, b),
        gate=join_channels(e.gate, dim.gate, b),
    )
    return (join_channels(x, dx, b), join_batch(weight, dw, b), join_batch(bias, db, b)), e, b, 1
