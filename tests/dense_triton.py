"""The Triton kernels of dense convolutions, called as the dispatcher would call them, on a layer of tests/dense.py."""

from __future__ import annotations

from unittest import mock

import dense
from convolution import assert_format, lay
from pytorch_ext.kernels import dilated_conv2d, pointwise_conv2d
from torch import Tensor


def call(layer: dense.Layer, pointwise: bool, out: Tensor | None = None) -> Tensor | None:
    o = layer.options
    head, tail = (layer.x, layer.w, o.get("bias")), () if out is None else (out,)
    if pointwise:
        module, name = pointwise_conv2d, "pointwise_conv2d"
        entering = (o.get("input_activation", "none"), o.get("input_gate"), o.get("shuffle", 1), None)
        args = (*head, layer.geometry.stride, layer.groups, *layer.epilogue(), *entering)
    else:
        module, name = dilated_conv2d, "dilated_conv2d"
        args = (*head, *layer.geometry, layer.groups, *layer.epilogue(), "auto", None)
    return getattr(module, name if out is None else f"{name}_out")(*args, *tail)


def check_forward(layer: dense.Layer, pointwise: bool, want: dense.Expected | None = None) -> None:
    y = call(layer, pointwise)
    dense.judge(y, layer, dense.expected(layer) if want is None else want)
    assert_format(y, layer.x)


def check_out(layer: dense.Layer, pointwise: bool) -> None:
    dense.check_out(lambda out: call(layer, pointwise, out), layer, dense.expected(layer))


def check_backward(layer: dense.Layer, layout: str) -> None:
    ours = {
        "BACKWARD_INPUT": dilated_conv2d.dilated_conv2d_backward_input,
        "BACKWARD_WEIGHT": dilated_conv2d.dilated_conv2d_backward_weight,
    }
    with mock.patch.multiple(dense, **ours):
        dy = lay(layer.y_shape, layer.x.dtype, layout)
        dense.check_backward(dy, layer.x, layer.w, layer.geometry, layer.groups)
