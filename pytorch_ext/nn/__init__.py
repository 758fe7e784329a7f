"""Convolutions as modules, and `swap`, which turns a model's own into them, with `restore` back.

A swapped module is the same object with another class: parameters, hooks, buffers and whoever holds it notice nothing.
"""

from ._dense import DilatedConv1d, DilatedConv2d, PointwiseConv2d
from ._depthwise import DepthwiseConv1d, DepthwiseConv2d
from ._swap import SwapReport, restore, swap

__all__ = [
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DilatedConv1d",
    "DilatedConv2d",
    "PointwiseConv2d",
    "SwapReport",
    "restore",
    "swap",
]
