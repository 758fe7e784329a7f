"""What ops that move elements share: their results' memory format, their derivatives' context, no FLOPs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _op


def empty_as(x: Tensor, shape) -> Tensor:
    """A new tensor in x's memory format, which may be channels_last or channels_last_3d; csrc/move_boundary.h too."""
    format = torch._prims_common.suggest_memory_format(x) if x.dim() in (4, 5) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format)


def check(x, number, name: str) -> int:
    """x is a tensor and `number`, the argument called `name`, a whole number, which is returned."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    try:
        return _op.whole(number)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {number!r}") from None


def no_flops(*_, out_shape) -> int:
    """As torch counts: none."""
    return 0


def setup_int(ctx, inputs, output) -> None:
    """Of an op of a tensor and an int: its derivative needs to know no more."""
    _, ctx.number = inputs
