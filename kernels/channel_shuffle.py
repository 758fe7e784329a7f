"""Channel shuffle in Triton: a move."""

from __future__ import annotations

from torch import Tensor

from ..ops.channel_shuffle import _fake
from .move import move


def channel_shuffle(x, groups) -> Tensor:
    y = _fake(x, groups)
    each = x.shape[1] // groups
    axes = [(x.shape[d], x.stride(d), y.stride(d)) for d in range(x.dim()) if d != 1]
    axes += [(groups, each * x.stride(1), y.stride(1)), (each, x.stride(1), groups * y.stride(1))]
    return move(x, y, axes)
