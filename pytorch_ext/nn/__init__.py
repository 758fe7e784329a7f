"""Convolutions, shuffles and upsampling as modules, `swap`, which turns a model's own into them, and `restore`.

A swapped module is the same object with another class: parameters, hooks, buffers and whoever holds it notice nothing.
"""

from ._dense import DilatedConv1d, DilatedConv2d, PointwiseConv2d
from ._depthwise import DepthwiseConv1d, DepthwiseConv2d
from ._resample import (
    ChannelShuffle,
    ConvTranspose2d,
    PixelShuffle,
    PixelUnshuffle,
    Upsample,
    UpsamplingBilinear2d,
    UpsamplingNearest2d,
    icnr_,
)
from ._swap import SwapReport, restore, swap

__all__ = [
    "ChannelShuffle",
    "ConvTranspose2d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DilatedConv1d",
    "DilatedConv2d",
    "PixelShuffle",
    "PixelUnshuffle",
    "PointwiseConv2d",
    "SwapReport",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
    "icnr_",
    "restore",
    "swap",
]
