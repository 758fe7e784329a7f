"""PixelShuffle and its inverse in Triton: moves."""

from __future__ import annotations

from torch import Tensor

from ..ops.pixel_shuffle import _shuffle_fake, _unshuffle_fake
from .move import move


def _axes(deep: Tensor, wide: Tensor, r: int) -> list[tuple[int, int, int]]:
    """From [.., c * r * r, h, w] to [.., c, h * r, w * r]: (size, stride in deep, stride in wide)."""
    (c, _, _), (_, h, w), (dc, dh, dw), (wc, wh, ww) = (
        wide.shape[-3:], deep.shape[-3:], deep.stride()[-3:], wide.stride()[-3:],
    )  # fmt: skip
    outside = [(deep.shape[d], deep.stride(d), wide.stride(d)) for d in range(deep.dim() - 3)]
    return [*outside, (c, r * r * dc, wc), (r, r * dc, wh), (r, dc, ww), (h, dh, r * wh), (w, dw, r * ww)]


def pixel_shuffle(x, upscale_factor) -> Tensor:
    y = _shuffle_fake(x, upscale_factor)
    return move(x, y, _axes(x, y, upscale_factor))


def pixel_unshuffle(x, downscale_factor) -> Tensor:
    y = _unshuffle_fake(x, downscale_factor)
    return move(x, y, [(size, in_x, in_y) for size, in_y, in_x in _axes(y, x, downscale_factor)])
