"""1x1 convolution in Triton: dilated_conv2d's kernel, without taps, and with what comes before and behind it.

Its gradients are dilated_conv2d's.
"""

from __future__ import annotations

from torch import Tensor

from .._epilogue import Epilogue
from ..ops.pointwise_conv2d import NO_DILATION, NO_PADDING, _forward_fake, _out_fake
from .dilated_conv2d import (  # noqa: F401  (kernels: this family's too)
    dense_backward_input_kernel,
    dense_backward_weight_finish_kernel,
    dense_backward_weight_kernel,
    dense_forward_kernel,
    forward_into,
)


def _into(y, x, weight, bias, stride, groups, *rest) -> None:
    *epilogue, input_activation, input_gate, shuffle, _ = rest
    forward_into(
        y, x, weight, bias, stride, NO_PADDING, NO_DILATION, groups, Epilogue(*epilogue),
        input_activation, input_gate, shuffle,
    )  # fmt: skip


def pointwise_conv2d(*args) -> Tensor:
    y = _forward_fake(*args)
    _into(y, *args)
    return y


def pointwise_conv2d_out(*args) -> None:
    _out_fake(*args)
    _into(args[-1], *args[:-1])
