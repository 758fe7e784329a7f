"""Networks in plain torch; `pytorch_ext.swap` puts this library's kernels into them."""

from .mobilenet_v2 import MobileNetV2

__all__ = ["MobileNetV2"]
