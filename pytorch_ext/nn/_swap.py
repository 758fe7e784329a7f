"""`swap`, which turns a model's modules into this library's, in place, and `restore`, which turns them back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.utils.parametrize
from torch import nn

from ..ops.upsample2d import MODES
from ._convolution import Convolution
from ._dense import DilatedConv1d, DilatedConv2d, PointwiseConv2d
from ._depthwise import DepthwiseConv1d, DepthwiseConv2d
from ._resample import RESAMPLERS

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MARK = "_swapped"  # in the __dict__ of a module that swap() changed
_ORIGINALS: dict[type, type] = {
    DepthwiseConv1d: nn.Conv1d,
    DepthwiseConv2d: nn.Conv2d,
    DilatedConv1d: nn.Conv1d,
    DilatedConv2d: nn.Conv2d,
    PointwiseConv2d: nn.Conv2d,
    **{ours: torchs for torchs, ours in RESAMPLERS.items()},
}
_ADDED = (
    _MARK,
    "_packed",
    "activation",
    "activation_parameter",
    "algorithm",
    "frozen",
    "shuffle",
)  # what a module may have got


@dataclass
class SwapReport:
    """What :func:`swap` or :func:`restore` did, by module name (``""`` is the model itself); ``print`` it."""

    action: str
    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # name -> why
    kinds: dict[str, str] = field(default_factory=dict)  # name of what was replaced -> the class of ours

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(self.kinds.values()).items())
        counts = f" ({counts})" if counts else ""
        lines = [f"{self.action} {len(self.replaced)} modules{counts}, left {len(self.left)}"]
        lines += [f"  {name or '(the model)'}: {self.kinds[name]}" for name in self.replaced]
        lines += [f"  {name or '(the model)'}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.nn.") and "Conv" in type(module).__name__


def _obstacle(module: nn.Module) -> str | None:
    """Why a convolution is not swapped, or None."""
    kind, parameters = type(module), module._parameters
    if isinstance(module, Convolution):
        return f"it is a {kind.__name__} already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "it is lazy and has no weight yet; run the model once first"
    if _is_quantised(module):
        return f"it is quantised ({kind.__module__}.{kind.__name__})"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrised: its weight is computed at every call"
    if kind not in (nn.Conv1d, nn.Conv2d):
        return f"it is a subclass ({kind.__module__}.{kind.__qualname__}), whose forward may do more"
    if "weight" not in parameters or "bias" not in parameters:
        return "its weight or bias is no parameter but computed (weight_norm, spectral_norm, pruning)"
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return "its forward is replaced on the object"
    dtype = module.weight.dtype
    if dtype not in DTYPES:
        return f"its dtype is {dtype}"
    return None


def _resampler_obstacle(module: Any) -> str | None:
    """Why a shuffle or an upsampling is not swapped, or None."""
    kind = type(module)
    if kind in RESAMPLERS.values():
        return f"it is a {kind.__name__} already"
    if kind not in RESAMPLERS:
        return f"it is a subclass ({kind.__module__}.{kind.__qualname__}), whose forward may do more"
    if "forward" in module.__dict__:
        return "its forward is replaced on the object"
    if isinstance(module, nn.Upsample) and module.mode not in MODES:
        return f"its mode is {module.mode}"
    return None


def _kind(module) -> str:
    if module.groups == module.in_channels > 1:
        return "depthwise"
    if len(module.kernel_size) == 2 and set(module.kernel_size) == {1}:
        return "pointwise"
    return "dense"


def swap(
    model: nn.Module,
    *,
    depthwise: bool = True,
    pointwise: bool = True,
    dense: bool = True,
    resample: bool = True,
    frozen: bool = False,
) -> SwapReport:
    """Makes every ``nn.Conv2d`` and ``nn.Conv1d`` of a model run on this library's kernels, in place; shuffles and
    upsampling too.

    Only the modules' class changes: parameters stay the same objects (optimizers go on), hooks, buffers, training flag,
    sharing, names and state_dict are untouched, and the model itself may be such a convolution. Subclasses,
    parametrised, quantised and still lazy modules are left, each with its reason.

    Args:
        model: any module, in training or eval mode.
        depthwise: whether those with ``groups == in_channels > 1`` become :class:`DepthwiseConv2d` or
            :class:`DepthwiseConv1d`.
        pointwise: whether the other 2-D ones with 1x1 kernels, grouped or not, become :class:`PointwiseConv2d`.
        dense: whether all that remain, grouped or not, become :class:`DilatedConv2d` or :class:`DilatedConv1d`.
        resample: whether ``nn.ChannelShuffle``, ``nn.PixelShuffle``, ``nn.PixelUnshuffle``, ``nn.Upsample``,
            ``nn.UpsamplingNearest2d``, ``nn.UpsamplingBilinear2d`` and ``nn.ConvTranspose2d`` become this library's.
        frozen: a promise that nobody will write to a swapped weight: calls in eval mode then do not look, which saves
            the reading of it. A write that comes all the same may go unseen.

    Returns:
        A report of what was replaced by what, and which of these were left, and why. Modules that are used in
        several places are named once.
    """
    wanted = {"depthwise": depthwise, "pointwise": pointwise, "dense": dense}
    report = SwapReport("swapped")
    for name, module in model.named_modules():
        if isinstance(module, tuple(RESAMPLERS)):
            reason = _resampler_obstacle(module) if resample else "it resamples, which was not asked for"
            if reason is not None:
                report.left[name] = reason
                continue
            ours = module.__class__ = RESAMPLERS[type(module)]
            module.__dict__[_MARK] = True
            report.replaced.append(name)
            report.kinds[name] = ours.__name__
            continue
        if not isinstance(module, (nn.Conv1d, nn.Conv2d)) and not _is_quantised(module):
            continue
        kind = _kind(module)
        reason = _obstacle(module) if wanted[kind] else f"it is {kind}, which was not asked for"
        if reason is not None:
            report.left[name] = reason
            continue
        two = isinstance(module, nn.Conv2d)
        ours = {
            "depthwise": DepthwiseConv2d if two else DepthwiseConv1d,
            "pointwise": PointwiseConv2d,
            "dense": DilatedConv2d if two else DilatedConv1d,
        }[kind]
        module.__class__ = ours
        module.__dict__[_MARK] = True
        if frozen:
            module.__dict__["frozen"] = True
        report.replaced.append(name)
        report.kinds[name] = ours.__name__
    return report


def restore(model: nn.Module) -> SwapReport:
    """Undoes :func:`swap`: the modules are what they were, trained meanwhile or not.

    Args:
        model: a model, or a copy or pickle of one, that swap changed. Modules of this library of its own are kept.

    Returns:
        A report of what was restored, and what could not be because it was given an activation since.
    """
    report = SwapReport("restored")
    for name, module in model.named_modules():
        if not isinstance(module, (Convolution, *RESAMPLERS.values())) or _MARK not in module.__dict__:
            continue
        kind = type(module)
        if kind not in _ORIGINALS:
            report.left[name] = "it was parametrised since"
        elif (activation := getattr(module, "activation", "none")) != "none":
            report.left[name] = f"it has an activation, {activation}, which nn.Conv does not"
        elif (shuffle := getattr(module, "shuffle", 1)) != 1:
            report.left[name] = f"it shuffles its channels, {shuffle}, which nn.Conv does not"
        else:
            for attribute in _ADDED:
                module.__dict__.pop(attribute, None)
            module.__class__ = _ORIGINALS[kind]
            report.replaced.append(name)
            report.kinds[name] = kind.__name__
    return report
