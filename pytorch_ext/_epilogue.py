"""What is done to a convolution's sums before they are stored: one definition for every convolution.

y = (act(conv(x) * scale + bias + before) + after) * gate, where the residual is added before or after the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# name -> f(z, alpha, slope); csrc/convolution.h has the same list.
ACTIVATIONS: dict[str, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "none": lambda z, alpha, slope: z,
    "relu": lambda z, alpha, slope: F.relu(z),
    "relu6": lambda z, alpha, slope: F.relu6(z),
    "silu": lambda z, alpha, slope: F.silu(z),
    "hardswish": lambda z, alpha, slope: F.hardswish(z),
    "hardsigmoid": lambda z, alpha, slope: F.hardsigmoid(z),
    "sigmoid": lambda z, alpha, slope: torch.sigmoid(z),
    "tanh": lambda z, alpha, slope: torch.tanh(z),
    "gelu": lambda z, alpha, slope: F.gelu(z),
    "gelu_tanh": lambda z, alpha, slope: F.gelu(z, approximate="tanh"),
    "leaky_relu": lambda z, alpha, slope: F.leaky_relu(z, alpha),
    "elu": lambda z, alpha, slope: F.elu(z, alpha),
    "prelu": lambda z, alpha, slope: torch.where(z > 0, z, z * channelwise(slope, z)),
}
DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0}  # of the parameter, as torch has them
PLAIN = tuple(name for name in ACTIVATIONS if name not in (*DEFAULTS, "prelu"))  # those without a parameter
FROM_OUTPUT = ("relu", "relu6", "sigmoid", "tanh")  # whose derivative shows in y, so that z need not be kept


class Epilogue(NamedTuple):
    """The arguments behind an op's bias, in the order of its schema."""

    activation: str = "none"
    alpha: float = 0.0  # leaky_relu's slope below 0, elu's alpha
    slope: Tensor | None = None  # prelu: [c] or [1]
    scale: Tensor | None = None  # [c]
    residual: Tensor | None = None  # y's shape
    residual_first: bool = False  # before the activation
    gate: Tensor | None = None  # [n, c]


SCHEMA = (
    "str activation, float alpha, Tensor? slope, Tensor? scale, Tensor? residual, bool residual_first, Tensor? gate"
)


def channelwise(t: Tensor | None, z: Tensor) -> Tensor:
    """[c] as it lies along z's channels, dimension 1 of [n, c, ...]; [n, c] along both."""
    assert t is not None
    return t.view(*t.shape, *[1] * (z.dim() - 2)) if t.dim() == 2 else t.view(-1, *[1] * (z.dim() - 2))


def parse(
    activation: str,
    parameter: float | Tensor | None,
    names=tuple(ACTIVATIONS),
    name: str = "activation",
    parameter_name: str | None = None,
):
    """(activation, alpha, slope) from what a public function was given as its arguments of these names."""
    parameter_name = parameter_name or f"{name}_parameter"
    if not isinstance(activation, str):
        raise TypeError(f"{name} must be one of {', '.join(names)}, got {activation!r}")
    if activation not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {activation!r}")
    if activation == "prelu":
        if not isinstance(parameter, Tensor):
            raise TypeError(f"prelu needs its slopes as {parameter_name}, a tensor [c] or [1], got {parameter!r}")
        return activation, 0.0, parameter
    if activation not in DEFAULTS:
        if parameter is not None:
            raise ValueError(f"{activation} has no parameter, got {parameter_name} = {parameter!r}")
        return activation, 0.0, None
    if parameter is None:
        return activation, DEFAULTS[activation], None
    if isinstance(parameter, Tensor) or not isinstance(parameter, (int, float)):
        raise TypeError(f"{parameter_name} of {activation} must be a number, got {parameter!r}")
    return activation, float(parameter), None


def check(op: str, e: Epilogue, bias: Tensor | None, x: Tensor, y_shape) -> None:
    """What every kernel asks of an epilogue; csrc/dense_boundary.h asks the same."""
    n, c = y_shape[0], y_shape[1]
    if e.activation not in ACTIVATIONS:
        raise RuntimeError(f"{op}: activation must be one of {list(ACTIVATIONS)}, got '{e.activation}'")
    if (e.activation == "prelu") != (e.slope is not None):
        raise RuntimeError(f"{op}: slope belongs to prelu, and prelu needs it")
    tensors = {"bias": bias, "slope": e.slope, "scale": e.scale, "residual": e.residual, "gate": e.gate}
    shapes = {"bias": [c], "slope": [c], "scale": [c], "residual": list(y_shape), "gate": [n, c]}
    for name, t in tensors.items():
        if t is None:
            continue
        if not (name == "slope" and list(t.shape) == [1]) and list(t.shape) != shapes[name]:
            raise RuntimeError(f"{op}: {name} must have shape {shapes[name]}, got {list(t.shape)}")
        if t.dtype != x.dtype or t.device != x.device:
            raise RuntimeError(f"{op}: {name} must be {x.dtype} on {x.device}, got {t.dtype} on {t.device}")


def apply(sums: Tensor, bias: Tensor | None, e: Epilogue) -> Tensor:
    """The epilogue in plain torch, of [n, c, ...]; differentiable."""
    z = preactivation(sums, bias, e)
    return behind_activation(ACTIVATIONS[e.activation](z, e.alpha, e.slope), e)


def behind_activation(y: Tensor, e: Epilogue) -> Tensor:
    """The residual and the gate, of y = act(z)."""
    if e.residual is not None and not e.residual_first:
        y = y + e.residual
    return y if e.gate is None else y * channelwise(e.gate, y)


def preactivation(sums: Tensor, bias: Tensor | None, e: Epilogue) -> Tensor:
    z = sums if e.scale is None else sums * channelwise(e.scale, sums)
    z = z if bias is None else z + channelwise(bias, z)
    return z + e.residual if e.residual is not None and e.residual_first else z


def derivative_from_output(activation: str, dy: Tensor, y: Tensor) -> Tensor:
    """The same as `derivative`, from y = act(z), for "none" and FROM_OUTPUT."""
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(dy, y)
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(dy, y)
    return derivative(activation, 0.0, None, dy, y)


def derivative(activation: str, alpha: float, slope: Tensor | None, dy: Tensor, z: Tensor) -> Tensor:
    """dy * act'(z) in plain torch, itself differentiable in dy and z."""
    aten = torch.ops.aten
    if activation == "none":
        return dy
    if activation == "relu":
        return aten.threshold_backward(dy, z, 0)
    if activation == "relu6":
        return aten.hardtanh_backward(dy, z, 0, 6)
    if activation == "hardswish":
        return aten.hardswish_backward(dy, z)
    if activation == "hardsigmoid":
        return torch.where((z > -3) & (z < 3), dy / 6, 0)  # aten.hardsigmoid_backward has no derivative of its own
    if activation == "gelu":
        return aten.gelu_backward(dy, z)
    if activation == "gelu_tanh":
        return aten.gelu_backward(dy, z, approximate="tanh")
    if activation == "leaky_relu":
        return aten.leaky_relu_backward(dy, z, alpha, False)
    if activation == "elu":
        return aten.elu_backward(dy, alpha, 1, 1, False, z)
    if activation == "prelu":
        return torch.where(z > 0, dy, dy * channelwise(slope, z))
    if activation == "tanh":
        return aten.tanh_backward(dy, torch.tanh(z))
    gate = torch.sigmoid(z)
    if activation == "sigmoid":
        return aten.sigmoid_backward(dy, gate)
    if activation == "silu":  # aten.silu_backward has no derivative of its own
        return dy * gate * (1 + z * (1 - gate))
    raise RuntimeError(f"activation must be one of {list(ACTIVATIONS)}, got '{activation}'")


def slope_gradient(dy: Tensor, z: Tensor, slope: Tensor) -> Tensor:
    """prelu's, [c] or [1] as slope is, with channels in dimension 1."""
    each = torch.where(z > 0, 0, dy * z)
    return each.sum().view(1) if slope.shape[0] == 1 else each.sum([d for d in range(z.dim()) if d != 1])
