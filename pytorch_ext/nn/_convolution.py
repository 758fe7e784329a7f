"""What all convolution modules share: arguments, padding, and an inference call whose weight is packed once."""

from __future__ import annotations

import ctypes
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.conv import _ConvNd

from .. import _op
from .._geometry import padding4, same_padding
from .._load import libraries

# To set one is to pack anew.
_ARGUMENTS = {
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "activation",
    "activation_parameter",
    "algorithm",
}

# Bound once: looking them up takes longer than most of them do.
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_functorch_active, _dispatch_modes = torch._C._are_functorch_transforms_active, torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_fingerprint: Any = None  # (pointer, bytes) -> 64 bits that tell contents apart; None where nothing is compiled
if "cpu" in libraries:
    _fingerprint = ctypes.PyDLL(str(libraries["cpu"]))["lightkernels_fingerprint"]  # PyDLL: the GIL is not given away
    _fingerprint.argtypes, _fingerprint.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_uint64


class Packed(NamedTuple):
    """An inference call's arguments, worked out once, and the weight that they were worked out from.

    The weight is known by its contents' fingerprint, not by `_version`: that misses writes through `.data`, numpy or
    shared memory, and inference tensors have none.
    """

    arguments: tuple[Any, ...]  # as the module's class has them
    # the parameter, its dtype, numel and strides, where its contents lie, their fingerprint and bytes
    source: tuple[nn.Parameter, torch.dtype, int, tuple[int, ...], int, int, int]
    kept: dict[Any, Tensor]  # what an op's `pack` made of the weight, by the input's shape and strides


class Convolution(_ConvNd):
    """Base of the 1-D and the 2-D modules; its subclasses are nn.Conv1d or nn.Conv2d too."""

    activation: str = "none"  # on the class: a swapped module needs nothing that it did not have
    frozen: bool = False  # a promise that nobody writes to the weight: it is then not compared
    _packed: Packed | None = None

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
    ) -> None:
        kernel_size, stride = self._sizes(kernel_size, "kernel_size"), self._sizes(stride, "stride")
        dilation = self._sizes(dilation, "dilation")
        own: Any = None  # a padding that nn.ConvNd does not know: (before, after) of each axis, or "same" with a stride
        if isinstance(padding, (tuple, list)) and len(padding) != len(stride):
            own = tuple(padding)
        elif padding == "same" and max(stride) > 1:
            own = padding
        construct: Any = super().__init__  # nn.Conv2d's or nn.Conv1d's: mypy takes it for _ConvNd's
        known = padding if own is None else 0
        construct(
            in_channels, out_channels, kernel_size, stride, known, dilation, groups, bias, padding_mode, device, dtype
        )
        if own is not None:
            self.padding = own
            self._reversed_padding_repeated_twice = _last_axis_first(own if isinstance(own, tuple) else ())
        self._geometry(self.weight)  # for its errors

    def __setattr__(self, name: str, value) -> None:
        if name in _ARGUMENTS:
            self.__dict__.pop("_packed", None)
        super().__setattr__(name, value)

    @staticmethod
    def _sizes(value, name: str) -> tuple[int, ...]:
        """A positive int for each axis, from what `name` may be given as."""
        raise NotImplementedError

    def _geometry(self, weight: Tensor) -> tuple[tuple, tuple | None, tuple]:
        """stride, padding (None where it depends on the input) and dilation for the 2-D op; weight is [.., kh, kw]."""
        raise NotImplementedError

    def _arguments(self, weight: Tensor) -> tuple[Any, ...]:
        """An inference call's arguments, as far as the input has no say; weight is a copy, [.., kh, kw]."""
        raise NotImplementedError

    def _padded(self, input: Tensor) -> Tensor:
        """The input padded as padding_mode asks, where that is not with zeros."""
        sides = self._reversed_padding_repeated_twice
        if self.padding == "same" and any(s != 1 for s in self.stride):
            axes = len(self.kernel_size)
            sides = _last_axis_first(same_padding(input.shape[-axes:], self.kernel_size, self.stride, self.dilation))
        return F.pad(input, sides, mode=self.padding_mode)

    def _check_channels(self, input: Tensor) -> None:
        """The module knows how many there are: a depthwise op would take fewer for a multiplier."""
        if not isinstance(input, Tensor) or _tracing_state() is not None:  # a trace would record the question
            return
        axes = len(self.kernel_size)
        if input.dim() > axes and input.shape[-axes - 1] != self.in_channels:
            raise RuntimeError(f"input must have {self.in_channels} channels, got shape {list(input.shape)}")

    def _inference(self, input: Tensor) -> Packed | None:
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
            source, dtype, numel, strides, place, fingerprint, nbytes = packed.source
            if (
                weight is source
                and weight.dtype is dtype
                and weight.numel() == numel
                and weight.stride() == strides
                and (pointer := weight.data_ptr())
                and (pointer == place if self.frozen else _fingerprint(pointer, nbytes) == fingerprint)
            ):
                return packed
        return self._pack(weight)

    def _pack(self, weight: Tensor) -> Packed | None:
        if (
            _fingerprint is None
            or type(weight) is not nn.Parameter
            or not (weight.is_cpu and weight.numel())
            or self.padding_mode != "zeros"
            or not all(isinstance(a, (int, str, tuple)) for a in (self.stride, self.padding, self.dilation))
        ):
            return None
        with torch.inference_mode(False), torch.no_grad():
            copy = weight.detach().clone()
            if copy.stride() != weight.stride():  # it has gaps, or overlaps
                return None
            arguments = self._arguments(copy if copy.dim() == 4 else copy.unsqueeze(2))
        fingerprint = _fingerprint(copy.data_ptr(), copy.nbytes)
        source = weight, weight.dtype, weight.numel(), weight.stride(), weight.data_ptr(), fingerprint, copy.nbytes
        made = self.__dict__["_packed"] = Packed(arguments, source, {})
        return made

    def _forget_if_frozen(self) -> None:
        """Where a write is expected, not even a promise that there is none is relied on."""
        if self.frozen:
            self.__dict__.pop("_packed", None)

    def train(self, mode: bool = True):
        self._forget_if_frozen()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs):
        self._forget_if_frozen()
        return super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self):
        state = self.__dict__.copy()
        state.pop("_packed", None)
        return state

    def extra_repr(self) -> str:
        activation = "" if self.activation == "none" else f", activation={self.activation}"
        return super().extra_repr() + activation


class TwoAxes:
    """How a 2-D module's sizes are given."""

    _sizes = staticmethod(_op.pair)

    def _geometry(self: Any, weight: Tensor) -> tuple[tuple, tuple | None, tuple]:
        stride, dilation = _op.pair(self.stride, "stride"), _op.pair(self.dilation, "dilation")
        if self.padding == "same" and stride != (1, 1):
            return stride, None, dilation
        return stride, padding4(self.padding, weight, weight, stride, dilation), dilation


class OneAxis:
    """How a 1-D module's sizes are given."""

    @staticmethod
    def _sizes(value, name: str) -> tuple[int, ...]:
        if isinstance(single(value), (tuple, list)):
            raise TypeError(f"{name} must be an int, got {value!r}")
        return _op.pair(single(value), name)[:1]

    def _geometry(self: Any, weight: Tensor) -> tuple[tuple, tuple | None, tuple]:
        stride, dilation = (1, single(self.stride)), (1, single(self.dilation))
        padding = single(self.padding)
        if padding == "same" and stride != (1, 1):
            return stride, None, dilation
        if not isinstance(padding, str):
            sides = padding if isinstance(padding, (tuple, list)) else (padding, padding)
            if len(sides) != 2:
                raise ValueError(f"padding must be an int, (left, right), 'same' or 'valid', got {padding!r}")
            padding = (0, 0, *sides)
        return stride, padding4(padding, weight, weight, stride, dilation), dilation


def single(value):
    """The only element of a 1-tuple; anything else as it is."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


def _last_axis_first(sides) -> list[int]:
    """(before, after) of each axis, in F.pad's order."""
    return [side for i in range(len(sides) - 2, -1, -2) for side in sides[i : i + 2]]
