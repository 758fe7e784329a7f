"""lightkernels: fast kernels for lightweight vision networks, as drop-in torch ops."""

from . import nn
from ._epilogue import ACTIVATIONS as _ACTIVATIONS
from ._op import use
from .nn import restore, swap
from .ops.activation import activation
from .ops.channel_shuffle import channel_shuffle
from .ops.depthwise_conv2d import depthwise_conv1d, depthwise_conv2d
from .ops.dilated_conv2d import conv_transpose2d, dilated_conv1d, dilated_conv2d
from .ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle
from .ops.pointwise_conv2d import pointwise_conv2d
from .ops.upsample2d import upsample2d

__version__ = "0.1.0"
ACTIVATIONS = tuple(_ACTIVATIONS)  # the names that `activation=` may have
__all__ = [
    "ACTIVATIONS",
    "activation",
    "channel_shuffle",
    "conv_transpose2d",
    "depthwise_conv1d",
    "depthwise_conv2d",
    "dilated_conv1d",
    "dilated_conv2d",
    "nn",
    "pixel_shuffle",
    "pixel_unshuffle",
    "pointwise_conv2d",
    "restore",
    "swap",
    "upsample2d",
    "use",
]
