"""Shuffles and upsampling as modules: torch's own, with another forward; what ours do not compute, torch's does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.channel_shuffle import channel_shuffle
from ..ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle
from ..ops.upsample2d import FLOATS, MODES, upsample2d


class ChannelShuffle(nn.ChannelShuffle):
    """As ``torch.nn.ChannelShuffle``: see :func:`pytorch_ext.channel_shuffle`."""

    def forward(self, input: Tensor) -> Tensor:
        return channel_shuffle(input, self.groups)


class PixelShuffle(nn.PixelShuffle):
    """As ``torch.nn.PixelShuffle``: see :func:`pytorch_ext.pixel_shuffle`."""

    def forward(self, input: Tensor) -> Tensor:
        return pixel_shuffle(input, self.upscale_factor)


class PixelUnshuffle(nn.PixelUnshuffle):
    """As ``torch.nn.PixelUnshuffle``: see :func:`pytorch_ext.pixel_unshuffle`."""

    def forward(self, input: Tensor) -> Tensor:
        return pixel_unshuffle(input, self.downscale_factor)


class _Upsampling:
    """The forward of all that is an ``nn.Upsample``."""

    def forward(self: Any, input: Tensor) -> Tensor:
        nearest_bytes = self.mode != "bilinear" and input.dtype == torch.uint8
        if self.mode not in MODES or input.dim() != 4 or not (input.dtype in FLOATS or nearest_bytes):
            return super().forward(input)  # type: ignore[misc]
        how = {"align_corners": self.align_corners, "recompute_scale_factor": self.recompute_scale_factor}
        return upsample2d(input, self.size, self.scale_factor, self.mode, **how)


class Upsample(_Upsampling, nn.Upsample):
    """As ``torch.nn.Upsample``: see :func:`pytorch_ext.upsample2d`. Other modes and ranks are torch's own."""


class UpsamplingNearest2d(_Upsampling, nn.UpsamplingNearest2d):
    """As ``torch.nn.UpsamplingNearest2d``: see :func:`pytorch_ext.upsample2d`."""


class UpsamplingBilinear2d(_Upsampling, nn.UpsamplingBilinear2d):
    """As ``torch.nn.UpsamplingBilinear2d``, whose corners are aligned: see :func:`pytorch_ext.upsample2d`."""


RESAMPLERS: dict[type, type] = {
    nn.ChannelShuffle: ChannelShuffle,
    nn.PixelShuffle: PixelShuffle,
    nn.PixelUnshuffle: PixelUnshuffle,
    nn.Upsample: Upsample,
    nn.UpsamplingNearest2d: UpsamplingNearest2d,
    nn.UpsamplingBilinear2d: UpsamplingBilinear2d,
}
