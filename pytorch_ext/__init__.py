"""lightkernels: fast kernels for lightweight vision networks, as drop-in torch ops."""

from . import nn
from ._op import use
from .nn import restore, swap
from .ops.depthwise_conv2d import depthwise_conv1d, depthwise_conv2d

__version__ = "0.1.0"
__all__ = ["depthwise_conv1d", "depthwise_conv2d", "nn", "restore", "swap", "use"]
