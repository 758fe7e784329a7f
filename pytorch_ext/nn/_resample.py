"""Shuffles and upsampling, learned too, as modules: torch's, with another forward, which may be torch's again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.channel_shuffle import channel_shuffle
from ..ops.dilated_conv2d import conv_transpose2d
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


class ConvTranspose2d(nn.ConvTranspose2d):
    """As ``torch.nn.ConvTranspose2d``: see :func:`pytorch_ext.conv_transpose2d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        geometry = self.stride, self.padding, self.kernel_size
        more: Any = self._output_padding(input, output_size, *geometry, 2, self.dilation)  # type: ignore[arg-type]
        if input.dtype not in FLOATS or any(extra >= s for extra, s in zip(more, self.stride, strict=True)):
            return super().forward(input, output_size)
        rest: Any = self.stride, self.padding, more, self.groups, self.dilation
        return conv_transpose2d(input, self.weight, self.bias, *rest)


def icnr_(
    weight: Tensor, upscale_factor: int, initializer: Callable[[Tensor], Any] = nn.init.kaiming_normal_
) -> Tensor:
    """Fills a convolution's weight so that PixelShuffle behind it begins as nearest upsampling: no checkerboard.

    Every r * r filters that follow each other, which become one pixel's neighbours, are the same (Aitken et al.,
    "Checkerboard artifact free sub-pixel convolution", 2017, arXiv 1707.02937, section 3).

    Args:
        weight: ``[c * r * r, ...]``, written in place. A bias should be filled alike, or with zeros.
        upscale_factor: r.
        initializer: fills ``[c, ...]`` in place.

    Returns:
        weight.

    Raises:
        ValueError: weight's first size is no multiple of r * r.
    """
    each = upscale_factor**2
    if weight.shape[0] % each:
        raise ValueError(f"weight's {weight.shape[0]} filters must be a multiple of {each}")
    with torch.no_grad():
        filters = weight.new_empty(weight.shape[0] // each, *weight.shape[1:])
        initializer(filters)
        return weight.copy_(filters.repeat_interleave(each, 0))


RESAMPLERS: dict[type, type] = {
    nn.ChannelShuffle: ChannelShuffle,
    nn.PixelShuffle: PixelShuffle,
    nn.PixelUnshuffle: PixelUnshuffle,
    nn.Upsample: Upsample,
    nn.UpsamplingNearest2d: UpsamplingNearest2d,
    nn.UpsamplingBilinear2d: UpsamplingBilinear2d,
    nn.ConvTranspose2d: ConvTranspose2d,
}
