"""An activation on its own, and its gradient: the mathematics of _epilogue.py as ops.

y = act(x); dx = dy * act'(x); of prelu also dslope[c] = sum of dy * x where x <= 0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false

from .. import _epilogue, _op
from .._geometry import empty, join_channels

OP = "activation"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# --- shapes and checks (also the fake kernels) ------------------------------------------------------------------------
def _new(x: Tensor) -> Tensor:
    """As x lies in memory, where that is dense; else in its memory format."""
    if is_non_overlapping_and_dense_or_false(x):
        return x.new_empty_strided(x.shape, x.stride())
    return empty(x, x.shape)


def _check(op: str, x: Tensor, activation: str, slope: Tensor | None) -> None:
    """csrc/activation.cpp asks the same."""
    if x.dim() < 1:
        raise RuntimeError(f"{op}: x must have at least one dimension, got {list(x.shape)}")
    if x.dtype not in FLOATS:
        raise RuntimeError(f"{op}: dtype must be float32, float64, float16 or bfloat16, got {x.dtype}")
    if activation not in _epilogue.ACTIVATIONS:
        raise RuntimeError(f"{op}: activation must be one of {', '.join(_epilogue.ACTIVATIONS)}, got '{activation}'")
    if (activation == "prelu") != (slope is not None):
        raise RuntimeError(f"{op}: slope belongs to prelu, and prelu needs it")
    if slope is None:
        return
    c = x.shape[1] if x.dim() > 1 else 1
    if slope.dim() != 1 or slope.shape[0] not in (1, c):
        raise RuntimeError(f"{op}: slope must have shape [{c}] or [1], got {list(slope.shape)}")
    if slope.dtype != x.dtype:
        raise RuntimeError(f"{op}: slope must be {x.dtype}, got {slope.dtype}")
    if slope.device != x.device:
        raise RuntimeError(f"{op}: tensors must be on one device, slope is on another than x")


def _forward_fake(x, activation, alpha, slope):
    _check(OP, x, activation, slope)
    return _new(x)


def _backward_fake(dy, x, activation, alpha, slope):
    op = "activation_backward"
    if dy.shape != x.shape:
        raise RuntimeError(f"{op}: dy must have x's shape {list(x.shape)}, got {list(dy.shape)}")
    if dy.dtype != x.dtype:
        raise RuntimeError(f"{op}: dy must be {x.dtype}, got {dy.dtype}")
    if dy.device != x.device:
        raise RuntimeError(f"{op}: tensors must be on one device, dy is on another than x")
    _check(op, x, activation, slope)
    return _new(x), x.new_empty(0 if slope is None else slope.shape[0])


# --- reference --------------------------------------------------------------------------------------------------------
def _wide(t: Any) -> Any:
    return t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t


def _gradients(dy: Tensor, x: Tensor, activation: str, alpha: float, slope: Tensor | None):
    """dx and dslope in plain torch, differentiable; 16-bit types come back as float32."""
    dy, x, slope = _wide(dy), _wide(x), _wide(slope)
    dx = _epilogue.derivative(activation, alpha, slope, dy, x)
    return dx, x.new_zeros(0) if slope is None else _epilogue.slope_gradient(dy, x, slope)


def _forward_reference(x, activation, alpha, slope):
    y = _forward_fake(x, activation, alpha, slope)
    return y.copy_(_epilogue.ACTIVATIONS[activation](_wide(x), alpha, _wide(slope)))


def _backward_reference(dy, x, activation, alpha, slope):
    results = _backward_fake(dy, x, activation, alpha, slope)
    for result, value in zip(results, _gradients(dy, x, activation, alpha, slope)):
        result.copy_(value)
    return results


# --- derivatives: where a second one may follow, in plain torch, which has them all -----------------------------------
def _forward_setup(ctx, inputs, output):
    x, ctx.activation, ctx.alpha, slope = inputs
    ctx.save_for_backward(x, slope)


def _forward_backward(ctx, dy):
    x, slope = ctx.saved_tensors
    if torch.is_grad_enabled():
        dx, dslope = (g.to(x.dtype) for g in _gradients(dy, x, ctx.activation, ctx.alpha, slope))
    else:
        dx, dslope = backward(dy, x, ctx.activation, ctx.alpha, slope)
    return dx, None, None, None if slope is None else dslope


def _backward_setup(ctx, inputs, output):
    dy, x, ctx.activation, ctx.alpha, slope = inputs
    ctx.save_for_backward(dy, x, slope)


def _backward_backward(ctx, g, g_slope):
    dy, x, slope = ctx.saved_tensors

    def gradients(dy, x, *slope):
        dx, dslope = _gradients(dy, x, ctx.activation, ctx.alpha, slope[0] if slope else None)
        return dx.to(g.dtype), dslope.to(g.dtype)

    pull = torch.func.vjp(gradients, dy, x, *([] if slope is None else [slope]))[1]
    pulled = list(pull((g, g_slope)))
    return pulled[0], pulled[1], None, None, pulled[2] if len(pulled) > 2 else None


# --- vmap -------------------------------------------------------------------------------------------------------------
def _leading(t: Tensor, dim: int | None, b: int) -> Tensor:
    return t.expand(b, *t.shape) if dim is None else t.movedim(dim, 0)


def _joined(x: Tensor, slope: Tensor) -> bool:
    """Do the batch's channels become one tensor's? Else each example is a channel. x: [b, ...], slope: [b, c or 1]."""
    return x.dim() > 2 and slope.shape[1] > 1


def _forward_vmap(info, in_dims, x, activation, alpha, slope):
    b, x_dim, slope_dim = info.batch_size, in_dims[0], in_dims[3]
    if slope is None or (slope_dim is None and slope.shape[0] == 1):
        return forward(x, activation, alpha, slope), x_dim
    x, slope = _leading(x, x_dim, b), _leading(slope, slope_dim, b)
    if _joined(x, slope):
        y = forward(join_channels(x, 0, b), activation, alpha, slope.flatten())
        return y.unflatten(1, (b, -1)), 1
    return forward(x.unsqueeze(0), activation, alpha, slope.flatten()).squeeze(0), 0


def _backward_vmap(info, in_dims, dy, x, activation, alpha, slope):
    b, dy_dim, x_dim, slope_dim = info.batch_size, in_dims[0], in_dims[1], in_dims[4]
    dy, x = _leading(dy, dy_dim, b), _leading(x, x_dim, b)
    if slope is None:
        return backward(dy, x, activation, alpha, slope), (0, None)
    slope = _leading(slope, slope_dim, b)
    if _joined(x, slope):
        dx, dslope = backward(join_channels(dy, 0, b), join_channels(x, 0, b), activation, alpha, slope.flatten())
        return (dx.unflatten(1, (b, -1)), dslope.view(b, -1)), (1, 0)
    dx, dslope = backward(dy.unsqueeze(0), x.unsqueeze(0), activation, alpha, slope.flatten())
    return (dx.squeeze(0), dslope.view(b, 1)), (0, 0)


# --- registration -----------------------------------------------------------------------------------------------------
def _no_flops(*_, out_shape):
    """As torch counts: none."""
    return 0


forward = _op.register(
    "activation(Tensor x, str activation, float alpha, Tensor? slope) -> Tensor",
    reference=_forward_reference,
    fake=_forward_fake,
    setup_context=_forward_setup,
    backward=_forward_backward,
    vmap=_forward_vmap,
    flops=_no_flops,
)
backward = _op.register(
    "activation_backward(Tensor dy, Tensor x, str activation, float alpha, Tensor? slope) "
    "-> (Tensor dx, Tensor dslope)",
    reference=_backward_reference,
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_backward,
    vmap=_backward_vmap,
    flops=_no_flops,
)


# --- public function --------------------------------------------------------------------------------------------------
def activation(x: Tensor, kind: str, parameter: float | Tensor | None = None) -> Tensor:
    """An activation, element by element; differentiable, twice and more.

    ============ ================================================ =====================================================
    kind         y                                                source
    ============ ================================================ =====================================================
    none         x
    relu         max(x, 0)                                        Nair, Hinton, 2010
    relu6        min(max(x, 0), 6)                                Krizhevsky, "Convolutional Deep Belief Networks", 2010
    silu         x * sigmoid(x)                                   Elfwing et al., 2017 (arXiv 1702.03118)
    hardswish    x * relu6(x + 3) / 6                             Howard et al., 2019 (arXiv 1905.02244), section 5.2
    hardsigmoid  relu6(x + 3) / 6                                 the same
    sigmoid      1 / (1 + exp(-x))
    tanh         tanh(x)
    gelu         x * (1 + erf(x / sqrt(2))) / 2                   Hendrycks, Gimpel, 2016 (arXiv 1606.08415)
    gelu_tanh    x * (1 + tanh(sqrt(2 / pi)                       the same, section 2
                 * (x + 0.044715 x^3))) / 2
    leaky_relu   x where x > 0, else parameter * x (0.01)         Maas et al., 2013
    elu          x where x > 0, else parameter * (exp(x) - 1)     Clevert et al., 2015 (arXiv 1511.07289), eq. 16
                 (1.0)
    prelu        x where x > 0, else parameter[channel] * x       He et al., 2015 (arXiv 1502.01852), eq. 1
    ============ ================================================ =====================================================

    Args:
        x: a tensor of any shape but a single number's; float32, float64, bfloat16 or float16 (16-bit types are computed
            in float32). prelu's channels are dimension 1.
        kind: the name.
        parameter: leaky_relu's and elu's number (None: the number in the table), prelu's slopes ``[c]`` or ``[1]``.

    Returns:
        x's shape; in x's memory order where x is dense.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown kind, or a parameter for a kind that has none.
        RuntimeError: x without a dimension, a dtype that is not in the list, slopes that do not fit x.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    return forward(x, *_epilogue.parse(kind, parameter, name="kind", parameter_name="parameter"))
