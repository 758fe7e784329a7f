"""Sizes and padding of convolutions, and what torch's own need to get every case right."""

from __future__ import annotations

from typing import Any, SupportsFloat

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _op

SCHEMA = "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation"  # padding is (top, bottom, left, right)


def check(op: str, stride, padding, dilation) -> None:
    """What every kernel asks of its geometry; the C++ boundaries ask the same."""
    if len(padding) != 4:
        raise RuntimeError(f"{op}: padding must be (top, bottom, left, right), got {list(padding)}")
    for name, value in (("stride", stride), ("dilation", dilation)):
        if len(value) != 2 or min(value) < 1:
            raise RuntimeError(f"{op}: {name} must be two positive ints, got {list(value)}")
    for name, value in (("stride", stride), ("dilation", dilation), ("padding", padding)):
        if any(type(v) is int and abs(v) > 2**31 - 1 for v in value):  # symbolic ones are sizes, and guard nothing
            raise RuntimeError(f"{op}: {name} must not exceed {2**31 - 1}, got {list(value)}")


def check_tensors(op: str, x: Tensor, weight: Tensor) -> None:
    if x.dtype != weight.dtype:
        raise RuntimeError(f"{op}: tensors must share one dtype, got {x.dtype} and {weight.dtype}")
    if x.device != weight.device:
        raise RuntimeError(f"{op}: tensors must be on one device, got {x.device} and {weight.device}")
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise RuntimeError(f"{op}: dtype must be float32, float64, float16 or bfloat16, got {x.dtype}")


def output_size(op: str, input_size, kernel_size, stride, padding, dilation) -> tuple[int, int]:
    """Rows and columns of y for (ih, iw); padding is (top, bottom, left, right)."""
    size = []
    for axis, name in enumerate(("height", "width")):
        padded = input_size[axis] + padding[2 * axis] + padding[2 * axis + 1]
        span = dilation[axis] * (kernel_size[axis] - 1) + 1
        if kernel_size[axis] < 1 or padded < span:
            raise RuntimeError(
                f"{op}: the padded input's {name} is {padded}, but the kernel spans {span}; the output would be empty"
            )
        size.append((padded - span) // stride[axis] + 1)
    return size[0], size[1]


def empty(like: Tensor, shape) -> Tensor:
    """A new tensor in the memory format of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_op.memory_format_of(like))


def plain(t: Any) -> Any:
    """What torch's convolutions on CPU get right: float16 ones round more than once, and [n, 1, h, w] with the strides
    of channels_last leaves pixels of y unwritten (torch 2.13, 8x8 kernel, stride (1, 2), 9x9 image)."""
    if t is not None and t.dtype in (torch.float16, torch.bfloat16):
        t = t.float()
    return t.reshape(-1).view(t.shape) if t is not None and t.dim() == 4 and t.shape[1] == 1 else t


def pad(x: Tensor, padding) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom)) if any(padding) else x


def same_padding(input_size, kernel_size, stride, dilation) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding as (top, bottom, left, right): ceil(in / s) outputs, the odd pixel bottom and right."""
    sides = []
    for size, k, s, d in zip(input_size, kernel_size, stride, dilation, strict=True):
        size, k = (int(n) if isinstance(n, Tensor) else n for n in (size, k))  # torch.jit.trace gives tensors for sizes
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        sides += [total // 2, total - total // 2]
    return tuple(sides)


def padding4(padding: Any, x: Tensor, weight: Tensor, stride, dilation) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from what a public function's `padding` may be."""
    sides: tuple[Any, ...]
    if type(padding) is int:
        sides = (padding,) * 4
    elif isinstance(padding, str) and padding == "same":
        return same_padding(x.shape[-2:], weight.shape[-2:], stride, dilation)
    elif isinstance(padding, str) and padding == "valid":
        return 0, 0, 0, 0
    elif not isinstance(padding, (tuple, list, SupportsFloat)) or (
        isinstance(padding, (tuple, list)) and len(padding) not in (1, 2, 4)
    ):
        raise ValueError(
            f"padding must be an int, (height, width), (top, bottom, left, right), 'same' or 'valid', got {padding!r}"
        )
    else:
        try:
            sides = tuple(_op.whole(side) for side in (padding if isinstance(padding, (tuple, list)) else (padding,)))
        except TypeError:
            raise TypeError(f"padding must hold ints, got {padding!r}") from None
        if len(sides) == 2:
            sides = (sides[0], sides[0], sides[1], sides[1])
        elif len(sides) == 1:
            sides *= 4
    for side in sides:
        if side < 0:
            raise ValueError(f"padding must not be negative, got {padding!r}")
    return sides


def on_one_row(x: Tensor, weight: Tensor, stride, padding, dilation, shape: str) -> tuple[Any, ...]:
    """(x, weight, stride, padding, dilation) of the 2-D op that a 1-D convolution is."""
    for name, value in (("stride", stride), ("dilation", dilation)):
        if not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int, got {value!r}")
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        raise TypeError(f"x and weight must be tensors, got {type(x).__name__} and {type(weight).__name__}")
    if x.dim() not in (2, 3):
        raise ValueError(f"x must have shape [n, c, length] or [c, length], got {list(x.shape)}")
    if weight.dim() != 3:
        raise ValueError(f"weight must have shape {shape}, got {list(weight.shape)}")
    sides: int | tuple[int, int, int, int] | str
    if isinstance(padding, int):
        sides = (0, 0, padding, padding)
    elif isinstance(padding, (tuple, list)) and len(padding) == 2:
        sides = (0, 0, *padding)
    elif padding in ("same", "valid"):
        sides = padding
    else:
        raise ValueError(f"padding must be an int, (left, right), 'same' or 'valid', got {padding!r}")
    return x.unsqueeze(-2), weight.unsqueeze(-2), (1, stride), sides, (1, dilation)


# --- vmap: the batch joins n where the weight is shared, and the channels where each has its own ----------------------
def join_channels(t: Any, d: int | None, batch: int) -> Any:
    """[n, c, ...] (batched along d, or shared) to [n, batch * c, ...]."""
    if t is None:
        return None
    t = t.movedim(d, 1) if d is not None else t.unsqueeze(1).expand(-1, batch, *([-1] * (t.dim() - 1)))
    return t.flatten(1, 2)


def join_batch(t: Any, d: int | None, batch: int) -> Any:
    """[k, ...] (batched along d, or shared) to [batch * k, ...]."""
    if t is None:
        return None
    t = t.movedim(d, 0) if d is not None else t.unsqueeze(0).expand(batch, *([-1] * t.dim()))
    return t.flatten(0, 1)
