"""Convolutions over all channels of a group as modules: pointwise, and of any kernel, stride and dilation."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _epilogue
from .._geometry import same_padding
from ..ops.dilated_conv2d import ALGORITHMS, dilated_conv1d, dilated_conv2d
from ..ops.pointwise_conv2d import pointwise_conv2d
from ._convolution import Convolution, OneAxis, Packed, TwoAxes, single

torch.fx.wrap("dilated_conv1d")  # torch.fx records a call of these instead of tracing into them
torch.fx.wrap("dilated_conv2d")
torch.fx.wrap("pointwise_conv2d")

# Bound once: looking them up takes longer than most of them do.
_dilated, _pack_dilated = (getattr(torch.ops.pytorch_ext, f"dilated_conv2d{end}").default._op for end in ("", "_pack"))
_pointwise, _pack_pointwise = (
    getattr(torch.ops.pytorch_ext, f"pointwise_conv2d{end}").default._op for end in ("", "_pack")
)
_autocast_enabled = torch.is_autocast_enabled
MOST_KEPT = 8  # packed weights of a module, for inputs of that many shapes


class _Dense(Convolution):
    """What all of them share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        activation_parameter: float | Tensor | None = None,
    ) -> None:
        if activation == "prelu" and not isinstance(activation_parameter, Tensor):
            value = 0.25 if activation_parameter is None else activation_parameter
            activation_parameter = torch.full((out_channels,), value, device=device, dtype=dtype)
        _epilogue.parse(activation, activation_parameter)  # for its errors
        if isinstance(activation_parameter, Tensor) and list(activation_parameter.shape) not in ([out_channels], [1]):
            raise ValueError(
                f"activation_parameter must have shape [{out_channels}] or [1], got {list(activation_parameter.shape)}"
            )
        channels = in_channels, out_channels
        super().__init__(*channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self.activation = activation
        if isinstance(activation_parameter, Tensor):
            activation_parameter = nn.Parameter(activation_parameter.detach())
        self.activation_parameter = activation_parameter

    def _parameter(self) -> Any:
        """Of the activation; swapped modules have none."""
        slopes = self._parameters.get("activation_parameter")
        return self.__dict__.get("activation_parameter") if slopes is None else slopes

    def _inference(self, input: Tensor) -> Packed | None:
        return None if _autocast_enabled("cpu") else super()._inference(input)  # what is packed has the weight's dtype

    def _kept(self, packed: Packed, input: Tensor, weight: Tensor, pack, *arguments) -> Tensor:
        """The weight packed for such an input; those that are the same are kept once."""
        key = input.shape, input.stride()
        found = packed.kept.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = pack(input, weight, *arguments)
            found = next((t for t in list(packed.kept.values()) if torch.equal(t, found)), found)
            if len(packed.kept) >= MOST_KEPT:
                packed.kept.clear()
            packed.kept[key] = found
        return found

    def extra_repr(self) -> str:
        parameter = self.__dict__.get("activation_parameter")
        return super().extra_repr() + ("" if parameter is None else f", activation_parameter={parameter}")


class PointwiseConv2d(TwoAxes, _Dense, nn.Conv2d):
    """``nn.Conv2d(kernel_size=1)`` on this library's kernels, with an activation fused in.

    It is an ``nn.Conv2d``: parameters, initialisation, state_dict and attributes are unchanged. In eval mode, where no
    gradient is asked for and outside autocast, the weight is kept a second time in the order that the CPU kernels read,
    with a fingerprint of 64 bits of its contents, which is taken of the parameter again at every call: whichever way it
    was written to, the weight is packed anew. Who never writes to it may set ``frozen = True`` and save that; a write
    other than by load_state_dict or between train() and eval() may then go unseen, and results be those of the old
    weight.

    Args:
        in_channels, out_channels: multiples of groups.
        kernel_size: 1; here, as padding and dilation are, so that nn.Conv2d's arguments may be passed as they are.
        stride: positive int, or (height, width).
        padding: as in :class:`DilatedConv2d`, whose kernels a padded pointwise convolution takes.
        groups: positive int.
        bias: whether there is one.
        padding_mode: ``"zeros"``; ``"reflect"``, ``"replicate"``, ``"circular"`` are done by F.pad.
        activation: a name of ``pytorch_ext.ACTIVATIONS``.
        activation_parameter: leaky_relu's slope (0.01), elu's alpha (1.0); of prelu the slopes, ``[out_channels]`` or
            ``[1]``, or a number (0.25) for all of ``[out_channels]``: a parameter of the module.
        shuffle: the output's channels are at last shuffled as by ``torch.nn.ChannelShuffle(shuffle)``.

    Shape:
        ``[n, in_channels, h, w]`` or ``[in_channels, h, w]`` to ``[n, out_channels, oh, ow]`` or
        ``[out_channels, oh, ow]``; see :func:`pytorch_ext.pointwise_conv2d`. The weight is
        ``[out_channels, in_channels / groups, 1, 1]``, the bias ``[out_channels]``.

    Raises:
        TypeError: stride, padding, dilation or an activation of the wrong type.
        ValueError: channels, sizes, groups, padding, padding_mode, activation or shuffle out of range, or a kernel that
            is not 1x1.
    """

    shuffle: int = 1

    def __init__(self, in_channels, out_channels, kernel_size=1, *args, shuffle: int = 1, **kwargs) -> None:
        if self._sizes(kernel_size, "kernel_size") != (1, 1):
            raise ValueError(f"kernel_size must be 1 in a pointwise convolution, got {kernel_size!r}")
        if shuffle < 1 or out_channels % shuffle:
            raise ValueError(f"shuffle must divide out_channels = {out_channels}, got {shuffle}")
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        if shuffle != 1:
            self.shuffle = shuffle

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 4 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        stride, padding, groups, activation, alpha = packed.arguments
        if padding:
            return self._conv_forward(input, self.weight, self.bias)
        weight, parameters = packed.source[0], self._parameters
        return _pointwise(
            input,
            weight,
            parameters["bias"],
            stride,
            groups,
            activation,
            alpha,
            parameters.get("activation_parameter"),
            None,
            None,
            False,
            None,
            "none",
            None,
            self.shuffle,
            self._kept(packed, input, weight, _pack_pointwise, stride, groups),
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        stride: Any = self.stride
        more: Any = {"groups": self.groups, "activation": self.activation, "activation_parameter": self._parameter()}
        if isinstance(padding, str) or not any(padding if isinstance(padding, (tuple, list)) else (padding,)):
            return pointwise_conv2d(input, weight, bias, stride, shuffle=self.shuffle, **more)
        y = dilated_conv2d(input, weight, bias, stride, padding, **more)
        if self.shuffle == 1:
            return y
        return F.channel_shuffle(y.unsqueeze(0) if y.dim() == 3 else y, self.shuffle).view_as(y)

    def _arguments(self, weight: Tensor) -> tuple[Any, ...]:
        stride, padding, _ = self._geometry(weight)
        activation, alpha, _ = _epilogue.parse(self.activation, self._parameter())
        return stride, any(padding or ()), self.groups, activation, alpha

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.shuffle == 1 else f", shuffle={self.shuffle}")


class _Dilated(_Dense):
    """What the 1-D and the 2-D module share."""

    algorithm: str = "auto"

    def _arguments(self, weight: Tensor) -> tuple[Any, ...]:
        activation, alpha, _ = _epilogue.parse(self.activation, self._parameter())
        return *self._geometry(weight), self.groups, activation, alpha

    def _short(self, packed: Packed, input: Tensor, kernel_size) -> Tensor:
        stride, padding, dilation, groups, activation, alpha = packed.arguments
        if padding is None:
            padding = same_padding(input.shape[2:], kernel_size, stride, dilation)
        parameters, algorithm = self._parameters, self.algorithm
        weight: Tensor = packed.source[0]
        weight = weight if weight.dim() == 4 else weight.unsqueeze(2)
        return _dilated(
            input,
            weight,
            parameters["bias"],
            stride,
            padding,
            dilation,
            groups,
            activation,
            alpha,
            parameters.get("activation_parameter"),
            None,
            None,
            False,
            None,
            algorithm,
            self._kept(packed, input, weight, _pack_dilated, stride, padding, dilation, groups, algorithm),
        )


class DilatedConv2d(TwoAxes, _Dilated, nn.Conv2d):
    """``nn.Conv2d`` on this library's kernels, with an activation fused in; a dilation of 1 is one too.

    It is an ``nn.Conv2d``, with a packed weight in eval mode, as :class:`PointwiseConv2d` is; there is one for each
    shape of input, of which the last few are kept.

    Args:
        in_channels, out_channels: multiples of groups.
        kernel_size, stride, dilation: positive int, or (height, width).
        padding: int, (height, width), (top, bottom, left, right), ``"same"`` (TensorFlow's, for any stride) or
            ``"valid"``.
        groups: positive int.
        bias: whether there is one.
        padding_mode: ``"zeros"`` is done by the kernels; ``"reflect"``, ``"replicate"``, ``"circular"`` by F.pad.
        activation, activation_parameter: as in :class:`PointwiseConv2d`.
        algorithm: as in :func:`pytorch_ext.dilated_conv2d`.

    Shape:
        ``[n, in_channels, h, w]`` or ``[in_channels, h, w]`` to ``[n, out_channels, oh, ow]`` or
        ``[out_channels, oh, ow]``; see :func:`pytorch_ext.dilated_conv2d`. The weight is
        ``[out_channels, in_channels / groups, kh, kw]``, the bias ``[out_channels]``.

    Raises:
        TypeError: kernel_size, stride, padding, dilation or an activation of the wrong type.
        ValueError: channels, sizes, groups, padding, padding_mode, activation or algorithm out of range.
    """

    def __init__(self, *args, algorithm: str = "auto", **kwargs) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        super().__init__(*args, **kwargs)
        if algorithm != "auto":
            self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 4 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        return self._short(packed, input, self.kernel_size)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        more: Any = {"stride": self.stride, "dilation": self.dilation, "activation_parameter": self._parameter()}
        more |= {"groups": self.groups, "activation": self.activation, "algorithm": self.algorithm}
        return dilated_conv2d(input, weight, bias, padding=padding, **more)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.algorithm == "auto" else f", algorithm={self.algorithm}")


class DilatedConv1d(OneAxis, _Dilated, nn.Conv1d):
    """``nn.Conv1d`` on this library's kernels; all else as in :class:`DilatedConv2d`, without algorithm.

    Args: as there, but stride, dilation and kernel_size are single ints and padding is an int, (left, right),
        ``"same"`` or ``"valid"``.

    Shape:
        ``[n, in_channels, length]`` or ``[in_channels, length]`` to ``[n, out_channels, out_length]`` or
        ``[out_channels, out_length]``; the weight is ``[out_channels, in_channels / groups, k]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 3 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        return self._short(packed, input.unsqueeze(2), (1, *self.kernel_size)).squeeze(2)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = single(self.padding)
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        more: Any = {"stride": single(self.stride), "padding": padding, "dilation": single(self.dilation)}
        more |= {"groups": self.groups, "activation": self.activation, "activation_parameter": self._parameter()}
        return dilated_conv1d(input, weight, bias, **more)
