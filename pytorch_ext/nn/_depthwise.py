"""Depthwise convolutions as modules."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn

from .._geometry import same_padding
from ..ops.depthwise_conv2d import ACTIVATIONS, depthwise_conv1d, depthwise_conv2d
from ._convolution import Convolution, OneAxis, TwoAxes, single

torch.fx.wrap("depthwise_conv1d")  # torch.fx records a call of these instead of tracing into them
torch.fx.wrap("depthwise_conv2d")
_call = torch.ops.pytorch_ext.depthwise_conv2d.default._op


class _Depthwise(Convolution):
    """What the 1-D and the 2-D module share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ) -> None:
        if in_channels < 1 or out_channels < 1 or out_channels % in_channels:
            raise ValueError(
                f"out_channels must be a positive multiple of in_channels = {in_channels}, got {out_channels}"
            )
        if groups not in (None, in_channels):
            raise ValueError(f"groups must be in_channels = {in_channels} in a depthwise convolution, got {groups}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        channels = in_channels, out_channels
        super().__init__(
            *channels, kernel_size, stride, padding, dilation, in_channels, bias, padding_mode, device, dtype
        )
        self.activation = activation

    def _arguments(self, weight: Tensor) -> tuple[Any, ...]:
        """The weight [c, 1, kh, kw] stored as [kh, kw, c], what the CPU kernels read without repacking; stride; padding
        (None: "same" with a stride, which depends on the input); dilation; activation."""
        packed = weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
        return packed, *self._geometry(weight), self.activation


class DepthwiseConv2d(TwoAxes, _Depthwise, nn.Conv2d):
    """``nn.Conv2d(groups=in_channels)`` on this library's kernels, with an activation fused in.

    It is an ``nn.Conv2d``: parameters, initialisation, state_dict and attributes are unchanged. In eval mode, where no
    gradient is asked for, the weight is kept a second time in the order that the CPU kernels read; it is compared
    with the parameter at every call, so no way of writing to the parameter leaves it stale.

    Args:
        in_channels, out_channels: out_channels is a positive multiple of in_channels.
        kernel_size, stride, dilation: positive int, or (height, width).
        padding: int, (height, width), (top, bottom, left, right), ``"same"`` (TensorFlow's, for any stride) or
            ``"valid"``.
        groups: in_channels, or None for just that; here so that nn.Conv2d's arguments may be passed as they are.
        bias: whether there is one.
        padding_mode: ``"zeros"`` is done by the kernels; ``"reflect"``, ``"replicate"``, ``"circular"`` by F.pad.
        activation: a name of ``pytorch_ext.ACTIVATIONS`` that has no parameter.

    Shape:
        ``[n, in_channels, h, w]`` or ``[in_channels, h, w]`` to ``[n, out_channels, oh, ow]`` or
        ``[out_channels, oh, ow]``; see :func:`pytorch_ext.depthwise_conv2d`. The weight is
        ``[out_channels, 1, kh, kw]``, the bias ``[out_channels]``.

    Raises:
        TypeError: kernel_size, stride, padding or dilation of the wrong type.
        ValueError: channels, sizes, groups, padding, padding_mode or activation out of range.
    """

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 4 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        weight, stride, padding, dilation, activation = packed.arguments
        if padding is None:
            padding = same_padding(input.shape[2:], self.kernel_size, stride, dilation)
        return _call(input, weight, self._parameters["bias"], stride, padding, dilation, activation)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        return depthwise_conv2d(input, weight, bias, self.stride, padding, self.dilation, self.activation)  # type: ignore[arg-type]


class DepthwiseConv1d(OneAxis, _Depthwise, nn.Conv1d):
    """``nn.Conv1d(groups=in_channels)`` on this library's kernels; all else as in :class:`DepthwiseConv2d`.

    Args: as there, but stride, dilation and kernel_size are single ints and padding is an int, (left, right),
        ``"same"`` or ``"valid"``.

    Shape:
        ``[n, in_channels, length]`` or ``[in_channels, length]`` to ``[n, out_channels, out_length]`` or
        ``[out_channels, out_length]``; the weight is ``[out_channels, 1, k]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 3 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        weight, stride, padding, dilation, activation = packed.arguments
        if padding is None:
            padding = same_padding((1, input.shape[2]), (1, *self.kernel_size), stride, dilation)
        bias = self._parameters["bias"]
        return _call(input.unsqueeze(2), weight, bias, stride, padding, dilation, activation).squeeze(2)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = single(self.padding)
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        stride, dilation = single(self.stride), single(self.dilation)
        return depthwise_conv1d(input, weight, bias, stride, padding, dilation, self.activation)
