"""Depthwise convolutions as modules, and `swap`, which turns a model's own into them, with `restore` back.

A swapped module is the same object with another class: parameters, hooks, buffers and whoever holds it notice nothing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
import torch.nn.utils.parametrize
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.conv import _ConvNd

from . import _op
from ._geometry import padding4, same_padding
from .ops.depthwise_conv2d import ACTIVATIONS, depthwise_conv1d, depthwise_conv2d

__all__ = ["DepthwiseConv1d", "DepthwiseConv2d", "SwapReport", "restore", "swap"]

_GEOMETRY = {"stride", "padding", "dilation", "padding_mode", "activation"}  # to set one is to pack anew
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

torch.fx.wrap("depthwise_conv1d")  # torch.fx records a call of these instead of tracing into them
torch.fx.wrap("depthwise_conv2d")

# Bound once: looking them up takes longer than most of them do.
_call = torch.ops.pytorch_ext.depthwise_conv2d.default._op
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_functorch_active, _dispatch_modes = torch._C._are_functorch_transforms_active, torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_MARK = "_swapped"  # in the __dict__ of a module that swap() changed
_memcmp = ctypes.PyDLL(None)["memcmp"]  # PyDLL: to give the GIL away costs more than the comparison
_memcmp.argtypes, _memcmp.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int


class _Packed(NamedTuple):
    """An inference call's arguments, worked out once, and the weight that they were worked out from.

    The weight is compared by its contents, not by `_version`: that misses writes through `.data`, numpy or shared
    memory, and inference tensors have none.
    """

    # weight [c, 1, kh, kw] stored as [kh, kw, c], what the CPU kernels read without repacking; stride; padding (None:
    # "same" with a stride, which depends on the input); dilation; activation
    arguments: tuple[Tensor, tuple[int, int], tuple[int, int, int, int] | None, tuple[int, int], str]
    # the parameter, its dtype, numel and strides, a pointer to a copy of its contents, their bytes
    source: tuple[nn.Parameter, torch.dtype, int, tuple[int, ...], int, int]
    contents: Tensor  # that copy


class _Depthwise(_ConvNd):
    """What the 1-D and the 2-D module share."""

    activation: str = "none"  # on the class: a swapped module needs nothing that it did not have
    _packed: _Packed | None = None

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
        kernel_size, stride = self._sizes(kernel_size, "kernel_size"), self._sizes(stride, "stride")
        dilation = self._sizes(dilation, "dilation")
        own: Any = None  # a padding that nn.ConvNd does not know: (before, after) of each axis, or "same" with a stride
        if isinstance(padding, (tuple, list)) and len(padding) != len(stride):
            own = tuple(padding)
        elif padding == "same" and max(stride) > 1:
            own = padding
        construct: Any = super().__init__  # nn.Conv2d's or nn.Conv1d's: mypy takes it for _ConvNd's
        known, groups = padding if own is None else 0, in_channels
        construct(
            in_channels, out_channels, kernel_size, stride, known, dilation, groups, bias, padding_mode, device, dtype
        )
        if own is not None:
            self.padding = own
            self._reversed_padding_repeated_twice = _last_axis_first(own if isinstance(own, tuple) else ())
        self.activation = activation
        self._geometry(self.weight)  # for its errors

    def __setattr__(self, name: str, value) -> None:
        if name in _GEOMETRY:
            self.__dict__.pop("_packed", None)
        super().__setattr__(name, value)

    @staticmethod
    def _sizes(value, name: str) -> tuple[int, ...]:
        """A positive int for each axis, from what `name` may be given as."""
        raise NotImplementedError

    def _geometry(self, weight: Tensor) -> tuple[tuple, tuple | None, tuple]:
        """stride, padding (None where it depends on the input) and dilation for the 2-D op; weight is [.., kh, kw]."""
        raise NotImplementedError

    def _padded(self, input: Tensor) -> Tensor:
        """The input padded as padding_mode asks, where that is not with zeros."""
        sides = self._reversed_padding_repeated_twice
        if self.padding == "same" and any(s != 1 for s in self.stride):
            axes = len(self.kernel_size)
            sides = _last_axis_first(same_padding(input.shape[-axes:], self.kernel_size, self.stride, self.dilation))
        return F.pad(input, sides, mode=self.padding_mode)

    def _check_channels(self, input: Tensor) -> None:
        """The op would take fewer channels for a multiplier: the module knows how many there are."""
        if not isinstance(input, Tensor) or _tracing_state() is not None:  # a trace would record the question
            return
        axes = len(self.kernel_size)
        if input.dim() > axes and input.shape[-axes - 1] != self.in_channels:
            raise RuntimeError(f"input must have {self.in_channels} channels, got shape {list(input.shape)}")

    def _inference(self, input: Tensor) -> _Packed | None:
        """The arguments of the short path where it may be taken, else None. Every line costs: 6 us are all there is."""
        if (
            self.training
            or type(input) is not Tensor
            or _is_compiling()
            or _functorch_active()
            or _dispatch_modes()
            or _tracing_state() is not None
            or forward_ad._current_level >= 0
        ):
            return None
        parameters = self._parameters
        weight = parameters.get("weight")
        if weight is None or "bias" not in parameters:  # pruned, normalised, reparametrised
            return None
        if _is_grad_enabled() and (input.requires_grad or any(p.requires_grad for p in self.parameters(False))):
            return None
        packed = self._packed
        if packed is not None:
            _, (source, dtype, numel, strides, contents, nbytes), _ = packed
            if (
                weight is source
                and weight.dtype is dtype
                and weight.numel() == numel
                and weight.stride() == strides
                and (pointer := weight.data_ptr())
                and not _memcmp(pointer, contents, nbytes)
            ):
                return packed
        return self._pack(weight)

    def _pack(self, weight: Tensor) -> _Packed | None:
        if (
            type(weight) is not nn.Parameter
            or not (weight.is_cpu and weight.is_contiguous() and weight.numel())
            or self.padding_mode != "zeros"
            or not all(isinstance(a, (int, str, tuple)) for a in (self.stride, self.padding, self.dilation))
        ):
            return None
        with torch.inference_mode(False), torch.no_grad():
            copy = weight.detach().clone()
            w = copy if copy.dim() == 4 else copy.unsqueeze(2)
            packed = w.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
        arguments = packed, *self._geometry(w), self.activation
        source = weight, weight.dtype, weight.numel(), weight.stride(), copy.data_ptr(), copy.nbytes
        made = self.__dict__["_packed"] = _Packed(arguments, source, copy)
        return made

    def __getstate__(self):
        state = self.__dict__.copy()
        state.pop("_packed", None)
        return state

    def extra_repr(self) -> str:
        activation = "" if self.activation == "none" else f", activation={self.activation}"
        return super().extra_repr() + activation


def _last_axis_first(sides) -> list[int]:
    """(before, after) of each axis, in F.pad's order."""
    return [side for i in range(len(sides) - 2, -1, -2) for side in sides[i : i + 2]]


class DepthwiseConv2d(_Depthwise, nn.Conv2d):
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
        activation: ``"none"``, ``"relu"``, ``"relu6"``, ``"silu"`` or ``"hardswish"``.

    Shape:
        ``[n, in_channels, h, w]`` or ``[in_channels, h, w]`` to ``[n, out_channels, oh, ow]`` or
        ``[out_channels, oh, ow]``; see :func:`pytorch_ext.depthwise_conv2d`. The weight is
        ``[out_channels, 1, kh, kw]``, the bias ``[out_channels]``.

    Raises:
        TypeError: kernel_size, stride, padding or dilation of the wrong type.
        ValueError: channels, sizes, groups, padding, padding_mode or activation out of range.
    """

    _sizes = staticmethod(_op.pair)

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 4 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        (weight, stride, padding, dilation, activation), _, _ = packed
        if padding is None:
            padding = same_padding(input.shape[2:], self.kernel_size, stride, dilation)
        return _call(input, weight, self._parameters["bias"], stride, padding, dilation, activation)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        return depthwise_conv2d(input, weight, bias, self.stride, padding, self.dilation, self.activation)  # type: ignore[arg-type]

    def _geometry(self, weight):
        stride, dilation = _op.pair(self.stride, "stride"), _op.pair(self.dilation, "dilation")
        if self.padding == "same" and stride != (1, 1):
            return stride, None, dilation
        return stride, padding4(self.padding, weight, weight, stride, dilation), dilation


class DepthwiseConv1d(_Depthwise, nn.Conv1d):
    """``nn.Conv1d(groups=in_channels)`` on this library's kernels; all else as in :class:`DepthwiseConv2d`.

    Args: as there, but stride, dilation and kernel_size are single ints and padding is an int, (left, right),
        ``"same"`` or ``"valid"``.

    Shape:
        ``[n, in_channels, length]`` or ``[in_channels, length]`` to ``[n, out_channels, out_length]`` or
        ``[out_channels, out_length]``; the weight is ``[out_channels, 1, k]``.
    """

    @staticmethod
    def _sizes(value, name: str) -> tuple[int, ...]:
        if isinstance(_single(value), (tuple, list)):
            raise TypeError(f"{name} must be an int, got {value!r}")
        return _op.pair(_single(value), name)[:1]

    def forward(self, input: Tensor) -> Tensor:
        packed = self._inference(input)
        if packed is None or input.dim() != 3 or input.size(1) != self.in_channels:
            return self._conv_forward(input, self.weight, self.bias)
        (weight, stride, padding, dilation, activation), _, _ = packed
        if padding is None:
            padding = same_padding((1, input.shape[2]), (1, *self.kernel_size), stride, dilation)
        bias = self._parameters["bias"]
        return _call(input.unsqueeze(2), weight, bias, stride, padding, dilation, activation).squeeze(2)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._check_channels(input)
        padding: Any = _single(self.padding)
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        stride, dilation = _single(self.stride), _single(self.dilation)
        return depthwise_conv1d(input, weight, bias, stride, padding, dilation, self.activation)

    def _geometry(self, weight):
        stride, dilation = (1, _single(self.stride)), (1, _single(self.dilation))
        padding = _single(self.padding)
        if padding == "same" and stride != (1, 1):
            return stride, None, dilation
        if not isinstance(padding, str):
            sides = padding if isinstance(padding, (tuple, list)) else (padding, padding)
            if len(sides) != 2:
                raise ValueError(f"padding must be an int, (left, right), 'same' or 'valid', got {padding!r}")
            padding = (0, 0, *sides)
        return stride, padding4(padding, weight, weight, stride, dilation), dilation


def _single(value):
    """The only element of a 1-tuple; anything else as it is."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


# --- swapping ---------------------------------------------------------------------------------------------------------
@dataclass
class SwapReport:
    """What :func:`swap` or :func:`restore` did, by module name (``""`` is the model itself); ``print`` it."""

    action: str
    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # name -> why

    def __str__(self) -> str:
        lines = [f"{self.action} {len(self.replaced)} depthwise convolutions, left {len(self.left)}"]
        lines += [f"  {name or '(the model)'}" for name in self.replaced]
        lines += [f"  {name or '(the model)'}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


_SWAPPED: dict[type, type] = {nn.Conv2d: DepthwiseConv2d, nn.Conv1d: DepthwiseConv1d}


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.nn.") and "Conv" in type(module).__name__


def _obstacle(module: nn.Module) -> str | None:
    """Why a grouped convolution is not swapped, or None."""
    kind, parameters = type(module), module._parameters
    if isinstance(module, _Depthwise):
        return f"it is a {kind.__name__} already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "it is lazy and has no weight yet; run the model once first"
    if _is_quantised(module):
        return f"it is quantised ({kind.__module__}.{kind.__name__})"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrised: its weight is computed at every call"
    if kind not in _SWAPPED:
        return f"it is a subclass ({kind.__module__}.{kind.__qualname__}), whose forward may do more"
    if "weight" not in parameters or "bias" not in parameters:
        return "its weight or bias is no parameter but computed (weight_norm, spectral_norm, pruning)"
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return "its forward is replaced on the object"
    if module.groups != module.in_channels:
        return f"it has {module.groups} groups for {module.in_channels} channels, which is not depthwise"
    dtype = module.weight.dtype
    if dtype not in DTYPES:
        return f"its dtype is {dtype}"
    return None


def swap(model: nn.Module) -> SwapReport:
    """Makes every depthwise ``nn.Conv2d`` and ``nn.Conv1d`` of a model run on this library's kernels, in place.

    Only the modules' class changes: parameters stay the same objects (optimizers go on), hooks, buffers, training flag,
    sharing, names and state_dict are untouched, and the model itself may be such a convolution.

    Depthwise means ``groups == in_channels > 1``. What has one group is passed over without a word, a convolution of a
    single input channel included: that is depthwise too, but networks mean it as a dense one. Grouped convolutions
    that are not depthwise, subclasses, parametrised, quantised and still lazy modules are left, each with its reason.

    Args:
        model: any module, in training or eval mode.

    Returns:
        A report of what was replaced and which grouped convolutions were left, and why. Modules that are used in
        several places are named once.
    """
    report = SwapReport("swapped")
    for name, module in model.named_modules():
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d)) or _is_quantised(module)
        if not convolution or module.groups == 1:
            continue
        reason = _obstacle(module)
        if reason is None:
            module.__class__ = _SWAPPED[type(module)]
            module.__dict__[_MARK] = True
            report.replaced.append(name)
        else:
            report.left[name] = reason
    return report


def restore(model: nn.Module) -> SwapReport:
    """Undoes :func:`swap`: the modules are what they were, trained meanwhile or not.

    Args:
        model: a model, or a copy or pickle of one, that swap changed. DepthwiseConv modules of its own are kept.

    Returns:
        A report of what was restored, and what could not be because it was given an activation since.
    """
    report = SwapReport("restored")
    originals = {swapped: original for original, swapped in _SWAPPED.items()}
    for name, module in model.named_modules():
        if not isinstance(module, _Depthwise) or _MARK not in module.__dict__:
            continue
        if type(module) not in originals:
            report.left[name] = "it was parametrised since"
        elif module.activation != "none":
            report.left[name] = f"it has an activation, {module.activation}, which nn.Conv does not"
        else:
            for attribute in (_MARK, "_packed", "activation"):
                module.__dict__.pop(attribute, None)
            module.__class__ = originals[type(module)]
            report.replaced.append(name)
    return report
